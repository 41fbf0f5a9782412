"""Towers of a few thousand parameters, and checkpoints of them as training writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cyclip_ext.models import (
    CreatedModel,
    ImageConfig,
    MiniCLIP,
    TextConfig,
    TokenizerName,
    WordTokenizer,
    create_model,
)
from cyclip_ext.models.checkpoint import FORMAT

CONTEXT, VOCABULARY = 12, 509

SETTINGS: dict[str, Any] = {
    "data": {"train_data": "shapes"},
    "loss": {"loss": "cyclip", "in_modal": 0.25, "cross_modal": 0.25, "margin": 0.0},
    "run": {"model": "tiny", "epochs": 3, "seed": 7, "tokenizer": "words"},
}

ARCHITECTURE = {  # of a model of open_clip that is created in no time
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}


def create_tiny(
    name: str = "tiny", *, sigmoid: bool = False, tokenizer: TokenizerName | None = None
) -> CreatedModel:
    """Stand in for cyclip_ext.models.create_model."""
    model = MiniCLIP(
        16,
        ImageConfig(image_size=16, widths=(8, 16)),
        TextConfig(context_length=CONTEXT, vocab_size=VOCABULARY, width=16, heads=2),
        init_logit_scale=2.0,
        init_logit_bias=-10.0 if sigmoid else None,
    )
    return CreatedModel(name, model, WordTokenizer(CONTEXT, VOCABULARY), 16, "words")


def write_checkpoint(path: Path, seed: int = 0, **changes: Any) -> dict[str, torch.Tensor]:
    """Write a checkpoint as training does and return its weights."""
    torch.manual_seed(seed)
    weights = create_tiny().model.state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"format": FORMAT, "config": SETTINGS, "model": weights, **changes}, path)
    return weights


def write_run(folder: Path, name: str, loss: str = "cyclip", tokenizer: str = "words") -> Path:
    """Write a run whose moving average differs from its last weights."""
    torch.manual_seed(0)
    created = create_model(name, sigmoid=loss == "siglip", tokenizer=tokenizer)
    average = {f"module.{k}": v.clone() for k, v in created.model.state_dict().items()}
    with torch.no_grad():
        for parameter in created.model.parameters():
            parameter.add_(0.1)
    settings = {
        "loss": {"loss": loss},
        "run": {**SETTINGS["run"], "model": name, "tokenizer": tokenizer},
    }
    (folder / "checkpoints").mkdir(parents=True)
    state = {"format": FORMAT, "config": settings, "model": created.model.state_dict()}
    torch.save(state | {"ema": average}, folder / "checkpoints" / "best.pt")
    return folder
