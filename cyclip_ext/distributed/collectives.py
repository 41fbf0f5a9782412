"""The differentiable collectives of the losses.

    gather_rows    all-gather of rows               backward: sum of all ranks' gradients of them
    replicate_rows all-gather of rows               backward: W times this rank's part, no message
    own_columns    merged statistics of columns     backward: all-gather of their gradients
    all_sum        all-reduce                       backward: W times the upstream gradient

Each moves what autograd of one process would move, except for the factor W (see the package).
Gloo and NCCL support all of them. Sums run here, in the order of ranks, if a backend may change its
order from run to run; only all_sum is the backend's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .._torch_compat import disable_compile
from .batch import Batch


@disable_compile
def gather_rows(rows: Tensor, batch: Batch, dtype: torch.dtype) -> Tensor:
    """Gather the rows of all ranks, [n, d] -> [N, d], and widen them to `dtype` afterwards.

    Gradients come back in `dtype`, are summed in it, and rounded once.
    """
    gathered: Tensor = _GatherRows.apply(rows, batch, dtype)
    return gathered


@disable_compile
def replicate_rows(rows: Tensor, batch: Batch, dtype: torch.dtype) -> Tensor:
    """Gather rows as gather_rows does, for a loss of all N rows that every rank computes."""
    replicated: Tensor = _ReplicateRows.apply(rows, batch, dtype)
    return replicated


@disable_compile
def gather_constants(values: Tensor, batch: Batch) -> Tensor:
    """Return the rows of all ranks, of any dtype, without derivatives."""
    return _all_gather(values.detach(), batch)


@disable_compile
def own_columns(lse: Tensor, hardest: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the statistics of this rank's columns over all rows, [n] each.

    `lse` and `hardest`, [N], are those of all columns over this rank's rows. If hardest negatives
    tie, that of the lowest rank counts.
    """
    own_lse, own_hardest, _ = _OwnColumns.apply(lse, hardest, batch)
    return own_lse, own_hardest


@disable_compile
def all_sum(values: Tensor, batch: Batch) -> Tensor:
    """Return the sum over ranks, on every rank; any shape."""
    total: Tensor = _AllSum.apply(values, batch)
    return total


class _GatherRows(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, batch: Batch, dtype: torch.dtype) -> Tensor:
        ctx.batch, ctx.dtype = batch, rows.dtype
        return _all_gather(rows, batch).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        total, *others = _to_owners(grad, ctx.batch)
        for share in others:  # not sum(dim=0), which may take the ranks in another order
            total = total + share
        return total.to(ctx.dtype), None, None


class _ReplicateRows(_GatherRows):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        batch = ctx.batch
        start = batch.start(batch.rank)
        # This rank has the whole gradient of its rows, so no sum over ranks is needed.
        own = batch.ranks * grad[start : start + batch.counts[batch.rank]]
        return own.to(ctx.dtype), None, None


class _OwnColumns(Function):
    @staticmethod
    def forward(
        ctx: Any, lse: Tensor, hardest: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor]:
        of_all_ranks = _to_owners(torch.stack([lse, hardest], dim=1), batch)  # [W, n, 2]
        own_lse = of_all_ranks[..., 0].logsumexp(dim=0)
        candidates = of_all_ranks[..., 1]
        winner = candidates.argmax(dim=0)  # of equal ones the first
        own_hardest = candidates.gather(0, winner[None])[0]
        ctx.batch = batch
        ctx.save_for_backward(lse, own_lse, winner)
        ctx.mark_non_differentiable(winner)
        return own_lse, own_hardest, winner

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        lse, own_lse, winner = ctx.saved_tensors
        grad_lse, grad_hardest, _ = grads
        mine = torch.stack([own_lse, grad_lse, grad_hardest, winner.to(lse.dtype)], dim=1)
        whole_lse, grad_lse, grad_hardest, winner = _all_gather(mine, ctx.batch).unbind(dim=1)
        # Without negatives in this rank's rows the share is 0, and not e^(-inf + inf).
        share = torch.where(lse == -torch.inf, 0, (lse - whole_lse).exp())
        return grad_lse * share, torch.where(winner == ctx.batch.rank, grad_hardest, 0), None


class _AllSum(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, batch: Batch) -> Tensor:
        ctx.ranks = batch.ranks
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=batch.group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.ranks * grad, None


def _all_gather(rows: Tensor, batch: Batch) -> Tensor:
    """Gather [n, ...] -> [N, ...], padded in transit: gloo sends blocks of one size only."""
    most, shape = max(batch.counts), rows.shape[1:]
    missing = most - rows.shape[0]
    padded = torch.cat([rows, rows.new_zeros(missing, *shape)]) if missing else rows.contiguous()
    gathered = rows.new_empty(batch.ranks * most, *shape)
    # Its name since torch 2.13; the older one warns.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(gathered, padded, group=batch.group)
    if min(batch.counts) == most:
        return gathered
    blocks = zip(gathered.split(most), batch.counts, strict=True)
    return torch.cat([block[:count] for block, count in blocks])


def _to_owners(columns: Tensor, batch: Batch) -> Tensor:
    """Exchange [N, ...] on each rank -> [W, n, ...], every rank's part for this rank's columns."""
    n, shape = batch.counts[batch.rank], columns.shape[1:]
    received = columns.new_empty(batch.ranks, n, *shape)
    dist.all_to_all_single(
        received.flatten(0, 1),
        columns.contiguous(),
        [n] * batch.ranks,
        list(batch.counts),
        group=batch.group,
    )
    return received
