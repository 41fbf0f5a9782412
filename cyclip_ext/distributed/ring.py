"""Blocks of texts on tour: rank r hands what it has to r + 1 and takes what r - 1 has.

The next block is on its way while this one is computed, so a rank holds two blocks at a time, and
after W - 1 steps has seen them all. In the backward pass the gradient of each block follows it:
every rank adds its share, and the last one sends the sum home.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd import Function

from .batch import Batch
from .rectangles import Outputs, Rectangle


@_disable_dynamo
def ring_rectangles(
    rectangle: Rectangle,
    image: Tensor,  # [n, d], in the dtype of the computation
    text: Tensor,  # [n, d], in that in which it travels
    scalars: tuple[Tensor, ...],
    batch: Batch,
) -> list[Outputs]:
    """The outputs of a rectangle with each rank's texts, in the order of ranks."""
    flat = _Ring.apply(rectangle, batch, image, text, *scalars)
    return _by_rank(flat, batch)


class _Ring(Function):
    @staticmethod
    def forward(
        ctx: Any, rectangle: Rectangle, batch: Batch, image: Tensor, text: Tensor, *scalars: Tensor
    ) -> tuple[Tensor, ...]:
        blocks: list[Outputs] = [()] * batch.ranks

        def visit(owner: int, block: Tensor) -> None:
            inputs = image, block.to(image.dtype), *scalars
            blocks[owner] = tuple(rectangle(inputs, _offset(owner, batch)))

        _tour(text, batch, visit)
        flat = tuple(output for outputs in blocks for output in outputs)
        ctx.rectangle, ctx.batch, ctx.scalars = rectangle, batch, len(scalars)
        ctx.save_for_backward(image, text, *scalars, *flat)
        constant = [output for outputs in blocks for output in outputs[rectangle.differentiable :]]
        ctx.mark_non_differentiable(*constant)
        return flat

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; the same on all ranks, so none is left
            raise NotImplementedError(
                'a loss with exchange="ring" cannot be differentiated twice; leave group=None and '
                'use backend="reference" for second derivatives'
            )
        rectangle: Rectangle = ctx.rectangle
        batch: Batch = ctx.batch
        image, text, *saved = ctx.saved_tensors
        scalars, flat = saved[: ctx.scalars], saved[ctx.scalars :]
        blocks = _by_rank(flat, batch)
        upstream = [block[: rectangle.differentiable] for block in _by_rank(grads, batch)]
        wanted = ctx.needs_input_grad[2:]
        kept: list[Tensor | None] = [None] * len(wanted)  # gradients that stay on this rank

        def visit(owner: int, block: Tensor) -> Tensor | None:
            shares = rectangle.backward(
                (image, block.to(image.dtype), *scalars),
                _offset(owner, batch),
                blocks[owner],
                upstream[owner],
                wanted,
            )
            for k, share in enumerate(shares):
                if wanted[k] and share is not None and k != 1:
                    before = kept[k]
                    kept[k] = share if before is None else before + share
            return shares[1]

        if wanted[1]:
            kept[1] = _round_trip(text, image.dtype, batch, visit).to(text.dtype)
        else:
            _tour(text, batch, visit)
        return None, None, *kept


def _by_rank(flat: tuple[Tensor, ...], batch: Batch) -> list[Outputs]:
    each = len(flat) // batch.ranks
    return [tuple(flat[k : k + each]) for k in range(0, len(flat), each)]


def _offset(owner: int, batch: Batch) -> int:
    """The column of the owner's block that pairs with row 0 here; outside, unless it is ours."""
    return batch.start(batch.rank) - batch.start(owner)


def _tour(block: Tensor, batch: Batch, visit: Callable[[int, Tensor], object]) -> None:
    """Visits every rank's block, this rank's first; `visit` gets the owner with it."""
    block = block.contiguous()
    for step in range(batch.ranks):
        owner = (batch.rank - step) % batch.ranks
        if step == batch.ranks - 1:
            visit(owner, block)
            return
        upcoming = _empty_block(block, owner - 1, batch)
        transfers = _pass_on([block], [upcoming], batch)
        visit(owner, block)
        _wait(transfers)
        block = upcoming


def _round_trip(
    block: Tensor,
    dtype: torch.dtype,
    batch: Batch,
    visit: Callable[[int, Tensor], Tensor | None],
) -> Tensor:
    """A tour on which `visit` returns its share, in `dtype`, of a sum that goes with the block.

    Returns the sum of this rank's own block. A sum leaves one step after its block: while this
    rank computes its share, the sum of all before it arrives.
    """
    block = block.contiguous()
    total = block
    for step in range(batch.ranks):
        owner = (batch.rank - step) % batch.ranks
        outgoing, incoming = [], []
        if step < batch.ranks - 1:
            outgoing.append(block)
            incoming.append(_empty_block(block, owner - 1, batch))
        if step > 0:
            outgoing.append(total)
            incoming.append(_empty_block(block, owner, batch, dtype))
        transfers = _pass_on(outgoing, incoming, batch)
        share = visit(owner, block)
        assert share is not None
        _wait(transfers)
        total = share if step == 0 else incoming[-1].add_(share)
        if step < batch.ranks - 1:
            block = incoming[0]
    if batch.ranks == 1:
        return total
    own = _empty_block(block, batch.rank, batch, dtype)
    _wait(_pass_on([total], [own], batch))
    return own


def _empty_block(
    like: Tensor, owner: int, batch: Batch, dtype: torch.dtype | None = None
) -> Tensor:
    return like.new_empty(batch.counts[owner], like.shape[1], dtype=dtype)


def _pass_on(outgoing: list[Tensor], incoming: list[Tensor], batch: Batch) -> list[dist.Work]:
    if not outgoing:
        return []
    ahead = dist.get_global_rank(batch.group, (batch.rank + 1) % batch.ranks)
    behind = dist.get_global_rank(batch.group, (batch.rank - 1) % batch.ranks)
    sends = [dist.P2POp(dist.isend, sent, ahead, batch.group) for sent in outgoing]
    receives = [dist.P2POp(dist.irecv, received, behind, batch.group) for received in incoming]
    return dist.batch_isend_irecv(sends + receives)


def _wait(transfers: list[dist.Work]) -> None:
    for transfer in transfers:
        transfer.wait()
