"""A tiny encoder and a tiny built-in dataset."""

from __future__ import annotations

from functools import lru_cache

import torch
from models.tiny import create_tiny, write_checkpoint

from cyclip_ext.data import DatasetSplits, load_shapes
from cyclip_ext.evaluation import Encoder
from cyclip_ext.models.trained import TrainedModel

__all__ = ["shapes", "tiny_encoder", "write_checkpoint"]


@lru_cache
def shapes() -> DatasetSplits:
    """Return the procedural dataset, made once."""
    return load_shapes(size=16)


def tiny_encoder(seed: int = 0) -> Encoder:
    """Return a model that has not been trained."""
    torch.manual_seed(seed)
    return Encoder.of(TrainedModel(create_tiny(), ""), torch.device("cpu"))
