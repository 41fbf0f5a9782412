"""The terms over all pairs: the statistics of the similarity matrix, and the losses.

The terms are neither rounded nor weighted; functional.py and losses.py do that.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from . import distributed, reference
from ._blocks import DenseBlock, Labels, PairBlock, PairOperator, unpaired
from ._dispatch import Options, pair_operator, use_native, widen, without_autocast
from ._fused import Cycles, FusedLoss, of_directions
from ._inputs import Inputs
from ._same_label import excess_of_positives, labels_of_block
from ._sums import mean, ordered_sum
from .distributed import Batch, Block, Tensors


class PairStatistics(NamedTuple):
    """Statistics of the similarity matrix that the losses use; float64 with the native backend.

    With a group they are those of this rank's pairs, [n] each, among the negatives of all ranks.
    """

    row_lse: Tensor  # [N] log sum_{j != i} e^(s S_ij), over the negatives of image i
    col_lse: Tensor  # [N] the same over the negatives of text j
    positive: Tensor  # [N] S_ii
    row_hardest: Tensor  # [N] max_{j != i} S_ij; -inf without negatives
    col_hardest: Tensor  # [N]


def pair_statistics(
    inputs: Inputs, options: Options, *, needs_hardest: bool = True
) -> PairStatistics:
    """Return the statistics of all losses from one pass over the similarity matrix.

    Without `needs_hardest`, the hardest negatives may be -inf.
    """
    texts, columns = _with_negatives(inputs)
    tensors: Tensors = inputs.image, texts, inputs.scale
    images = inputs.negative_image
    block: PairBlock
    if use_native("pair_statistics", inputs.image, options):
        block = _statistics_operator(inputs, tensors, columns, options, needs_hardest)
        rows = _merged_statistics(block, tensors, columns)
        return _of_pairs(rows, block, tensors, images, inputs.batch)

    def dense_statistics(
        x: Tensor, y: Tensor, scale: Tensor, offset: int, same: Tensor | None
    ) -> Tensors:
        return reference.pair_statistics(x, y, scale, offset, same, options.same_label)

    with without_autocast(inputs.image):
        tensors = _widened(tensors, options)
        labels = _labels(inputs, columns, options, needs_hardest)
        block = DenseBlock(dense_statistics, 5, labels)
        rows = _merged_statistics(block, tensors, columns)
        images = None if images is None else widen(images, options.precision)
        return _of_pairs(rows, block, tensors, images, inputs.batch)


def _labels(
    inputs: Inputs, columns: Batch | None, options: Options, needs_hardest: bool
) -> Labels | None:
    # Further positives are in the log-sum-exp, and the hardest negative is none of them.
    is_needed = options.same_label == "mask" or needs_hardest
    return labels_of_block(inputs, columns) if is_needed else None


def _statistics_operator(
    inputs: Inputs,
    tensors: Tensors,
    columns: Batch | None,
    options: Options,
    needs_hardest: bool,
) -> PairOperator:
    return pair_operator(
        "pair_statistics",
        options,
        inputs.batch,
        *tensors,
        needs_hardest=needs_hardest,
        labels=_labels(inputs, columns, options, needs_hardest),
    )


def _with_negatives(inputs: Inputs) -> tuple[Tensor, Batch | None]:
    """Return this rank's texts with the additional ones last, and the batch of such columns."""
    batch = inputs.batch
    if inputs.negative_text is None:
        return inputs.text, batch
    if batch is not None:
        counts = zip(batch.counts, batch.negative_texts, strict=True)
        batch = replace(batch, counts=tuple(n + m for n, m in counts))
    return torch.cat([inputs.text, inputs.negative_text]), batch


def _of_pairs(
    rows: PairStatistics,
    block: PairBlock,
    tensors: Tensors,
    images: Tensor | None,
    batch: Batch | None,
) -> PairStatistics:
    """Return the statistics of the pairs: not of additional texts, but with additional images."""
    row_lse, col_lse, positive, row_hardest, col_hardest = rows
    image, texts, scale = tensors
    n = image.shape[0]
    col_lse, col_hardest = col_lse[:n], col_hardest[:n]
    if images is not None:
        further = _merged_statistics(unpaired(block), (images, texts[:n], scale), batch)
        col_lse = _logaddexp(col_lse, further.col_lse)
        col_hardest = torch.maximum(col_hardest, further.col_hardest)
    return PairStatistics(row_lse, col_lse, positive, row_hardest, col_hardest)


def _merged_statistics(block: Block, tensors: Tensors, batch: Batch | None) -> PairStatistics:
    """Return the statistics of this rank's rows against all columns, and of its columns."""
    if batch is None:
        return PairStatistics(*block(tensors, 0)[:5])
    blocks = distributed.all_blocks(block, tensors, batch)
    row_lses, col_lses, positives, row_hardest, col_hardest = zip(
        *(outputs[:5] for outputs in blocks), strict=True
    )
    own_col_lse, own_col_hardest = distributed.own_columns(
        torch.cat(col_lses), torch.cat(col_hardest), batch
    )
    if len(blocks) == 1:
        return PairStatistics(
            row_lses[0], own_col_lse, positives[0], row_hardest[0], own_col_hardest
        )
    return PairStatistics(
        torch.stack(row_lses).logsumexp(dim=0),
        own_col_lse,
        positives[batch.rank],
        torch.stack(row_hardest).max(dim=0).values,  # of equal ones the first
        own_col_hardest,
    )


def _widened(tensors: Tensors, options: Options) -> Tensors:
    image, text, *scalars = tensors
    return widen(image, options.precision), widen(text, options.precision), *scalars


def contrastive(
    inputs: Inputs,
    options: Options,
    *,
    needs_hardest: bool = False,
    cycles: Cycles | None = None,
) -> tuple[Tensor, PairStatistics]:
    """Return the cross-entropy of the positives and the statistics from which it is computed.

    It is that of one direction, or the mean of both. -log softmax of the positive is
    softplus(lse - z): no cancellation, however small. The sum includes `cycles`, which only
    `is_fused` permits.
    """
    if is_fused(inputs, options):
        texts, _ = _with_negatives(inputs)
        tensors = inputs.image, texts, inputs.scale
        block = _statistics_operator(inputs, tensors, None, options, needs_hardest)
        loss, *rows = FusedLoss.apply(block, options.directions, cycles, *tensors)
        statistics = PairStatistics(*rows)
    else:
        assert cycles is None
        statistics = pair_statistics(inputs, options, needs_hardest=needs_hardest)
        logit = inputs.scale * statistics.positive
        zero = 0 * logit  # keeps NaN
        lses = of_directions(statistics.row_lse, statistics.col_lse, options.directions)
        first, *others = (_logaddexp(lse - logit, zero) for lse in lses)
        loss = mean(sum(others, first), inputs.batch) / len(lses)
    if inputs.labels is None or options.same_label == "mask":
        return loss, statistics
    excess = excess_of_positives(statistics.positive, inputs, inputs.labels, options)
    return loss + excess, statistics


def is_fused(inputs: Inputs, options: Options) -> bool:
    """Return whether one node of the graph computes the loss: for one block of one process.

    torch.compile fuses the operations itself.
    """
    return (
        inputs.batch is None
        and inputs.negative_image is None
        and use_native("pair_statistics", inputs.image, options)
        and not torch.compiler.is_compiling()
    )


def _logaddexp(lse: Tensor, other: Tensor) -> Tensor:
    """Return log(e^lse + e^other), with second derivatives also if lse = -inf: no negatives."""
    none = lse == -torch.inf
    return torch.logaddexp(lse.masked_fill(none, 0), other).where(~none, other)


def hinge(statistics: PairStatistics, hinge_margin: float, inputs: Inputs) -> Tensor:
    """Return the mean hinge on the hardest negative, over rows and columns."""
    short_of_margin = hinge_margin - statistics.positive
    rows = (short_of_margin + statistics.row_hardest).relu()
    cols = (short_of_margin + statistics.col_hardest).relu()
    return mean(rows + cols, inputs.batch) / 2


def margin(statistics: PairStatistics, inputs: Inputs) -> Tensor:
    """Return the mean of 1 - S_ii."""
    return mean(1 - statistics.positive, inputs.batch)


def sigmoid(inputs: Inputs, options: Options) -> Tensor:
    """Return the sigmoid loss; requires `inputs.bias`."""
    assert inputs.bias is not None
    texts, columns = _with_negatives(inputs)
    tensors: Tensors = inputs.image, texts, inputs.scale, inputs.bias
    images = inputs.negative_image
    labels = labels_of_block(inputs, columns)
    if use_native("sigmoid_rows", inputs.image, options):
        block = pair_operator("sigmoid_rows", options, inputs.batch, *tensors, labels=labels)
        rows = _merged_rows(block, tensors, columns)
        return _with_images(rows, block, tensors, images, inputs.batch)

    def dense_rows(
        x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, offset: int, same: Tensor | None
    ) -> Tensors:
        return (reference.sigmoid_rows(x, y, scale, bias, offset, same, options.same_label),)

    with without_autocast(inputs.image):
        tensors = _widened(tensors, options)
        dense = DenseBlock(dense_rows, 1, labels)
        rows = _merged_rows(dense, tensors, columns)
        images = None if images is None else widen(images, options.precision)
        return _with_images(rows, dense, tensors, images, inputs.batch)


def _with_images(
    rows: Tensor, block: PairBlock, tensors: Tensors, images: Tensor | None, batch: Batch | None
) -> Tensor:
    """Return the sum over the rows of the pairs and of additional images, divided by the pairs."""
    loss = mean(rows, batch)
    if images is None:
        return loss
    image, texts, *scalars = tensors
    n = image.shape[0]
    further = ordered_sum(_merged_rows(unpaired(block), (images, texts[:n], *scalars), batch))
    if batch is None:
        return loss + further / n
    return loss + distributed.all_sum(further, batch) / batch.rows


def _merged_rows(block: Block, tensors: Tensors, batch: Batch | None) -> Tensor:
    """Return the sigmoid loss of this rank's rows against all columns; [n]."""
    if batch is None:
        return block(tensors, 0)[0]
    first, *others = distributed.all_blocks(block, tensors, batch)
    rows = first[0]
    for outputs in others:
        rows = rows + outputs[0]
    return rows
