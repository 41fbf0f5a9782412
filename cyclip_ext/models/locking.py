"""Locked towers, whose parameters and running statistics do not change."""

from __future__ import annotations

from typing import Literal

from torch import nn

Tower = Literal["image", "text"]

_TEMPERATURE = ("logit_scale", "logit_bias")


def lock_tower(model: nn.Module, tower: Tower) -> None:
    """Stop the gradients of a tower's parameters, by the model's own method if it has one.

    Models of open_clip have `lock_image_tower` and `lock_text_tower`. In other models the image
    tower is `visual`, and the text tower everything else but the temperature.
    """
    own = getattr(model, f"lock_{tower}_tower", None)
    if own is not None:
        own()
        return
    for name, parameter in model.named_parameters():
        first = name.split(".")[0]
        if first not in _TEMPERATURE and (first == "visual") == (tower == "image"):
            parameter.requires_grad_(False)


def train_unlocked(model: nn.Module) -> None:
    """Put the model into training mode, and modules without a trained parameter into eval mode.

    So batch norm does not move its running statistics, and dropout does nothing, in a locked tower.
    """
    model.train()
    for module in model.modules():
        trained = [parameter.requires_grad for parameter in module.parameters()]
        if trained and not any(trained):
            module.eval()
