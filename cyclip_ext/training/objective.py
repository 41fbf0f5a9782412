"""The loss of a run, from its settings."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ..losses import CLIPLoss, CyCLIPLoss, SigLIPLoss
from .ablations import NegativesLoss, SquareLoss
from .config import LossConfig

# Up to this many pairs every rank computes the whole loss: less to wait for than more messages.
REPLICATED_PAIRS = 2048


def make_loss(
    config: LossConfig, pairs: int, group: ProcessGroup | None = None, *, statistics: bool = True
) -> nn.Module:
    """The loss module, called as open_clip's: loss(x, y, logit_scale, logit_bias, output_dict).

    pairs: of a whole batch; with `group`, of all ranks together. With `config.inmodal` the features
    are those of two views each, all first views before all second ones: TwoViewLoss.
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
    elif config.loss == "square":
        loss = SquareLoss(**options)
    else:
        margin = 0.0 if config.margin_pairs == "negative" else config.margin
        weights = config.in_modal, config.cross_modal, margin, config.hinge
        loss = CyCLIPLoss(*weights, statistics=statistics, **options)
        if config.margin and config.margin_pairs != "positive":
            loss = NegativesLoss(loss, config.margin, **options)
    if config.inmodal:
        views = SigLIPLoss(**options) if config.loss == "siglip" else CLIPLoss(**options)
        loss = TwoViewLoss(loss, views)
    return loss


class TwoViewLoss(nn.Module):
    """Contrast between the towers, halved, and a quarter each between two views within a tower.

    L = 1/2 L_con(x, y) + 1/4 L_con(x, x') + 1/4 L_con(y, y') + the other terms of `across`, which
    see the first views x, y alone. Features are [2n, d]: rows i and n + i are views of one thing.

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
    ) -> Any:
        """As the losses of cyclip_ext, with `output_dict` always."""
        image, other_image = image_features.chunk(2)
        text, other_text = text_features.chunk(2)
        temperature = logit_scale, logit_bias
        terms: dict[str, Tensor] = self.across(image, text, *temperature, output_dict=True)
        terms["contrastive_loss"] = 0.5 * terms["contrastive_loss"]
        terms["image_views_loss"] = 0.25 * self.within(image, other_image, *temperature)
        terms["text_views_loss"] = 0.25 * self.within(text, other_text, *temperature)
        return terms


def term_weights(config: LossConfig) -> dict[str, float]:
    """Weight of each term of the loss's dict: weighted value / weight = raw value."""
    weights = {"contrastive_loss": 1.0}
    if config.loss == "square":
        weights = {"square_loss": 1.0}
    elif config.inmodal:
        weights = {"contrastive_loss": 0.5, "image_views_loss": 0.25, "text_views_loss": 0.25}
    if config.loss == "cyclip":
        weights |= {
            "in_modal_loss": config.in_modal,
            "cross_modal_loss": config.cross_modal,
            "margin_loss": config.margin if config.margin_pairs != "negative" else 0.0,
            "negatives_loss": config.margin if config.margin_pairs != "positive" else 0.0,
            "hinge_loss": config.hinge,
        }
    return {name: weight for name, weight in weights.items() if weight}
