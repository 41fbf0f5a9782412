"""All uses of undocumented names of torch, each with the public replacement to wait for.

No other module of the package uses such a name, so this is the page to read when torch changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch._compile import _disable_dynamo
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm as InstanceNorm

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "BatchNorm",  # the base class of all batch norms; public: none yet
    "InstanceNorm",  # that of all instance norms
    "constant_when_compiled",
    "cpu_multiplies_bfloat16",
    "disable_compile",
    "has_kernel",
    "holds_for_all_sizes",
    "in_forward_mode",
    "in_function_transform",
    "process_group_named",
]

Function = TypeVar("Function", bound=Callable[..., Any])


def disable_compile(function: Function) -> Function:
    """Exclude a function from torch.compile's graphs.

    Public: torch.compiler.disable, once it does not import the whole compiler.
    """
    return cast("Function", _disable_dynamo(function))


def constant_when_compiled(function: Function) -> Function:
    """Let torch.compile call a function while it traces, and guard on nothing.

    Public: torch.compiler.assume_constant_result, once it does not import the whole compiler.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def holds_for_all_sizes(condition: bool) -> bool:
    """Evaluate a comparison of sizes without a guard when a graph is being traced.

    In a graph for batches of any size the answer is False unless the comparison holds for every
    size. Outside of a trace it is the comparison itself.

    Public: none yet for torch.fx.experimental.symbolic_shapes.statically_known_true.
    """
    if not torch.compiler.is_compiling():
        return condition
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)


def in_forward_mode() -> bool:
    """Return whether forward-mode derivatives are being taken.

    Public: none yet; torch.autograd.forward_ad has no question for it.
    """
    return forward_ad._current_level >= 0


def in_function_transform() -> bool:
    """Return whether the caller runs within a transform such as torch.func.grad, vjp or vmap.

    Public: none yet.
    """
    return torch._C._are_functorch_transforms_active()


def has_kernel(operator: str, device_type: str) -> bool:
    """Return whether an operator, given as "namespace::name", has a kernel for a device type.

    Public: none yet; torch.library can register kernels but not list them.
    """
    return torch._C._dispatch_has_kernel_for_dispatch_key(operator, device_type.upper())


def cpu_multiplies_bfloat16() -> bool:
    """Return whether the CPU has AVX512-BF16 instructions.

    Public: none yet.
    """
    return torch.cpu._is_avx512_bf16_supported()


def process_group_named(name: str) -> ProcessGroup | None:
    """Return this process's group with that `group_name`, or None.

    Public: none yet.
    """
    from torch.distributed import distributed_c10d

    resolve: Any = distributed_c10d._resolve_process_group  # type: ignore[attr-defined]
    try:
        return cast("ProcessGroup", resolve(name))
    except (RuntimeError, ValueError, LookupError):
        return None
