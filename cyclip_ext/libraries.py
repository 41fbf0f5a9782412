"""Loading of the native libraries, and registration of the operators that they contain.

The import succeeds without the libraries. `backend_status()` returns their state and the reason if
one is missing, and `has_operator()` whether an operator has a kernel for a device.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ._torch_compat import has_kernel

PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class BackendStatus:
    """The state of one native library; `reason` is empty if it is loaded."""

    built: bool
    loaded: bool
    reason: str


def backend_status() -> dict[str, BackendStatus]:
    """Return the state of the "cpu" and the "cuda" library of this installation."""
    return dict(_STATUS)


def build_record() -> dict[str, Any]:
    """Return the record that setup.py wrote about the build, or an empty dictionary."""
    try:
        record = json.loads((PACKAGE / "_build_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _build_reason(library: str) -> str:
    """Return the reason that setup.py gave for not building a library."""
    try:
        return str(build_record()["libraries"][library]["reason"])
    except (KeyError, TypeError):
        return ""


def _files(file_stem: str) -> list[Path]:
    return sorted(PACKAGE.glob(f"{file_stem}.*so")) + sorted(PACKAGE.glob(f"{file_stem}.*pyd"))


def _load(library: str, file_stem: str) -> BackendStatus:
    paths = _files(file_stem)
    if not paths:
        needed = {"cpu": "a C++ compiler", "cuda": "nvcc and a torch built for CUDA"}[library]
        unknown = f"there is no record of a build; `pip install .` builds it, given {needed}"
        return BackendStatus(False, False, _build_reason(library) or unknown)
    try:
        torch.ops.load_library(str(paths[0]))
    except (OSError, RuntimeError) as error:
        remedy = "reinstall cyclip_ext beside this torch"
        return BackendStatus(True, False, f"loading {paths[0].name} failed: {error}; {remedy}")
    return BackendStatus(True, True, "")


def load_cuda(cpu: BackendStatus) -> BackendStatus:
    """Load the CUDA library if it was built and fits this torch and the CPU library."""
    built = bool(_files("_C_cuda"))
    ours, torchs = build_record().get("nvcc"), torch.version.cuda
    if not built and _build_reason("cuda"):
        return _load("cuda", "_C_cuda")
    if torchs is None:
        return BackendStatus(built, False, "this torch is built without CUDA")
    if not cpu.loaded:
        return BackendStatus(built, False, f"it needs the cpu library: {cpu.reason}")
    if built and ours and _major(ours) != _major(torchs):
        return BackendStatus(
            True,
            False,
            f"it was built with CUDA {ours}, but this torch uses CUDA {torchs}; reinstall "
            f"cyclip_ext with a CUDA {_major(torchs)} toolkit, or a torch for CUDA {_major(ours)}",
        )
    return _load("cuda", "_C_cuda")


def _major(version: str) -> str:
    return version.partition(".")[0]


_CPU = _load("cpu", "_C")
_STATUS = {"cpu": _CPU, "cuda": load_cuda(_CPU)}
_KERNELS: dict[str, list[str]] = {}  # the device types of each operator


def has_operator(name: str, device_type: str) -> bool:
    """Return whether an operator has a kernel for a device type ("cpu", "cuda")."""
    return device_type in _KERNELS.get(name, [])


@functools.cache
def why_not_on_gpu(index: int) -> str:
    """Return the reason why the CUDA kernels do not run on the GPU of that index, or ""."""
    architectures = build_record().get("cuda_architectures")
    if not architectures or not torch.cuda.is_available():
        return ""
    reason = unsupported_gpu(index, architectures)
    return reason and f"the CUDA kernels are not usable on {reason}"


def unsupported_gpu(index: int, architectures: str) -> str:
    """Return the name of a GPU and a remedy if these kernels do not run on it, or "".

    `architectures`: as in TORCH_CUDA_ARCH_LIST.
    """
    major, minor = torch.cuda.get_device_capability(index)
    if runs_on((major, minor), architectures):
        return ""
    remedy = (
        "the kernels need compute capability 8.0 or later"
        if major < 8
        else "reinstall with TORCH_CUDA_ARCH_LIST set to the GPU's compute capability"
    )
    name = torch.cuda.get_device_name(index)
    return f"{name} (compute capability {major}.{minor}): compiled for {architectures}; {remedy}"


def runs_on(capability: tuple[int, int], architectures: str) -> bool:
    """Return whether kernels compiled for a TORCH_CUDA_ARCH_LIST run on a GPU of this capability.

    Machine code runs on later minor versions of its major version, that of 9.0a and the like on
    exactly its own; PTX runs on everything later. The answer is True for names such as Ampere.
    """
    for entry in re.split(r"[;\s]+", architectures.strip()):
        match = re.fullmatch(r"(\d+)\.(\d+)(a?)(\+PTX)?", entry)
        if match is None:
            return True
        built = int(match[1]), int(match[2])
        exact, ptx = bool(match[3]), bool(match[4])
        if capability == built or (not exact and ptx and capability > built):
            return True
        if not exact and capability[0] == built[0] and capability > built:
            return True
    return False


def register(
    name: str,
    fake: Callable[..., Any],
    flops: Callable[..., int],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> None:
    """Register shapes, FLOPs and derivatives of an operator if the CPU library is loaded.

    That library has the schemas of all operators. A `_backward` operator has no derivatives of its
    own.
    """
    if not _CPU.loaded:
        return
    qualified = f"cyclip_ext::{name}"
    # Looked up once, so that torch.compile meets a constant.
    _KERNELS[name] = [device for device in ("cpu", "cuda") if has_kernel(qualified, device)]
    torch.library.register_fake(qualified, fake)
    if backward is None:
        torch.library.register_autograd(qualified, _once_differentiable(name))
    else:
        torch.library.register_autograd(qualified, backward, setup_context=setup_context)
    register_flop_formula(getattr(torch.ops.cyclip_ext, name))(flops)


def _once_differentiable(name: str) -> Callable[..., None]:
    def raise_error(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(
            f"cyclip_ext::{name} cannot be differentiated twice; "
            'use backend="reference" for second derivatives'
        )

    return raise_error
