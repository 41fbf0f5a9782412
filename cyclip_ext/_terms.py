"""The terms of the losses, from checked inputs, on the native operators or on the reference.

Terms are unrounded and unweighted; cyclip_ext.functional and cyclip_ext.losses make losses of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from . import distributed, ops, reference
from ._dispatch import (
    Options,
    Precision,
    keep_bytes,
    pair_operator,
    use_native,
    widen,
    without_autocast,
)
from ._inputs import Inputs
from ._torch_compat import holds_for_all_sizes
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
    masks = options.same_label == "mask"
    labels = _labels(inputs, columns) if masks else None
    block: PairBlock
    if use_native("pair_statistics", inputs.image, options):
        block = pair_operator(
            "pair_statistics",
            options,
            inputs.batch,
            *tensors,
            needs_hardest=needs_hardest,
            labels=labels,
        )
        rows = _merged_statistics(block, tensors, columns)
        statistics = _of_pairs(rows, block, tensors, images, inputs.batch)
    else:
        with without_autocast(inputs.image):
            tensors = _widened(tensors, options)
            block = DenseBlock(reference.pair_statistics, 5, labels)
            rows = _merged_statistics(block, tensors, columns)
            images = None if images is None else widen(images, options.precision)
            statistics = _of_pairs(rows, block, tensors, images, inputs.batch)
    if inputs.labels is None or masks or not needs_hardest:
        return statistics
    # Pairs of equal labels are positives, and the hardest negative is none of them.
    masked = pair_statistics(inputs, replace(options, same_label="mask"))
    return statistics._replace(row_hardest=masked.row_hardest, col_hardest=masked.col_hardest)


def _with_negatives(inputs: Inputs) -> tuple[Tensor, Batch | None]:
    """Return this rank's texts, further ones last, and where all such columns lie."""
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
    """Return the statistics of the pairs: not of further texts, but with further images."""
    row_lse, col_lse, positive, row_hardest, col_hardest = rows
    image, texts, scale = tensors
    n = image.shape[0]
    col_lse, col_hardest = col_lse[:n], col_hardest[:n]
    if images is not None:
        further = _merged_statistics(_unpaired(block), (images, texts[:n], scale), batch)
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


def _labels(inputs: Inputs, columns: Batch | None) -> ops.Labels | None:
    """Return the labels of this rank's rows and of all columns; further texts belong to no row."""
    labels, batch = inputs.labels, inputs.batch
    if labels is None:
        return None
    of_all, own, start = labels, slice(None), 0
    if batch is not None and columns is not None:
        of_all = distributed.gather_constants(labels, batch)
        own = slice(batch.start(batch.rank), batch.start(batch.rank + 1))
        start = columns.start(columns.rank)
    if inputs.negative_text is None:
        return ops.Labels(labels, of_all, start)
    groups = _Groups.of(of_all).of_row  # none is negative
    counts = [labels.shape[0]] if batch is None else list(batch.counts)
    further = (inputs.negative_text.shape[0],) if batch is None else batch.negative_texts
    parts = zip(groups.split(counts), further, strict=True)
    of_columns = [t for part, m in parts for t in (part, part.new_full((m,), -1))]
    return ops.Labels(groups[own], torch.cat(of_columns), start)


# Operators have fewer than 2^31 rows, so every positive would lie left of the first column. Not a
# function of the shapes, which torch.compile would then fix.
NO_POSITIVES = 1 - (1 << 31)


@dataclass(frozen=True, eq=False)
class Unpaired:
    """A block whose rows have no positives."""

    block: Block

    @property
    def differentiable(self) -> int:
        return self.block.differentiable

    def __call__(self, inputs: Tensors, offset: int) -> Tensors:
        return self.block(inputs, NO_POSITIVES)

    def backward(
        self,
        inputs: Tensors,
        offset: int,
        outputs: Tensors,
        grads: Tensors,
        needed: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        return self.block.backward(inputs, NO_POSITIVES, outputs, grads, needed)


def _widened(tensors: Tensors, options: Options) -> Tensors:
    image, text, *scalars = tensors
    return widen(image, options.precision), widen(text, options.precision), *scalars


@dataclass(frozen=True, eq=False)  # the compiler of torch 2.10 hashes what is called
class DenseBlock:
    """A function of cyclip_ext.reference as a block; all its outputs have derivatives."""

    function: Callable[..., Tensors]
    differentiable: int  # the number of outputs
    labels: ops.Labels | None = None

    def __call__(self, inputs: Tensors, offset: int) -> Tensors:
        same = None
        if self.labels is not None:
            of_columns = self.labels.of_columns(offset, inputs[1].shape[0])
            same = reference.same_labels(self.labels.rows, of_columns)
        return self.function(*inputs, offset, same)

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


PairBlock = ops.PairOperator | DenseBlock


def _unpaired(block: PairBlock) -> Unpaired:
    return Unpaired(replace(block, labels=None))


def contrastive(statistics: PairStatistics, inputs: Inputs, options: Options) -> Tensor:
    """Return the cross-entropy of the positives, in one direction or the mean of both.

    -log softmax of the positive is softplus(lse - z): no cancellation, however small.
    """
    batch = inputs.batch
    lses = {
        "both": (statistics.row_lse, statistics.col_lse),
        "image_to_text": (statistics.row_lse,),
        "text_to_image": (statistics.col_lse,),
    }[options.directions]
    is_native = use_native("pair_statistics", inputs.image, options)
    if is_native and not torch.compiler.is_compiling():
        of_pairs: Tensor = _CrossEntropies.apply(inputs.scale, statistics.positive, *lses)
    else:
        logit = inputs.scale * statistics.positive
        zero = 0 * logit  # keeps NaN
        first, *others = (_logaddexp(lse - logit, zero) for lse in lses)
        of_pairs = sum(others, first)
    loss = mean(of_pairs, batch) / len(lses)
    if inputs.labels is None or options.same_label == "mask":
        return loss
    return loss + _excess_of_positives(statistics.positive, inputs, inputs.labels, options)


class _CrossEntropies(torch.autograd.Function):
    """sum_k log(1 + e^(lse_k - s S_ii)) of each pair, in a third of the operations of autograd.

    The bits are the same. For native statistics, which have no second derivatives, and outside of
    torch.compile, which fuses the operations.
    """

    @staticmethod
    def forward(ctx: Any, scale: Tensor, positive: Tensor, *lses: Tensor) -> Tensor:
        logit = scale * positive
        zero = 0 * logit  # keeps NaN
        differences = [lse - logit for lse in lses]
        ctx.save_for_backward(scale, positive, *differences)
        first, *others = (torch.logaddexp(difference, zero) for difference in differences)
        return sum(others, first)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, ...]:
        scale, positive, *differences = ctx.saved_tensors
        of_lses = [upstream / (1 + (-difference).exp()) for difference in differences]
        first, *others = of_lses
        of_logit = -sum(others, first)
        return (of_logit * positive).sum(), of_logit * scale, *of_lses


def _logaddexp(lse: Tensor, other: Tensor) -> Tensor:
    """Return log(e^lse + e^other), with second derivatives also if lse = -inf: no negatives."""
    none = lse == -torch.inf
    return torch.logaddexp(lse.masked_fill(none, 0), other).where(~none, other)


def _excess_of_positives(
    positive: Tensor, inputs: Inputs, labels: Tensor, options: Options
) -> Tensor:
    """Return the mean of z_ii - mean of z_ip over the pairs p of equal label.

    Its sum over a group g is s (sum_i S_ii - <sum of x^ in g, sum of y^ in g> / |g|): the same in
    both directions, in O(N d).
    """
    batch = inputs.batch
    with without_autocast(inputs.image):
        image, text, own = widen(inputs.image), widen(inputs.text), slice(None)
        if batch is not None:
            own = slice(batch.start(batch.rank), batch.start(batch.rank + 1))
            labels = distributed.gather_constants(labels, batch)
            image = distributed.replicate_rows(inputs.image, batch, image.dtype)
            text = distributed.replicate_rows(inputs.text, batch, text.dtype)
        groups = _Groups.of(labels)
        shared = groups.sizes[groups.of_row] > 1  # others change no bit
        if use_native("pair_statistics", image, options):
            cosines: Tensor = _GroupCosines.apply(image, text, *groups, options.precision)
        else:
            image, text = (widen(features, options.precision) for features in (image, text))
            pairs = reference.same_labels(labels, labels) & shared
            means = pairs / groups.sizes[groups.of_row].to(image.dtype)
            cosines = (means * reference.similarity(image, text)).sum()
        of_pairs = mean(positive.where(shared[own], 0), batch)
        return inputs.scale * (of_pairs - cosines / labels.shape[0])


class _Groups(NamedTuple):
    """The groups of rows of equal label. Sizes of the last of N possible groups may be 0."""

    of_row: Tensor  # int64 [N]
    sizes: Tensor  # int64 [N]
    rows: Tensor  # int64 [N], group by group

    @classmethod
    def of(cls, labels: Tensor) -> _Groups:
        ordered, rows = labels.sort(stable=True)
        # Not ordered[1:] and ordered[:-1], which torch.compile would trace again for 2 rows.
        groups = (ordered != ordered.roll(1)).cumsum(0)
        of_row = torch.empty_like(labels).scatter(0, rows, groups - groups[:1])
        sizes = torch.zeros_like(labels).index_add(0, of_row, torch.ones_like(labels))
        return cls(of_row, sizes, rows)


class _GroupCosines(torch.autograd.Function):
    """sum_g <sum of x^ in g, sum of y^ in g> / |g| over the groups of several rows.

    In few passes over the features. Sums have a fixed order, on a GPU as well. With the precision
    "bf16", features are rounded, and their gradients are not.
    """

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        of_row: Tensor,
        sizes: Tensor,
        rows: Tensor,
        precision: Precision,
    ) -> Tensor:
        image, text = towers = widen(image, precision), widen(text, precision)
        inverse = [1 / torch.linalg.vector_norm(t, dim=1).clamp_min(reference.EPS) for t in towers]
        begins = sizes.cumsum(0) - sizes
        of_image, of_text = (
            functional.embedding_bag(
                rows, features, begins, mode="sum", per_sample_weights=scale[rows]
            )
            for features, scale in zip(towers, inverse, strict=True)
        )
        weight = torch.where(sizes > 1, 1 / sizes.to(image.dtype), 0)[:, None]
        of_text.mul_(weight)
        total = _sum((of_image * of_text).sum(dim=1))
        of_image.mul_(weight)
        ctx.save_for_backward(image, text, *inverse, of_image, of_text, of_row)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        image, text, *inverse, of_image, of_text, of_row = ctx.saved_tensors
        grads: list[Tensor | None] = []
        sides = (image, inverse[0], of_text), (text, inverse[1], of_image)
        for needed, (own, scale, means) in zip(ctx.needs_input_grad[:2], sides, strict=True):
            grads.append(_projected(own, scale, means[of_row], upstream) if needed else None)
        return *grads, None, None, None, None


def _projected(own: Tensor, inverse: Tensor, unit_grad: Tensor, upstream: Tensor) -> Tensor:
    """Return the gradient of the raw rows from that of the normalized ones, times `upstream`."""
    along = (own * unit_grad).sum(dim=1) * inverse.square()
    along = along.where(inverse < 1 / reference.EPS, 0)  # a clamped norm is a constant
    factor = (upstream * inverse)[:, None]
    return unit_grad.addcmul_(own, along[:, None], value=-1).mul_(factor)


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
    texts, columns = _with_negatives(inputs)
    tensors = inputs.image, texts, inputs.scale, inputs.bias
    images = inputs.negative_image
    labels = _labels(inputs, columns)
    if use_native("sigmoid_rows", inputs.image, options):
        block = pair_operator("sigmoid_rows", options, inputs.batch, *tensors, labels=labels)
        rows = _merged_rows(block, tensors, columns)
        return _with_images(rows, block, tensors, images, inputs.batch)

    def dense_rows(
        x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, offset: int, same: Tensor | None
    ) -> Tensors:
        return (reference.sigmoid_rows(x, y, scale, bias, offset, same, options.same_label),)

    with without_autocast(inputs.image):
        dense = DenseBlock(dense_rows, 1, labels)
        rows = _merged_rows(dense, _widened(tensors, options), columns)
        images = None if images is None else widen(images, options.precision)
        return _with_images(rows, dense, _widened(tensors, options), images, inputs.batch)


def _with_images(
    rows: Tensor, block: PairBlock, tensors: Tensors, images: Tensor | None, batch: Batch | None
) -> Tensor:
    """Return the sum over the rows of the pairs and of further images, divided by the pairs."""
    loss = mean(rows, batch)
    if images is None:
        return loss
    image, texts, *scalars = tensors
    n = image.shape[0]
    further = _sum(_merged_rows(_unpaired(block), (images, texts[:n], *scalars), batch))
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
        kept = keep_bytes(options, image, text)
        sums = torch.ops.cyclip_ext.cycle_direct(image, text, kept)
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
