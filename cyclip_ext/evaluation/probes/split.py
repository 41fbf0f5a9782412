"""A part of the training rows to choose settings on."""

from __future__ import annotations

import torch
from torch import Tensor


def validation_rows(
    labels: Tensor,  # int64 [T]
    share: float,
    seed: int,
) -> Tensor:  # bool [T]
    """A random share of the rows, stratified, while every class keeps at least one training row.

    A class gives in proportion to its rows but one, and classes too small for a whole row give one
    at random, so that all together give the share. Where they cannot, because most classes have a
    single row, they give all they can spare: none where every class has a single row.
    Raises ValueError for a share that is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"validation_share must be between 0 and 1, neither of them, got {share}")
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    classes, counts = labels.unique(return_counts=True)
    shuffled = torch.randperm(len(classes), generator=generator)
    classes, spare = classes[shuffled], counts[shuffled] - 1
    total = int(spare.sum())
    if not total:
        return chosen
    wanted = min(max(1, round(share * len(labels))), total)
    # Systematic sampling, in integers: parts add up to `wanted`, and none exceeds what is spare.
    start = torch.randint(total, (), generator=generator)
    bounds = (spare.cumsum(0) * wanted + start) // total
    parts = torch.diff(bounds, prepend=torch.zeros(1, dtype=torch.int64))
    for label, part, rest in zip(classes.tolist(), parts.tolist(), spare.tolist(), strict=True):
        rows = (labels == label).nonzero().squeeze(1)
        chosen[rows[torch.randperm(rest + 1, generator=generator)[:part]]] = True
    return chosen
