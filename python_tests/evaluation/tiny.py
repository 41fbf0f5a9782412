"""A tiny encoder."""

from __future__ import annotations

import torch
from models.tiny import create_tiny

from cyclip_ext.evaluation import Encoder
from cyclip_ext.models.trained import TrainedModel


def tiny_encoder() -> Encoder:
    """Return a model that has not been trained."""
    torch.manual_seed(0)
    return Encoder.of(TrainedModel(create_tiny(), ""), torch.device("cpu"))
