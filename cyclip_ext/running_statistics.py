"""Norm layers that learn from the batch: which they are, and passes they do not learn from.

A pass that is made twice over the same batch (GradCache, gradient checkpointing) must move their
running statistics once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def norms_of_batches(model: nn.Module) -> dict[str, nn.Module]:
    """The norm layers whose output or running statistics depend on what else is in the batch.

    Batch norm of any kind in training mode, or where it has no running statistics to use instead;
    instance norm in training mode where it tracks them. By their names in the model.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            depends = module.training or module.running_mean is None
        elif isinstance(module, _InstanceNorm):
            depends = module.training and module.running_mean is not None
        else:
            depends = False
        if depends:
            found[name] = module
    return found


@contextmanager
def kept_running_statistics(model: nn.Module) -> Iterator[None]:
    """Passes through the model inside the block leave its running statistics as they are."""
    # Layers work on copies meanwhile. Writing old values back would tell autograd that tensors
    # which other graphs hold have changed.
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
