"""What the losses need to know of a rank's rows and of its columns, by either exchange."""

from __future__ import annotations

import torch
from torch import Tensor

from .batch import Batch
from .collectives import gather_rows, own_columns
from .rectangles import Outputs, Rectangle
from .ring import ring_rectangles


def pair_statistics(
    rectangle: Rectangle,
    image: Tensor,  # [n, d]
    text: Tensor,  # [n, d]
    scale: Tensor,
    batch: Batch,
) -> Outputs:
    """The fields of PairStatistics, [n] each: this rank's rows against all columns, and back."""
    blocks = _rectangles(rectangle, image, text, (scale,), batch)
    row_lses, col_lses, positives, row_hardest, col_hardest = zip(
        *(block[:5] for block in blocks), strict=True
    )
    own_col_lse, own_col_hardest = own_columns(torch.cat(col_lses), torch.cat(col_hardest), batch)
    if len(blocks) == 1:
        return row_lses[0], own_col_lse, positives[0], row_hardest[0], own_col_hardest
    return (
        torch.stack(row_lses).logsumexp(dim=0),
        own_col_lse,
        positives[batch.rank],
        torch.stack(row_hardest).max(dim=0).values,  # of equal ones the first
        own_col_hardest,
    )


def sigmoid_rows(
    rectangle: Rectangle,
    image: Tensor,  # [n, d]
    text: Tensor,  # [n, d]
    scale: Tensor,
    bias: Tensor,
    batch: Batch,
) -> Tensor:
    """The sigmoid loss of this rank's rows against all columns; [n]."""
    first, *others = _rectangles(rectangle, image, text, (scale, bias), batch)
    rows = first[0]
    for block in others:
        rows = rows + block[0]
    return rows


def _rectangles(
    rectangle: Rectangle,
    image: Tensor,
    text: Tensor,
    scalars: tuple[Tensor, ...],
    batch: Batch,
) -> list[Outputs]:
    """Together this rank's rows against all columns: in one piece, or one for each rank.

    16-bit features travel as they are and are widened afterwards, so that gradients are summed over
    the ranks before they are rounded.
    """
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    image = image.to(dtype)
    if batch.exchange == "ring":
        return ring_rectangles(rectangle, image, text, scalars, batch)
    texts = gather_rows(text, batch, dtype)
    return [rectangle((image, texts, *scalars), batch.start(batch.rank))]
