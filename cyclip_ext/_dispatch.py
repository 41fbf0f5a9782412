"""The options of a loss, and the choice of the implementation that computes it."""

from __future__ import annotations

import functools
import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

import torch
from torch import Tensor

from . import libraries
from ._blocks import Labels, PairOperator, Rounding
from ._torch_compat import constant_when_compiled, in_forward_mode, in_function_transform
from .distributed import Batch, Exchange, groups

if TYPE_CHECKING:
    from .distributed.groups import Group, SavedGroup

Backend = Literal["auto", "native", "reference"]
Reduction = Literal["batchmean", "mean"]
Precision = Literal["auto", "bf16"]
SameLabel = Literal["mask", "positive"]
Directions = Literal["both", "image_to_text", "text_to_image"]

DEFAULT_MEMORY_BUDGET = 256 << 20  # bytes: a batch of 8192 in float32


class PairOptions(TypedDict, total=False):
    """The keyword arguments of the losses over all pairs; see cyclip_ext.functional."""

    backend: Backend
    precision: Precision
    memory_budget: int | None
    group: Group | None
    exchange: Exchange
    same_label: SameLabel


PAIR_OPTIONS = tuple(PairOptions.__annotations__)


@dataclass(frozen=True)
class Options:
    """Options of a loss that do not depend on its inputs; `check` validates them."""

    backend: Backend = "auto"
    precision: Precision = "auto"
    memory_budget: int | None = None
    group: Group | SavedGroup | None = None
    exchange: Exchange = "gather"
    reduction: Reduction = "batchmean"
    directions: Directions = "both"
    same_label: SameLabel = "mask"

    def check(self) -> None:
        """Raise ValueError or TypeError for a value that no loss accepts."""
        _check_choice("backend", self.backend, Backend)
        _check_choice("precision", self.precision, Precision)
        _check_choice("exchange", self.exchange, Exchange)
        _check_choice("directions", self.directions, Directions)
        _check_choice("same_label", self.same_label, SameLabel)
        if self.reduction not in get_args(Reduction):
            raise ValueError(
                f"reduction must be 'batchmean' (sum/N) or 'mean' (sum/N^2), got {self.reduction!r}"
            )
        budget = self.memory_budget
        if budget is None:
            return
        if isinstance(budget, bool) or not isinstance(budget, int):
            raise TypeError(f"memory_budget must be an int, a number of bytes, got {budget!r}")
        if budget < 0:
            raise ValueError(f"memory_budget must be a number of bytes, 0 for none, got {budget}")

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "group": groups.saved(self.group)}

    def __deepcopy__(self, memo: dict[int, Any]) -> Options:
        return self  # immutable, and a process group has no copy


def pair_options(caller: str, options: PairOptions, directions: Directions = "both") -> Options:
    """Return the options of a loss over all pairs, named `caller` in messages.

    Raises: TypeError for a keyword that such a loss does not have.
    """
    for name in options:
        if name not in PAIR_OPTIONS:
            raise TypeError(
                f"{caller} got an unexpected keyword argument {name!r}; besides its own arguments "
                f"it takes {', '.join(PAIR_OPTIONS)}"
            )
    return Options(directions=directions, **options)


def _check_choice(name: str, value: object, choices: Any) -> None:
    allowed = get_args(choices)
    if value not in allowed:
        *others, last = map(repr, allowed)
        raise ValueError(f"{name} must be {', '.join(others)} or {last}, got {value!r}")


# ------------------------------------------------- which implementation


def use_native(operator: str, features: Tensor, options: Options) -> bool:
    """Return whether to use the native operator rather than the reference.

    Raises: RuntimeError if backend="native" is not available.
    """
    if options.backend == "reference":
        return False
    device = features.device.type
    unsupported = _unsupported_derivatives()
    if unsupported:
        if options.backend == "native":
            raise RuntimeError(f"backend='native' {unsupported}; use 'reference' or 'auto'")
        return False
    if not libraries.has_operator(operator, device):
        reason = _why_missing(operator, device)
    else:
        reason = _why_not_on_gpu(features.device.index) if features.is_cuda else ""
    if not reason:
        return True
    if options.backend == "native":
        raise RuntimeError(
            f"backend='native': {reason}. "
            "`python -m cyclip_ext.info` shows what is installed; backend='reference' runs anywhere"
        )
    _warn(operator, device, reason)
    return False


def _unsupported_derivatives() -> str:
    """Return the reason why the operators cannot be used here, or an empty string."""
    if in_forward_mode():
        return "has no forward-mode derivatives"
    if in_function_transform():
        return "cannot be transformed by torch.func (torch.autograd.grad works)"
    return ""


def _why_missing(operator: str, device: str) -> str:
    status = libraries.backend_status().get(device)
    if status is None:
        return f"there are no native operators for {device} tensors"
    return status.reason or f"{operator} has no {device} kernel in this version"


@constant_when_compiled
def _why_not_on_gpu(index: int) -> str:
    return libraries.why_not_on_gpu(index)


@constant_when_compiled
def _warn(operator: str, device: str, reason: str) -> None:
    _warn_once(operator, device, reason)


@functools.cache
def _warn_once(operator: str, device: str, reason: str) -> None:
    warnings.warn(
        f"cyclip_ext computes with the dense PyTorch reference, in O(N^2) memory: {reason}",
        stacklevel=2,
    )


# ------------------------------------------------- how the native operators compute


def pair_operator(
    name: str,
    options: Options,
    batch: Batch | None,
    *inputs: Tensor,
    needs_hardest: bool = True,
    labels: Labels | None = None,
) -> PairOperator:
    """Return an operator over all pairs, with the rounding and the memory that the options allow.

    The first of `inputs` are the features.
    """
    features = inputs[0]
    tf32, bf16 = allow_tf32(features), options.precision == "bf16"
    kept = keep_bytes(options, *inputs)
    if batch is not None:
        # The operators get 16-bit features widened to float32. They may multiply bfloat16 as
        # bfloat16, and float16 as TF32, which represents it exactly.
        tf32 |= features.is_cuda and features.dtype == torch.float16
        bf16 |= features.dtype == torch.bfloat16
        if batch.exchange == "ring":
            kept = 0
    positives = options.same_label == "positive"
    rounding = Rounding(tf32, bf16)
    return PairOperator(name, rounding, kept, needs_hardest, labels, positives)


def allow_tf32(features: Tensor) -> bool:
    """Return whether products of these features may be rounded to TF32."""
    return features.is_cuda and features.dtype == torch.float32 and torch_allows_tf32()


@constant_when_compiled  # torch.compile cannot trace it, but recompiles if the answer changes
def torch_allows_tf32() -> bool:
    """Return whether torch itself multiplies float32 matrices in TF32 on a GPU.

    `torch.set_float32_matmul_precision` also sets this attribute. The getter of the older interface
    raises after `torch.backends.cuda.matmul.fp32_precision` was set.
    """
    return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")


def keep_bytes(options: Options, *inputs: Tensor) -> int:
    """Return the bytes that may be saved for the backward pass; 0 if no input requires grad."""
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)):
        return 0
    return min(memory_budget(options), 2**63 - 1)


def memory_budget(options: Options) -> int:
    """Return the bytes that may be saved between forward and backward pass."""
    if options.memory_budget is not None:
        return options.memory_budget
    return _default_memory_budget()


@constant_when_compiled
def _default_memory_budget() -> int:
    stated = os.environ.get("CYCLIP_MEMORY_BUDGET")
    if stated is None:
        return DEFAULT_MEMORY_BUDGET
    if not (stated.isascii() and stated.isdecimal()):
        raise ValueError(
            f"CYCLIP_MEMORY_BUDGET must be a number of bytes, such as 268435456, got {stated!r}"
        )
    return int(stated)


# ------------------------------------------------- how the reference computes


def widen(features: Tensor, precision: Precision = "auto") -> Tensor:
    """Widen 16-bit features to float32, which is exact, after the rounding of precision="bf16"."""
    if precision == "bf16" and features.dtype == torch.float32:
        features = features.bfloat16()
    return features if features.dtype == torch.float64 else features.float()


@constant_when_compiled  # the compiler of torch 2.10 cannot trace it
def _has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


def without_autocast(features: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which products are not rounded to 16 bits."""
    device_type = features.device.type
    if not _has_autocast(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
