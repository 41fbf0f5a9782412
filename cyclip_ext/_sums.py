"""Sums with the same bits for any number of threads, and the dtype of a loss."""

from __future__ import annotations

import torch
from torch import Tensor

from . import distributed
from ._inputs import Inputs
from ._torch_compat import holds_for_all_sizes
from .distributed import Batch

ONE_THREAD = 16384  # torch leaves what is shorter to one thread


def mean(values: Tensor, batch: Batch | None = None) -> Tensor:
    """Return the mean over the whole batch of a vector with one entry per pair."""
    if batch is None and not _is_long(values):
        return values.mean()
    total = ordered_sum(values)
    if batch is None:
        return total / values.numel()
    return distributed.all_sum(total, batch) / batch.rows


def ordered_sum(values: Tensor) -> Tensor:
    """Return the sum of a vector, with the same bits for any number of threads."""
    if not _is_long(values):
        return values.sum()
    return torch.stack([part.sum() for part in values.split(ONE_THREAD)]).sum()


def _is_long(values: Tensor) -> bool:
    return holds_for_all_sizes(values.numel() > ONE_THREAD)


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """Return <a, b>, summed by rows: torch splits one large sum by the number of threads."""
    return (a * b).sum(dim=1).sum()


def as_loss(loss: Tensor, inputs: Inputs) -> Tensor:
    """Round to float64 for float64 features, else to float32."""
    return loss.to(torch.float64 if inputs.image.dtype == torch.float64 else torch.float32)
