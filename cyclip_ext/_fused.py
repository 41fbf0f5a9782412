"""The contrastive loss, with the cycle terms of a small batch, as one node of the graph.

For a small batch, autograd's time for each node of separate operations, the conversions of dtype
and the additions of gradients take as long as the native operators.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._blocks import PairOperator
from ._dispatch import Directions
from ._sums import mean, ordered_sum
from .distributed import Tensors


class Cycles(NamedTuple):
    """The cycle terms to add to a contrastive loss, by pairs: w_in L_in + w_cross L_cross."""

    in_modal: float  # weight
    cross_modal: float  # weight
    divisor: int  # of the sums over pairs: N, or N^2
    keep_bytes: int

    def of(self, in_modal_sum: Tensor, cross_modal_sum: Tensor) -> Tensor:
        """Return the weighted sum of the terms."""
        if self.in_modal == self.cross_modal:
            return (in_modal_sum + cross_modal_sum) * (self.in_modal / self.divisor)
        weighted = self.in_modal * in_modal_sum + self.cross_modal * cross_modal_sum
        return weighted / self.divisor

    def gradients(self, of_loss: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of both sums over pairs."""
        of_in_modal = of_loss * self.in_modal / self.divisor
        if self.in_modal == self.cross_modal:
            return of_in_modal, of_in_modal
        return of_in_modal, of_loss * self.cross_modal / self.divisor


class FusedLoss(torch.autograd.Function):
    """Contrastive loss and statistics of a block, with its cycle terms unless they are None.

    The gradients have the bits of the separate operations, but what is computed for the contrastive
    loss stays in memory while those of the cycle terms are. The backward passes of the operators
    raise if they are differentiated again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        block: PairOperator,
        directions: Directions,
        cycles: Cycles | None,
        image: Tensor,
        texts: Tensor,
        scale: Tensor,
    ) -> Tensors:
        cycle_sums: Tensors = ()
        if cycles is not None:
            cycle_sums = torch.ops.cyclip_ext.cycle_direct(image, texts, cycles.keep_bytes)
        outputs = block((image, texts, scale))
        row_lse, col_lse, positive, row_hardest, col_hardest = outputs[:5]
        n = image.shape[0]
        if texts.shape[0] > n:
            col_lse, col_hardest = col_lse[:n], col_hardest[:n]
        logit = scale * positive
        zero = 0 * logit  # keeps NaN
        lses = of_directions(row_lse, col_lse, directions)
        differences = [lse - logit for lse in lses]
        ctx.block, ctx.directions, ctx.cycles = block, directions, cycles
        ctx.save_for_backward(image, texts, scale, *cycle_sums[2:], *differences, *outputs)
        ctx.set_materialize_grads(False)
        first, *others = (torch.logaddexp(difference, zero) for difference in differences)
        loss = mean(sum(others, first)) / len(lses)
        if cycles is not None:
            loss = loss + cycles.of(*cycle_sums[:2])
        return loss, row_lse, col_lse, positive, row_hardest, col_hardest

    @staticmethod
    def backward(
        ctx: Any, of_loss: Tensor | None, *of_statistics: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        count = 2 if ctx.directions == "both" else 1
        # Unpacked once, as activation checkpointing requires.
        image, texts, scale, *saved = ctx.saved_tensors
        products = [saved.pop(0)] if ctx.cycles is not None else []
        differences, outputs = saved[:count], tuple(saved[count:])
        of_row_lse, of_col_lse, of_positive, of_row_hardest, of_col_hardest = of_statistics
        of_scale = None
        if of_loss is not None:
            positive = outputs[2]
            upstream = of_loss / (count * positive.shape[0])
            of_lses = [upstream / (1 + (-difference).exp()) for difference in differences]
            first, *others = of_lses
            of_logit = -sum(others, first)
            of_scale = ordered_sum(of_logit * positive)
            of_positive = _plus(of_logit * scale, of_positive)
            if ctx.directions != "text_to_image":
                of_row_lse = _plus(of_lses[0], of_row_lse)
            if ctx.directions != "image_to_text":
                of_col_lse = _plus(of_lses[-1], of_col_lse)
        upstreams = of_row_lse, of_col_lse, of_positive, of_row_hardest, of_col_hardest
        grads = tuple(
            _padded(grad, output) for grad, output in zip(upstreams, outputs[:5], strict=True)
        )
        needed = ctx.needs_input_grad[3:]
        found = ctx.block.backward((image, texts, scale), 0, outputs, grads, needed)
        gradients = [
            grad if is_needed else None for grad, is_needed in zip(found, needed, strict=True)
        ]
        if of_loss is not None:
            further: list[Tensor | None] = [None, None, of_scale]
            if ctx.cycles is not None and any(needed[:2]):
                further[:2] = torch.ops.cyclip_ext.cycle_direct_backward(
                    image, texts, *products, *ctx.cycles.gradients(of_loss)
                )
            for gradient, of_input in zip(gradients, further, strict=True):
                if gradient is not None and of_input is not None:
                    gradient.add_(of_input)
        return None, None, None, *gradients


def of_directions(row_lse: Tensor, col_lse: Tensor, directions: Directions) -> Tensors:
    """Return the log-sum-exps of the directions of the loss."""
    if directions == "both":
        return row_lse, col_lse
    return (row_lse if directions == "image_to_text" else col_lse,)


def _plus(a: Tensor, b: Tensor | None) -> Tensor:
    return a if b is None else a + b


def _padded(grad: Tensor | None, output: Tensor) -> Tensor:
    """Return the gradient of an output from that of its first entries, or zeros."""
    if grad is None:
        return torch.zeros_like(output)
    missing = output.shape[0] - grad.shape[0]
    return grad if missing == 0 else torch.cat([grad, grad.new_zeros(missing)])
