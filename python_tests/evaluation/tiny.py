"""A tiny model, a tiny named data set, and checkpoints as a run leaves them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from models.tiny import create_tiny

from cyclip_ext.data import DatasetSplits, load_shapes
from cyclip_ext.evaluation.encoder import Encoder
from cyclip_ext.models.checkpoint import FORMAT

SETTINGS: dict[str, Any] = {
    "data": {"train_data": "shapes"},
    "loss": {"loss": "cyclip", "in_modal": 0.25, "cross_modal": 0.25, "margin": 0.0},
    "run": {"model": "tiny", "epochs": 3, "seed": 7},
}


@lru_cache
def shapes() -> DatasetSplits:
    """The procedural set, made once."""
    return load_shapes(size=16)


def tiny_encoder(seed: int = 0) -> Encoder:
    """A model that has learned nothing."""
    torch.manual_seed(seed)
    created = create_tiny()
    return Encoder(created.model, created.tokenizer, 16, torch.device("cpu"))  # type: ignore[arg-type]


def write_checkpoint(path: Path, seed: int = 0, **changes: Any) -> dict[str, torch.Tensor]:
    """A checkpoint as training writes it; its weights."""
    torch.manual_seed(seed)
    weights = create_tiny().model.state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"format": FORMAT, "config": SETTINGS, "model": weights, **changes}, path)
    return weights
