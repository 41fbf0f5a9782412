"""The loss of a run, from its settings."""

from __future__ import annotations

from torch import nn

from ..losses import CLIPLoss, CyCLIPLoss, SigLIPLoss
from .config import LossConfig


def make_loss(config: LossConfig) -> nn.Module:
    """The loss module, called as open_clip's: loss(x, y, logit_scale, logit_bias, output_dict)."""
    if config.loss == "clip":
        return CLIPLoss()
    if config.loss == "siglip":
        return SigLIPLoss()
    return CyCLIPLoss(config.in_modal, config.cross_modal, config.margin, config.hinge)


def term_weights(config: LossConfig) -> dict[str, float]:
    """Weight of each term of the loss's dict: weighted value / weight = raw value."""
    weights = {"contrastive_loss": 1.0}
    if config.loss == "cyclip":
        weights |= {
            "in_modal_loss": config.in_modal,
            "cross_modal_loss": config.cross_modal,
            "margin_loss": config.margin,
            "hinge_loss": config.hinge,
        }
    return {name: weight for name, weight in weights.items() if weight}
