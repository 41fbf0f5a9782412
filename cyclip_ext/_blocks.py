"""Blocks of the similarity matrix, computed by a native operator or by a formula of the reference.

A block is some images against some texts. One process has a single block; a rank has the block of
its rows and all columns, or one for the columns of each rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import ops, reference
from .distributed import Block, Tensors


class Rounding(NamedTuple):
    """Rounding that the products of an operator over all pairs may apply."""

    allow_tf32: bool = False
    allow_bf16: bool = False


@dataclass(frozen=True)
class Labels:
    """Labels of this rank's rows and of all columns, for any block of the similarity matrix."""

    rows: Tensor  # int64 [n]
    columns: Tensor  # int64 [M], of all ranks
    start: int = 0  # the column that pairs with row 0

    def of_columns(self, offset: int, m: int) -> Tensor:
        """Return the labels of the m columns of the block in which row 0 pairs with `offset`."""
        begin = self.start - offset
        return self.columns[begin : begin + m]


@dataclass(frozen=True, eq=False)  # the compiler of torch 2.10 hashes what is called
class PairOperator:
    """pair_statistics or sigmoid_rows with its options: a block of the similarity matrix.

    Called with the inputs, (image features [n, d], text features [m, d], scalars ...), and the
    offset: the positive of row i is column i + offset, if that is one of the m. `backward` takes
    the same, what the call returned, and the gradients of the first `differentiable` outputs. It is
    for callers that keep no graph, and returns a gradient for each input; that of an input that is
    not `needed` is None or has no rows.
    """

    name: str
    rounding: Rounding
    keep_bytes: int
    needs_hardest: bool = True
    labels: Labels | None = None
    same_are_positives: bool = False

    @property
    def differentiable(self) -> int:
        return 5 if self.name == "pair_statistics" else 1

    def __call__(self, inputs: Tensors, offset: int = 0) -> Tensors:
        hardest = (self.needs_hardest,) if self.name == "pair_statistics" else ()
        outputs: Tensors = getattr(torch.ops.cyclip_ext, self.name)(
            *(*inputs, offset, *self.rounding, self.keep_bytes, *hardest),
            *self._labels(offset, inputs[1].shape[0]),
        )
        return outputs

    def _labels(self, offset: int, m: int) -> tuple[Any, ...]:
        """Return the last arguments of the operator."""
        if self.labels is None:
            return ()
        return self.labels.rows, self.labels.of_columns(offset, m), self.same_are_positives

    def backward(
        self,
        inputs: Tensors,
        offset: int,
        outputs: Tensors,
        grads: Tensors,
        needed: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        saved, labels = outputs[1:], self._labels(offset, inputs[1].shape[0])
        if self.name == "pair_statistics":
            saved, labels = ops.saved_statistics(outputs), ops.masked_labels(*labels)
        options = *self.rounding, *labels
        return ops.pairs_backward(self.name, inputs, offset, saved, grads, needed, options)


@dataclass(frozen=True, eq=False)  # the compiler of torch 2.10 hashes what is called
class DenseBlock:
    """A block computed by a function of cyclip_ext.reference, differentiable in all outputs."""

    function: Callable[..., Tensors]
    differentiable: int  # the number of outputs
    labels: Labels | None = None

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


PairBlock = PairOperator | DenseBlock

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


def unpaired(block: PairBlock) -> Unpaired:
    return Unpaired(replace(block, labels=None))
