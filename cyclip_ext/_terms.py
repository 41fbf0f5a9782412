"""The terms of the losses, from checked inputs, on the native operators or on the reference.

Terms are unrounded and unweighted; cyclip_ext.functional and cyclip_ext.losses make losses of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import distributed, reference
from ._dispatch import Directions, Options, pair_operator, use_native, widen, without_autocast
from ._inputs import Inputs
from ._torch_compat import holds_for_all_sizes
from .distributed import Batch, Block, Tensors


class PairStatistics(NamedTuple):
    """What the losses need to know of the similarity matrix; float64 with the native backend.

    With a group, of this rank's pairs, [n] each, among the negatives of all ranks.
    """

    row_lse: Tensor  # [N] log sum_{j != i} e^(s S_ij), over the negatives of image i
    col_lse: Tensor  # [N] the same over the negatives of text j
    positive: Tensor  # [N] S_ii
    row_hardest: Tensor  # [N] max_{j != i} S_ij; -inf without negatives
    col_hardest: Tensor  # [N]


def pair_statistics(
    inputs: Inputs, options: Options, *, needs_hardest: bool = True
) -> PairStatistics:
    """Pass once over the similarity matrix, for every loss and statistic that looks at it.

    Without `needs_hardest`, the hardest negatives may be -inf.
    """
    tensors, batch = (inputs.image, inputs.text, inputs.scale), inputs.batch
    if use_native("pair_statistics", inputs.image, options):
        block = pair_operator(
            "pair_statistics", options, batch, *tensors, needs_hardest=needs_hardest
        )
        return _merged_statistics(block, tensors, batch)
    with without_autocast(inputs.image):
        dense = DenseBlock(reference.pair_statistics, 5)
        return _merged_statistics(dense, _widened(tensors, options), batch)


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


@dataclass(frozen=True)
class DenseBlock:
    """A function of cyclip_ext.reference as a block; all its outputs have derivatives."""

    function: Callable[..., Tensors]
    differentiable: int  # the number of outputs

    def __call__(self, inputs: Tensors, offset: int) -> Tensors:
        return self.function(*inputs, offset)

    def backward(
        self,
        inputs: Tensors,
        offset: int,
        outputs: Tensors,
        grads: Tensors,
        needed: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        """Compute the block again, with a graph this time."""
        # Autocast around backward() does not concern this matrix.
        with torch.enable_grad(), torch.autocast(inputs[0].device.type, enabled=False):
            leaves = [t.detach().requires_grad_(n) for t, n in zip(inputs, needed, strict=True)]
            again = self(tuple(leaves), offset)
            used = [k for k, out in enumerate(again) if out.requires_grad]
            results = iter(
                torch.autograd.grad(
                    [again[k] for k in used],
                    [leaf for leaf in leaves if leaf.requires_grad],
                    [grads[k] for k in used],
                )
            )
        return tuple(next(results) if n else None for n in needed)


def contrastive(
    statistics: PairStatistics, inputs: Inputs, directions: Directions = "both"
) -> Tensor:
    """Return the cross-entropy of the positives, in one direction or the mean of both.

    -log softmax of the positive is softplus(lse - z): no cancellation, however small.
    """
    batch = inputs.batch
    logit = inputs.scale * statistics.positive
    zero = 0 * logit  # keeps NaN
    if holds_for_all_sizes((logit.numel() if batch is None else batch.rows) == 1):
        # No negatives: lse = -inf, which second derivatives would not survive.
        return mean(zero, batch)
    image_to_text = torch.logaddexp(statistics.row_lse - logit, zero)
    text_to_image = torch.logaddexp(statistics.col_lse - logit, zero)
    if directions == "both":
        return mean(image_to_text + text_to_image, batch) / 2
    return mean(image_to_text if directions == "image_to_text" else text_to_image, batch)


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
    """Return the sigmoid loss; `inputs.bias` must be there."""
    assert inputs.bias is not None
    tensors = inputs.image, inputs.text, inputs.scale, inputs.bias
    batch = inputs.batch
    if use_native("sigmoid_rows", inputs.image, options):
        block = pair_operator("sigmoid_rows", options, batch, *tensors)
        return mean(_merged_rows(block, tensors, batch), batch)
    with without_autocast(inputs.image):
        dense = DenseBlock(lambda *args: (reference.sigmoid_rows(*args),), 1)
        return mean(_merged_rows(dense, _widened(tensors, options), batch), batch)


def _merged_rows(block: Block, tensors: Tensors, batch: Batch | None) -> Tensor:
    """Return the sigmoid loss of this rank's rows against all columns; [n]."""
    if batch is None:
        return block(tensors, 0)[0]
    first, *others = distributed.all_blocks(block, tensors, batch)
    rows = first[0]
    for outputs in others:
        rows = rows + outputs[0]
    return rows


# ------------------------------------------------- cycle consistency


def cycle_terms(inputs: Inputs, options: Options) -> tuple[Tensor, Tensor]:
    """Return (L_in, L_cross), by d x d Gram matrices or by pairs, whichever is cheaper.

    `options.precision` does not apply: rounded features would cancel.
    """
    image, text = inputs.image, inputs.text
    if inputs.batch is not None:
        sums = cycle_sums_from_grams(
            *_grams_of_all_ranks(inputs, inputs.batch, options, apart=True)
        )
    elif not use_native("cycle_grams", image, options):
        with without_autocast(image):
            features = widen(image), widen(text)
            return (
                reference.in_modal_loss(*features, options.reduction),
                reference.cross_modal_loss(*features, options.reduction),
            )
    elif _pairs_are_cheaper(image, apart=True):
        sums = torch.ops.cyclip_ext.cycle_direct(image, text)
    else:
        sums = cycle_sums_from_grams(*torch.ops.cyclip_ext.cycle_grams(image, text))
    count = _cycle_count(inputs, options)
    return sums[0] / count, sums[1] / count


def cycle_sum(inputs: Inputs, options: Options) -> Tensor:
    """Return L_in + L_cross, for which the Gram route needs no K."""
    image, text = inputs.image, inputs.text
    if inputs.batch is not None:
        plus, minus = _grams_of_all_ranks(inputs, inputs.batch, options, apart=False)
    elif use_native("cycle_grams", image, options) and not _pairs_are_cheaper(image, apart=False):
        plus, minus, _ = torch.ops.cyclip_ext.cycle_grams(image, text, cross=False)
    else:
        in_modal, cross_modal = cycle_terms(inputs, options)
        return in_modal + cross_modal
    return _inner_product(plus, minus) / _cycle_count(inputs, options)


def _cycle_count(inputs: Inputs, options: Options) -> int:
    n = inputs.image.shape[0] if inputs.batch is None else inputs.batch.rows
    return n if options.reduction == "batchmean" else n * n


def _grams_of_all_ranks(inputs: Inputs, batch: Batch, options: Options, *, apart: bool) -> Tensors:
    """Return A and B, and K if the terms are needed apart: Gram matrices of ranks add up."""
    grams: Tensors
    if use_native("cycle_grams", inputs.image, options):
        grams = torch.ops.cyclip_ext.cycle_grams(inputs.image, inputs.text, cross=apart)
    else:
        with without_autocast(inputs.image):
            grams = reference.cycle_grams(widen(inputs.image), widen(inputs.text))
    return distributed.all_sum(torch.stack(grams[: 3 if apart else 2]), batch).unbind()


def _pairs_are_cheaper(features: Tensor, apart: bool) -> bool:
    """Compare the routes' costs, with the terms apart or their sum alone (docs/cycle.md).

    A graph for batches of any size takes the route by Gram matrices, so that it needs no guard.
    """
    n, d = features.shape
    if features.is_cuda:
        return holds_for_all_sizes(n < 2 * d)
    return holds_for_all_sizes(2 * n < 3 * d) if apart else holds_for_all_sizes(n < d)


def cycle_sums_from_grams(plus: Tensor, minus: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
    """Return N L_in = (a + b)/2 and N L_cross = (a - b)/2 with a = <A, B> and b = <K, K'>."""
    a, b = _inner_product(plus, minus), _inner_product(cross, cross.T)
    return (a + b) / 2, (a - b) / 2


# ------------------------------------------------- sums


def mean(values: Tensor, batch: Batch | None = None) -> Tensor:
    """Return the mean over the whole batch of a vector with one entry per pair."""
    if batch is None and not holds_for_all_sizes(values.numel() > _ONE_THREAD):
        return values.mean()
    total = _sum(values)
    if batch is None:
        return total / values.numel()
    return distributed.all_sum(total, batch) / batch.rows


_ONE_THREAD = 16384  # torch leaves what is shorter to one thread


def _sum(values: Tensor) -> Tensor:
    """Return the sum of a vector, to the same bits for any number of threads."""
    return torch.stack([part.sum() for part in values.split(_ONE_THREAD)]).sum()


def _inner_product(a: Tensor, b: Tensor) -> Tensor:
    """Sum by rows first: torch cuts one large sum into as many parts as there are threads."""
    return (a * b).sum(dim=1).sum()


def zero_with_gradient(scalar: Tensor) -> Tensor:
    """Return 0, with gradient 0 for the scalar, whatever its value."""
    return scalar.masked_fill(torch.ones_like(scalar, dtype=torch.bool), 0)


def as_loss(loss: Tensor, inputs: Inputs) -> Tensor:
    """Round to float64 for float64 features, else to float32."""
    return loss.to(torch.float64 if inputs.image.dtype == torch.float64 else torch.float32)
