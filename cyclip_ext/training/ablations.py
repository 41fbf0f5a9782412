"""Objectives that are known to be worse, so that the reason for the better ones can be shown.

Chen et al. 2024 (arXiv 2310.00927) regularize the positive pairs alone, and name regression of one
tower on the other as what zero-shot transfer does not come from. Plain PyTorch: O(N d) needs no
kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from .. import _terms, distributed
from .._dispatch import Options
from .._inputs import prepare
from ..distributed import Batch, Exchange
from ..reference import normalize


class SquareLoss(nn.Module):
    """1/N sum_i |x_i - y_i|^2 on raw features; the temperature has no part in it.

    Source: Chen et al. 2024, the negative example; `reference.square_loss`.
    """

    def __init__(self, *, group: ProcessGroup | None = None, exchange: Exchange = "gather") -> None:
        super().__init__()
        self.options = Options(group=group, exchange=exchange)

    def forward(
        self,
        image_features: Tensor,  # [n, d]
        text_features: Tensor,  # [n, d]
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = True,
    ) -> dict[str, Tensor]:
        """As the losses of cyclip_ext, with `output_dict` always: {"square_loss": scalar}."""
        inputs = prepare(image_features, text_features, logit_scale, options=self.options)
        wide = torch.promote_types(inputs.image.dtype, torch.float32)
        squares = (inputs.image.to(wide) - inputs.text.to(wide)).square().sum(dim=-1)
        return {"square_loss": _terms.mean(squares, inputs.batch)}


class NegativesLoss(nn.Module):
    """Another loss plus weight times the mean cosine of negative pairs, under "negatives_loss".

    L_neg = 1/(N (N-1)) sum_{i != j} S_ij, 0 for a lone pair. Beside the one-sided margin of the
    same weight it makes the both-sided one: weight (1 - mean positive + mean negative cosine).
    """

    def __init__(
        self,
        loss: nn.Module,
        weight: float,
        *,
        group: ProcessGroup | None = None,
        exchange: Exchange = "gather",
    ) -> None:
        super().__init__()
        self.loss = loss
        self.weight = weight
        self.options = Options(group=group, exchange=exchange)

    def forward(
        self,
        image_features: Tensor,  # [n, d]
        text_features: Tensor,  # [n, d]
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = True,
    ) -> dict[str, Tensor]:
        """As the losses of cyclip_ext, with `output_dict` always."""
        features = image_features, text_features
        terms: dict[str, Tensor] = self.loss(*features, logit_scale, logit_bias, output_dict=True)
        inputs = prepare(*features, logit_scale, options=self.options)
        negatives = self.weight * mean_negative(inputs.image, inputs.text, inputs.batch)
        terms["negatives_loss"] = _terms.as_loss(negatives, inputs)
        return terms


def mean_negative(image: Tensor, text: Tensor, batch: Batch | None) -> Tensor:
    """Mean cosine of an image and another pair's text over the whole batch, in O(N d): float64."""
    image, text = normalize(image.double()), normalize(text.double())
    # [2 d + 1]: what all ranks' rows add up to.
    total = torch.cat([image.sum(dim=0), text.sum(dim=0), (image * text).sum()[None]])
    pairs = len(image)
    if batch is not None:
        total, pairs = distributed.all_sum(total, batch), batch.rows
    of_images, of_texts, positives = total.split([image.shape[1], image.shape[1], 1])
    negatives = of_images @ of_texts - positives.squeeze()
    mean: Tensor = negatives / max(pairs * (pairs - 1), 1)
    return mean
