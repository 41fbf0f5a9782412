"""A tiny model, a tiny named data set, and checkpoints as a run leaves them."""

from __future__ import annotations

from functools import lru_cache

import torch
from models.tiny import create_tiny, write_checkpoint

from cyclip_ext.data import DatasetSplits, load_shapes
from cyclip_ext.evaluation.encoder import Encoder

__all__ = ["shapes", "tiny_encoder", "write_checkpoint"]


@lru_cache
def shapes() -> DatasetSplits:
    """The procedural set, made once."""
    return load_shapes(size=16)


def tiny_encoder(seed: int = 0) -> Encoder:
    """A model that has learned nothing."""
    torch.manual_seed(seed)
    created = create_tiny()
    return Encoder(created.model, created.tokenizer, 16, torch.device("cpu"))  # type: ignore[arg-type]
