"""The objective of a run: its loss module and how its terms are logged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ..losses import CLIPLoss, CyCLIPLoss, SigLIPLoss
from .config import LossConfig, TrainConfig

# With up to this many pairs every rank computes the whole loss: that is faster than more messages.
REPLICATED_PAIRS = 2048


@dataclass(frozen=True)
class Objective:
    """A loss as the trainer uses it.

    loss: called as open_clip's, loss(image_features, text_features, logit_scale, logit_bias,
    output_dict=True), and with labels=... under --mask-duplicates. It returns scalars by name:
    those that end in "_loss" are summed and differentiated, the others are logged. weights: of the
    terms, for logging a term without its weight. label: the method in a few words, for reports.
    learns_temperature: whether the loss depends on logit_scale.
    """

    loss: nn.Module
    weights: Mapping[str, float]
    label: str
    learns_temperature: bool = True


# (settings, pairs in a batch of all ranks, group of the ranks or None) -> the objective.
ObjectiveFactory = Callable[[TrainConfig, int, ProcessGroup | None], Objective]


def make_objective(config: TrainConfig, pairs: int, group: ProcessGroup | None = None) -> Objective:
    """Return the objective that the settings name: this package's losses."""
    loss = make_loss(config.loss, pairs, group)
    return Objective(loss, term_weights(config.loss), config.label())


def make_loss(
    config: LossConfig, pairs: int, group: ProcessGroup | None = None, *, statistics: bool = True
) -> nn.Module:
    """Return the loss module, which is called as Objective describes.

    pairs: of a whole batch; with `group`, of all ranks together. With `config.two_views` there are
    features of two views each, all first views before all second ones: TwoViewLoss.
    """
    exchange = config.exchange
    if exchange == "auto":
        exchange = "replicate" if pairs <= REPLICATED_PAIRS else "gather"
    options: dict[str, Any] = {"group": group, "exchange": exchange}
    loss: nn.Module
    if config.loss == "clip":
        loss = CLIPLoss(statistics=statistics, **options)
    elif config.loss == "siglip":
        loss = SigLIPLoss(statistics=statistics, **options)
    else:
        weights = config.in_modal, config.cross_modal, config.margin, config.hinge
        loss = CyCLIPLoss(*weights, statistics=statistics, **options)
    if config.two_views:
        views = SigLIPLoss(**options) if config.loss == "siglip" else CLIPLoss(**options)
        loss = TwoViewLoss(loss, views)
    return loss


class TwoViewLoss(nn.Module):
    """Contrast between the towers, halved, and a quarter each between two views within a tower.

    L = 1/2 L_con(x, y) + 1/4 L_con(x, x') + 1/4 L_con(y, y') + the other terms of `across`, which
    see the first views x, y alone. Features are [2n, d]: rows i and n + i are views of one pair.

    Source: Goel et al. 2022 and their code's `inmodal`, after SLIP (Mu et al. 2022); here both
    directions are contrasted within a tower as between towers.
    """

    def __init__(self, across: nn.Module, within: nn.Module) -> None:
        super().__init__()
        self.across = across
        self.within = within

    def forward(
        self,
        image_features: Tensor,  # [2n, d]
        text_features: Tensor,  # [2n, d]
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = True,
        *,
        labels: Tensor | None = None,  # int64 [n], of all three contrasts
    ) -> Any:
        """Return the terms by name; `output_dict` is ignored."""
        image, other_image = image_features.chunk(2)
        text, other_text = text_features.chunk(2)
        known = {"logit_scale": logit_scale, "logit_bias": logit_bias, "labels": labels}
        terms: dict[str, Tensor] = self.across(image, text, **known, output_dict=True)
        terms["contrastive_loss"] = 0.5 * terms["contrastive_loss"]
        terms["image_views_loss"] = 0.25 * self.within(image, other_image, **known)
        terms["text_views_loss"] = 0.25 * self.within(text, other_text, **known)
        return terms


def term_weights(config: LossConfig) -> dict[str, float]:
    """Return the weight of each term of the loss: weighted value / weight = raw value."""
    weights = {"contrastive_loss": 1.0}
    if config.two_views:
        weights = {"contrastive_loss": 0.5, "image_views_loss": 0.25, "text_views_loss": 0.25}
    if config.loss == "cyclip":
        weights |= {
            "in_modal_loss": config.in_modal,
            "cross_modal_loss": config.cross_modal,
            "margin_loss": config.margin,
            "hinge_loss": config.hinge,
        }
    return {name: weight for name, weight in weights.items() if weight}
