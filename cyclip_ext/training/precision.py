"""Device and precision of a run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from .._torch_compat import cpu_multiplies_bfloat16
from ..evaluation.encoder import choose_device as evaluation_device
from .config import SetupError
from .ranks import local_rank


def choose_device(name: str) -> torch.device:
    """Return the device of that name; "auto": cuda if there is one, else the CPU.

    "cuda" is the GPU of this process's number on its machine, as torchrun counts.
    Raises SetupError if there is no such device.
    """
    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        name = f"cuda:{local_rank()}"
    try:
        return evaluation_device(name)
    except ValueError as error:
        raise SetupError(str(error)) from error


def choose_precision(name: str, device: torch.device) -> str:
    """Resolve "auto": amp_bf16 if the hardware multiplies bfloat16 itself, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = cpu_multiplies_bfloat16()
    return "amp_bf16" if fast else "fp32"


def autocast_for(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Return a function that makes the context in which a tower runs."""
    if precision == "fp32":
        return nullcontext
    dtype = torch.float16 if precision == "amp_fp16" else torch.bfloat16
    return lambda: torch.autocast(device.type, dtype)


def grad_scaler_for(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Return the scaler of float16 gradients; it is disabled in every other precision."""
    return torch.amp.GradScaler(device.type, enabled=precision == "amp_fp16")
