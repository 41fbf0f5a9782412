"""Batch norm over a whole process group, and passes that do not change its statistics.

If each rank normalizes over its own pairs, the model differs from one trained in a single process.
With group statistics, features, gradients and running statistics are those of the whole batch.
torch.nn.SyncBatchNorm does this on a GPU but rejects CPU tensors; GroupBatchNorm accepts them.

A second pass over the same batch (GradCache, gradient checkpointing) must not update running
statistics again: see `kept_running_statistics`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .._torch_compat import BatchNorm, InstanceNorm

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def synchronize_batch_norm(model: nn.Module, group: dist.ProcessGroup) -> nn.Module:
    """Make the model's batch norms normalize over all ranks of the group in training mode.

    Uses torch.nn.SyncBatchNorm if the whole model is on a GPU and GroupBatchNorm otherwise.
    Parameters, buffers and their names stay the same. Call it after moving the model to its device
    and before wrapping it in DistributedDataParallel. All ranks must pass through the layers
    equally often; their shares of the batch may differ in size.

    Returns:
        The model, changed in place, or a new module if the model itself is a batch norm.

    Raises:
        TypeError: For a batch norm of another library, which may do more than normalize.
    """
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm) and type(module) not in _KNOWN:
            raise TypeError(
                f"model: {name} is a {type(module).__qualname__}, which cannot be replaced safely; "
                "use torch.nn's batch norms, or a norm that does not depend on the batch"
            )
    if {tensor.device.type for tensor in chain(model.parameters(), model.buffers())} == {"cuda"}:
        synchronized: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model, group)
        return synchronized
    return _replaced(model, group)


def _replaced(module: nn.Module, group: dist.ProcessGroup) -> nn.Module:
    if isinstance(module, BatchNorm):
        return GroupBatchNorm(module, group)
    for name, child in module.named_children():
        setattr(module, name, _replaced(child, group))
    return module


class GroupBatchNorm(BatchNorm):
    """Replacement for a batch norm that shares its parameters and buffers.

    Maps [n, C, ...] to the same shape and dtype, with the n rows of this rank. In training mode,
    mean and variance are taken over the rows of all ranks and computed in float32 or wider. The
    gradient of the input is exact if the gradients of the features on every rank are those of the
    whole-batch loss times one common factor, as they are for the losses of cyclip_ext with a group.
    In eval mode it is a plain batch norm.

    Raises:
        ValueError: For input without a channel dimension, and in training mode if all ranks
            together have a single value per channel.
    """

    def __init__(self, norm: BatchNorm, group: dist.ProcessGroup) -> None:
        super().__init__(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        )
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.train(norm.training)
        self.group = group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"input must be [n, C, ...], got shape {list(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalize [n, C, ...]."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        count, mean, var = _group_statistics(input.detach(), self.group)
        if self.track_running_stats:
            self._track(count, mean, var)
        # The dtype of the statistics, even if the whole model is in bfloat16.
        weight, bias = (p if p is None else p.to(mean.dtype) for p in (self.weight, self.bias))
        output: Tensor = _Normalize.apply(
            input, weight, bias, mean, var, count, self.eps, self.group
        )
        return output

    @torch.no_grad()
    def _track(self, count: int, mean: Tensor, var: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:  # cumulative mean over all batches so far
            momentum = 1 / self.num_batches_tracked.item()
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        unbiased = var * (count / (count - 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


def _group_statistics(
    input: Tensor,  # [n, C, ...]
    group: dist.ProcessGroup,
) -> tuple[int, Tensor, Tensor]:  # [C] each, in float32 or wider
    """Return the number of values per channel, their mean and (biased) variance, over all ranks.

    The mean and variance of the ranks are combined (Chan, Golub, LeVeque 1979), so that nothing
    cancels if the mean is large. The result has the same bits on every rank.
    """
    dtype = torch.promote_types(input.dtype, torch.float32)
    channels = input.shape[1]
    # One pass over the input; torch returns the statistics in the dtype of `unused`.
    unused = input.new_zeros(channels, dtype=dtype)
    mean, _ = torch.batch_norm_update_stats(input, unused, unused, 0.0)
    # The mean of large values is rounded; the remainder is a mean of small values.
    centred = input - mean.view([1, channels] + [1] * (input.ndim - 2))
    rest, var = torch.batch_norm_update_stats(centred, unused, unused, 0.0)
    count = input.new_full((1,), input.numel() // channels, dtype=torch.float64)
    own = torch.cat([count, mean.double() + rest.double(), var.double()])
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, own, group=group)
    counts, means, variances = torch.stack(everyone).split([1, channels, channels], dim=1)
    total = counts.sum()
    if total < 2:
        raise ValueError(
            f"batch norm needs more than one value per channel, not input of shape "
            f"{list(input.shape)} on one rank and none on others"
        )
    mean = (counts * means).sum(0) / total
    squares = (counts * (variances + (means - mean).square())).sum(0)
    return int(total), mean.to(dtype), (squares / total).to(dtype)


class _Normalize(torch.autograd.Function):
    """The function (x - mean) / sqrt(var + eps) * weight + bias, with mean and var of all x."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        count: int,
        eps: float,
        group: dist.ProcessGroup,
    ) -> Tensor:
        ctx.save_for_backward(input, weight, mean, var)
        ctx.count, ctx.eps, ctx.group = count, eps, group
        return nn.functional.batch_norm(input, mean, var, weight, bias, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, var = ctx.saved_tensors
        # With mean and var held fixed: grad * weight / std, and the two sums over this rank's rows.
        grad_input, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, input, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        if ctx.needs_input_grad[0]:
            sums = torch.stack([grad_bias, grad_weight])
            dist.all_reduce(sums, group=ctx.group)
            # The part that passes through mean and var, which depend on every x of the group.
            of_mean, of_var = sums / ctx.count
            inverse_std = (var + ctx.eps).rsqrt()
            factor = inverse_std if weight is None else inverse_std * weight
            channels = [1, -1] + [1] * (input.ndim - 2)
            centred = input - mean.view(channels)
            through = torch.addcmul(
                (factor * of_mean).view(channels),
                centred,
                (factor * inverse_std * of_var).view(channels),
            )
            grad_input = (grad_input - through).to(input.dtype)
        wanted = zip((grad_input, grad_weight, grad_bias), ctx.needs_input_grad[:3], strict=True)
        return *(gradient if needed else None for gradient, needed in wanted), *[None] * 5


_KNOWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, GroupBatchNorm)


def norms_of_batches(model: nn.Module) -> dict[str, nn.Module]:
    """Return the norm layers that depend on the rest of the batch, by their names in the model.

    These are batch norms in training mode or without running statistics, and instance norms in
    training mode that track them.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm):
            depends = module.training or module.running_mean is None
        elif isinstance(module, InstanceNorm):
            depends = module.training and module.running_mean is not None
        else:
            depends = False
        if depends:
            found[name] = module
    return found


@contextmanager
def kept_running_statistics(model: nn.Module) -> Iterator[None]:
    """Restore the running statistics of the model on exit."""
    # Inside the block the layers use copies of the statistics. Restoring values in place would
    # change the version of tensors that other graphs have saved, and autograd would raise.
    originals: list[tuple[nn.Module, str, Any]] = []
    for module in norms_of_batches(model).values():
        for name in _BUFFERS:
            buffer = getattr(module, name)
            if buffer is not None:
                originals.append((module, name, buffer))
                setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in originals:
            setattr(module, name, buffer)
