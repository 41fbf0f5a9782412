"""This rank's rows against all columns, block by block.

A block of the similarity matrix is this rank's images against some texts. With the ring, rank r
sends its current texts to r + 1 and receives those of r - 1. The next block is transferred while
this one is computed, so a rank holds two blocks at a time and has processed all of them after
W - 1 steps. In the backward pass the gradient of each block follows it: every rank adds its share,
and the last one sends the sum to the block's owner.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from .._torch_compat import disable_compile
from .batch import Batch
from .collectives import gather_rows

Tensors = tuple[Tensor, ...]


class Block(Protocol):
    """A block's outputs and gradients; `PairOperator` in _blocks.py describes the arguments."""

    @property
    def differentiable(self) -> int: ...

    def __call__(self, inputs: Tensors, offset: int) -> Tensors: ...

    def backward(
        self,
        inputs: Tensors,
        offset: int,
        outputs: Tensors,
        grads: Tensors,
        needed: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]: ...


def all_blocks(block: Block, inputs: Tensors, batch: Batch) -> list[Tensors]:
    """Return the outputs for all columns: of one block, or with the ring of one for each rank.

    `inputs` are this rank's (images [n, d], texts [n, d], scalars ...). 16-bit features are sent as
    they are and widened afterwards, so that gradients are summed over the ranks before they are
    rounded.
    """
    image, text, *scalars = inputs
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    image = image.to(dtype)
    if batch.exchange == "ring":
        return ring_blocks(block, image, text, tuple(scalars), batch)
    texts = gather_rows(text, batch, dtype)
    return [block((image, texts, *scalars), batch.start(batch.rank))]


@disable_compile
def ring_blocks(
    block: Block,
    image: Tensor,  # [n, d], in the dtype of the computation
    text: Tensor,  # [n, d], in the dtype of the transfer
    scalars: tuple[Tensor, ...],
    batch: Batch,
) -> list[Tensors]:
    """Return the outputs of a block with each rank's texts, in the order of ranks."""
    flat = _Ring.apply(block, batch, image, text, *scalars)
    return _by_rank(flat, batch)


class _Ring(Function):
    @staticmethod
    def forward(
        ctx: Any, block: Block, batch: Batch, image: Tensor, text: Tensor, *scalars: Tensor
    ) -> tuple[Tensor, ...]:
        blocks: list[Tensors] = [()] * batch.ranks

        def visit(owner: int, texts: Tensor) -> None:
            inputs = image, texts.to(image.dtype), *scalars
            blocks[owner] = tuple(block(inputs, _offset(owner, batch)))

        _tour(text, batch, visit)
        flat = tuple(output for outputs in blocks for output in outputs)
        ctx.block, ctx.batch, ctx.scalars = block, batch, len(scalars)
        ctx.save_for_backward(image, text, *scalars, *flat)
        constant = [output for outputs in blocks for output in outputs[block.differentiable :]]
        ctx.mark_non_differentiable(*constant)
        return flat

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; the same on all ranks, so none is left
            raise NotImplementedError(
                'a loss with exchange="ring" cannot be differentiated twice; leave group=None and '
                'use backend="reference" for second derivatives'
            )
        block: Block = ctx.block
        batch: Batch = ctx.batch
        image, text, *saved = ctx.saved_tensors
        scalars, flat = saved[: ctx.scalars], saved[ctx.scalars :]
        blocks = _by_rank(flat, batch)
        upstream = [given[: block.differentiable] for given in _by_rank(grads, batch)]
        needed = ctx.needs_input_grad[2:]
        own: list[Tensor | None] = [None] * len(needed)  # gradients that stay on this rank

        def visit(owner: int, texts: Tensor) -> Tensor | None:
            shares = block.backward(
                (image, texts.to(image.dtype), *scalars),
                _offset(owner, batch),
                blocks[owner],
                upstream[owner],
                needed,
            )
            for k, share in enumerate(shares):
                if needed[k] and share is not None and k != 1:
                    before = own[k]
                    own[k] = share if before is None else before + share
            return shares[1]

        if needed[1]:
            own[1] = _round_trip(text, image.dtype, batch, visit).to(text.dtype)
        else:
            _tour(text, batch, visit)
        return None, None, *own


def _by_rank(flat: tuple[Tensor, ...], batch: Batch) -> list[Tensors]:
    each = len(flat) // batch.ranks
    return [tuple(flat[k : k + each]) for k in range(0, len(flat), each)]


def _offset(owner: int, batch: Batch) -> int:
    """Return the column of the owner's texts that pairs with row 0 here; inside for our own."""
    return batch.start(batch.rank) - batch.start(owner)


def _tour(texts: Tensor, batch: Batch, visit: Callable[[int, Tensor], object]) -> None:
    """Visit every rank's texts, this rank's first; `visit` gets the owner with them."""
    texts = texts.contiguous()
    for step in range(batch.ranks):
        owner = (batch.rank - step) % batch.ranks
        if step == batch.ranks - 1:
            visit(owner, texts)
            return
        upcoming = _empty_block(texts, owner - 1, batch)
        transfers = _pass_on([texts], [upcoming], batch)
        visit(owner, texts)
        _wait(transfers)
        texts = upcoming


def _round_trip(
    texts: Tensor,
    dtype: torch.dtype,
    batch: Batch,
    visit: Callable[[int, Tensor], Tensor | None],
) -> Tensor:
    """Return the sum over ranks, in `dtype`, of what `visit` returns for this rank's texts.

    A sum leaves one step after its texts: while this rank computes its share, the sum of all ranks
    before it arrives.
    """
    texts = texts.contiguous()
    total = texts
    for step in range(batch.ranks):
        owner = (batch.rank - step) % batch.ranks
        outgoing, incoming = [], []
        if step < batch.ranks - 1:
            outgoing.append(texts)
            incoming.append(_empty_block(texts, owner - 1, batch))
        if step > 0:
            outgoing.append(total)
            incoming.append(_empty_block(texts, owner, batch, dtype))
        transfers = _pass_on(outgoing, incoming, batch)
        share = visit(owner, texts)
        assert share is not None
        _wait(transfers)
        total = share if step == 0 else incoming[-1].add_(share)
        if step < batch.ranks - 1:
            texts = incoming[0]
    if batch.ranks == 1:
        return total
    own = _empty_block(texts, batch.rank, batch, dtype)
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
