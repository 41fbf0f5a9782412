"""The formulas in dense float64, in a form that stays exact if the reference cancels.

cyclip_ext.reference computes LSE_j z_ij - z_ii, which rounds to zero when the positive dominates.
Here the sum runs over the negatives alone and the loss is softplus(lse - z_ii), so that a loss of
1e-40 and its gradients are right to float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cyclip_ext import reference


class PairStatistics(NamedTuple):
    """Outputs of the operator pair_statistics, in its order."""

    row_lse: Tensor  # [n]
    col_lse: Tensor  # [m]
    positive: Tensor  # [n]
    row_hardest: Tensor  # [n]
    col_hardest: Tensor  # [m]
    row_hardest_index: Tensor  # [n] int64
    col_hardest_index: Tensor  # [m] int64


def pair_statistics(
    image_features: Tensor,  # [n, d]
    text_features: Tensor,  # [m, d]
    logit_scale: Tensor | float,
    offset: int = 0,
    labels: tuple[Tensor, Tensor] | None = None,  # int64 [n], [m]
    same_are_positives: bool = False,
) -> PairStatistics:
    """Return the statistics. The positive of row i is column i + offset, if it exists.

    Other pairs of equal labels are not negatives, but in the LSE with `same_are_positives`.
    """
    n, m = image_features.shape[0], text_features.shape[0]
    sim = reference.similarity(image_features, text_features)
    column = torch.arange(m)[None, :]
    is_positive = column == torch.arange(n)[:, None] + offset
    positive = torch.where(is_positive, sim, 0).sum(dim=1)
    is_negative = ~is_positive
    if labels is not None:
        is_negative = is_negative & (labels[0][:, None] != labels[1][None, :])
    is_summed = ~is_positive if same_are_positives else is_negative
    row_lse, col_lse = (
        _log_sum_exp(logit_scale * cosines, summed)
        for cosines, summed in ((sim, is_summed), (sim.T, is_summed.T))
    )
    row_hardest, row_index = _hardest(sim, is_negative)
    col_hardest, col_index = _hardest(sim.T, is_negative.T)
    return PairStatistics(
        row_lse, col_lse, positive, row_hardest, col_hardest, row_index, col_index
    )


def sigmoid_rows(
    image_features: Tensor,  # [n, d]
    text_features: Tensor,  # [m, d]
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    offset: int = 0,
    labels: tuple[Tensor, Tensor] | None = None,  # int64 [n], [m]
    same_are_positives: bool = False,
) -> Tensor:
    """sum_j softplus(-l_ij (s S_ij + b)), [n]; l_ij = 1 for positives, else -1."""
    logits = logit_scale * reference.similarity(image_features, text_features) + logit_bias
    n, m = logits.shape
    positive = torch.arange(m)[None, :] == torch.arange(n)[:, None] + offset
    same = positive if labels is None else positive | (labels[0][:, None] == labels[1][None, :])
    terms = softplus(torch.where(same, -logits, logits))
    counts = torch.ones_like(same) if same_are_positives else positive | ~same
    return torch.where(counts, terms, 0).sum(dim=1)


def contrastive_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    labels: Tensor | None = None,  # int64 [N]; pairs of equal labels are not negatives
) -> Tensor:
    """1/(2N) sum_i softplus(row_lse_i - z_ii) + softplus(col_lse_i - z_ii)."""
    both = None if labels is None else (labels, labels)
    stats = pair_statistics(image_features, text_features, logit_scale, 0, both)
    positive = logit_scale * stats.positive
    return (softplus(stats.row_lse - positive) + softplus(stats.col_lse - positive)).mean() / 2


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), exact at both ends and with gradient 1/2 at 0; torch's own becomes x at 20."""
    return torch.logaddexp(x, torch.zeros_like(x))


def _log_sum_exp(logits: Tensor, summed: Tensor) -> Tensor:
    # A row without entries stays unmasked, because logsumexp over -inf alone has gradient NaN.
    any_summed = summed.any(dim=1)
    masked = logits.masked_fill(~summed & any_summed[:, None], -torch.inf)
    return masked.logsumexp(dim=1).masked_fill(~any_summed, -torch.inf)


def _hardest(sim: Tensor, is_negative: Tensor) -> tuple[Tensor, Tensor]:
    hardest, index = sim.masked_fill(~is_negative, -torch.inf).max(dim=1)
    return hardest, index.masked_fill(~is_negative.any(dim=1), -1)
