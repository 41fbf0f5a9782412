"""Pairs of equal labels: the labels of a block, and the groups whose pairs are all positives.

docs/losses.md defines both meanings of equal labels, "mask" and "positive".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from . import distributed, reference
from ._blocks import Labels
from ._dispatch import Options, Precision, use_native, widen, without_autocast
from ._inputs import Inputs
from ._sums import mean, ordered_sum
from .distributed import Batch


def labels_of_block(inputs: Inputs, columns: Batch | None) -> Labels | None:
    """Return the labels of this rank's rows and of all columns; additional texts match no row."""
    if inputs.labels is None:
        return None
    # A copy, because blocks take labels in the backward pass, and the caller may change its own.
    labels, batch = inputs.labels.clone(), inputs.batch
    of_all, own, start = labels, slice(None), 0
    if batch is not None and columns is not None:
        of_all = distributed.gather_constants(labels, batch)
        own = slice(batch.start(batch.rank), batch.start(batch.rank + 1))
        start = columns.start(columns.rank)
    if inputs.negative_text is None:
        return Labels(labels, of_all, start)
    groups = _Groups.of(of_all).of_row  # none is negative
    counts = [labels.shape[0]] if batch is None else list(batch.counts)
    further = (inputs.negative_text.shape[0],) if batch is None else batch.negative_texts
    parts = zip(groups.split(counts), further, strict=True)
    of_columns = [t for part, m in parts for t in (part, part.new_full((m,), -1))]
    return Labels(groups[own], torch.cat(of_columns), start)


def excess_of_positives(
    positive: Tensor, inputs: Inputs, labels: Tensor, options: Options
) -> Tensor:
    """Return the mean over i of z_ii minus the mean of z_ip over the pairs p of equal labels.

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
        total = ordered_sum((of_image * of_text).sum(dim=1))
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
            of_rows = means.index_select(0, of_row) if needed else None
            grads.append(None if of_rows is None else _projected(own, scale, of_rows, upstream))
        return *grads, None, None, None, None


def _projected(own: Tensor, inverse: Tensor, unit_grad: Tensor, upstream: Tensor) -> Tensor:
    """Return the gradient of the raw rows from that of the normalized ones, times `upstream`."""
    along = (own * unit_grad).sum(dim=1) * inverse.square()
    along = along.where(inverse < 1 / reference.EPS, 0)  # a clamped norm is a constant
    factor = (upstream * inverse)[:, None]
    return unit_grad.addcmul_(own, along[:, None], value=-1).mul_(factor)
