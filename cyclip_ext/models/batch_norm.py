"""Batch norm over the batch of a whole process group.

Ranks that normalize by themselves train another model than one process would with all pairs:
with group statistics, features, gradients and running statistics are those of the whole batch.
torch.nn.SyncBatchNorm does that on a GPU and refuses CPU tensors; here is what takes them.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


def synchronize_batch_norm(model: nn.Module, group: dist.ProcessGroup) -> nn.Module:
    """Let the model's batch norms normalize over all ranks of the group in training mode.

    torch.nn.SyncBatchNorm where the whole model is on a GPU, GroupBatchNorm elsewhere; parameters,
    buffers and their names stay. Call it once the model is where it will run, and before
    DistributedDataParallel. Ranks must then pass through the layers equally often; their shares of
    the batch may differ.

    Returns: the model, changed in place; a new module only where it is a batch norm itself.

    Raises: TypeError for a batch norm of another library, which may do more than normalize.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and type(module) not in _KNOWN:
            raise TypeError(
                f"model: {name} is a {type(module).__qualname__}, which cannot be replaced safely; "
                "use torch.nn's batch norms, or a norm that does not depend on the batch"
            )
    if {tensor.device.type for tensor in chain(model.parameters(), model.buffers())} == {"cuda"}:
        synchronized: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model, group)
        return synchronized
    return _replaced(model, group)


def _replaced(module: nn.Module, group: dist.ProcessGroup) -> nn.Module:
    if isinstance(module, _BatchNorm):
        return GroupBatchNorm(module, group)
    for name, child in module.named_children():
        setattr(module, name, _replaced(child, group))
    return module


class GroupBatchNorm(_BatchNorm):
    """Takes the place of a batch norm; its parameters and buffers are the same tensors.

    [n, C, ...] -> the same shape and dtype, n of this rank. In training mode mean and variance are
    those of all ranks' rows, computed in float32 or wider. Gradients of the input are exact where
    ranks' losses are shares of one: where the features' gradients on every rank are those of the
    whole-batch loss times one factor, as the losses of cyclip_ext with a group make them.
    In eval mode it is plain batch norm.

    Raises: ValueError for input without a channel dimension, and in training mode where all ranks
    together have a single value per channel.
    """

    def __init__(self, norm: _BatchNorm, group: dist.ProcessGroup) -> None:
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
            raise ValueError(f"input must be [n, C, ...], not of shape {list(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """[n, C, ...] -> [n, C, ...]."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        count, mean, var = _group_statistics(input.detach(), self.group)
        if self.track_running_stats:
            self._track(count, mean, var)
        # The dtype of the statistics, also where the whole model is in bfloat16.
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
        if momentum is None:  # the mean over all batches so far
            momentum = 1 / self.num_batches_tracked.item()
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        unbiased = var * (count / (count - 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


def _group_statistics(
    input: Tensor,  # [n, C, ...]
    group: dist.ProcessGroup,
) -> tuple[int, Tensor, Tensor]:  # [C] each, in float32 or wider
    """Number of values per channel, their mean and (biased) variance, over all ranks.

    Each rank's own mean and variance are put together (Chan, Golub, LeVeque 1979): nothing cancels
    where the mean is large, and the bits are the same on every rank.
    """
    dtype = torch.promote_types(input.dtype, torch.float32)
    channels = input.shape[1]
    # torch's own pass over the input; it returns what it counted in the dtype of `unused`.
    unused = input.new_zeros(channels, dtype=dtype)
    mean, _ = torch.batch_norm_update_stats(input, unused, unused, 0.0)
    # The mean of large values is rounded on the way; what is missing is a mean of small ones.
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
    """(x - mean) / sqrt(var + eps) * weight + bias, where mean and var are functions of all x."""

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
            # Through mean and var, which every x of the group moves.
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
