"""A block of the similarity matrix: this rank's images against some texts.

A rectangle is called with its inputs, (images [n, d], texts [m, d], scalars ...), and the offset:
the positive of row i is column i + offset, where that is one of the m. `backward` takes the same
inputs, what the call returned, and the gradients of the first `differentiable` outputs; it is
for a caller that keeps no graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

Inputs = tuple[Tensor, ...]
Outputs = tuple[Tensor, ...]
Grads = tuple[Tensor | None, ...]


class Rectangle(Protocol):
    """What pairs.py and ring.py need to know of it."""

    @property
    def differentiable(self) -> int: ...

    def __call__(self, inputs: Inputs, offset: int) -> Outputs: ...

    def backward(
        self,
        inputs: Inputs,
        offset: int,
        outputs: Outputs,
        grads: Outputs,
        wanted: tuple[bool, ...],  # for each input
    ) -> Grads: ...  # for each input; of one that is not wanted nothing in particular


@dataclass(frozen=True)
class _Native:
    """An operator of cyclip_ext.ops with its options."""

    allow_tf32: bool
    allow_bf16: bool
    keep_bytes: int
    operator: ClassVar[str]

    def __call__(self, inputs: Inputs, offset: int) -> Outputs:
        operator = getattr(torch.ops.cyclip_ext, self.operator)
        outputs: Outputs = operator(
            *inputs, offset, self.allow_tf32, self.allow_bf16, self.keep_bytes
        )
        return outputs


class NativeStatistics(_Native):
    """The operator pair_statistics."""

    operator = "pair_statistics"
    differentiable = 5

    def backward(
        self,
        inputs: Inputs,
        offset: int,
        outputs: Outputs,
        grads: Outputs,
        wanted: tuple[bool, ...],
    ) -> Grads:
        row_lse, col_lse, _, _, _, *indices_and_dots = outputs
        result: Grads = torch.ops.cyclip_ext.pair_statistics_backward(
            *inputs,
            offset,
            row_lse,
            col_lse,
            *indices_and_dots,
            *grads,
            *wanted[:2],
            self.allow_tf32,
            self.allow_bf16,
        )
        return result


class NativeSigmoid(_Native):
    """The operator sigmoid_rows."""

    operator = "sigmoid_rows"
    differentiable = 1

    def backward(
        self,
        inputs: Inputs,
        offset: int,
        outputs: Outputs,
        grads: Outputs,
        wanted: tuple[bool, ...],
    ) -> Grads:
        _, dots = outputs
        result: Grads = torch.ops.cyclip_ext.sigmoid_rows_backward(
            *inputs, offset, dots, *grads, *wanted[:2], self.allow_tf32, self.allow_bf16
        )
        return result


@dataclass(frozen=True)
class Dense:
    """A function of cyclip_ext.reference, all of whose outputs have derivatives."""

    function: Callable[..., Outputs]
    differentiable: int  # the number of outputs

    def __call__(self, inputs: Inputs, offset: int) -> Outputs:
        return self.function(*inputs, offset)

    def backward(
        self,
        inputs: Inputs,
        offset: int,
        outputs: Outputs,
        grads: Outputs,
        wanted: tuple[bool, ...],
    ) -> Grads:
        """Computes the block again, with a graph this time."""
        # Whoever calls backward() within a region of autocast does not mean this matrix.
        with torch.enable_grad(), torch.autocast(inputs[0].device.type, enabled=False):
            leaves = [t.detach().requires_grad_(w) for t, w in zip(inputs, wanted, strict=True)]
            again = self(tuple(leaves), offset)
            used = [k for k, out in enumerate(again) if out.requires_grad]
            results = iter(
                torch.autograd.grad(
                    [again[k] for k in used],
                    [leaf for leaf in leaves if leaf.requires_grad],
                    [grads[k] for k in used],
                )
            )
        return tuple(next(results) if w else None for w in wanted)
