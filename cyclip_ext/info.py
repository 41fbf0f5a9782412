"""Report versions, and which backends are built and usable: `python -m cyclip_ext.info`.

Run it if the losses are slower than expected, and paste its output into a bug report. Modules that
cannot be imported or loaded appear in the report with the reason.
"""

from __future__ import annotations

import importlib
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import cyclip_ext

from ._output import quiet_if_output_closes
from .libraries import BackendStatus, backend_status, build_record, unsupported_gpu


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report and return the exit status."""
    with quiet_if_output_closes():
        print(describe())
    return 0


def describe() -> str:
    """Return the whole report, one fact per line."""
    record = build_record()
    facts = {
        "cyclip_ext": f"{cyclip_ext.__version__}, in {Path(cyclip_ext.__file__).parent}",
        "Python": platform.python_version(),
        "torch": f"{torch.__version__} ({_cuda_of_torch()})",
        "open_clip": _version_of("open_clip_torch"),
        "torchvision": import_state("torchvision"),
        "built with": build_tools(record),
    }
    for name, status in backend_status().items():
        facts[f"{name} kernels"] = backend_state(name, status, record.get("cuda_architectures"))
    if backend_status()["cpu"].loaded:
        facts["instructions"] = _instruction_set()
    if backend_status()["cuda"].loaded and torch.cuda.is_available():
        facts["CUDA engine"] = _cuda_engines()
    return "\n".join(f"{name:<14} {value}" for name, value in facts.items())


def backend_state(name: str, status: BackendStatus, architectures: str | None = None) -> str:
    """Return the state of one backend, and the remedy if it is not usable.

    `architectures` are those that the CUDA kernels were compiled for, as in TORCH_CUDA_ARCH_LIST.
    """
    if not status.built:
        return f"not built: {status.reason}"
    if not status.loaded:
        return f"built, not loaded: {status.reason}"
    if name != "cuda":
        return "usable"
    if not torch.cuda.is_available():
        return "built and loaded, not usable: torch finds no GPU; check whether nvidia-smi does"
    found = (
        unsupported_gpu(device, architectures or "") for device in range(torch.cuda.device_count())
    )
    unsupported = list(dict.fromkeys(filter(None, found)))
    if not unsupported:
        return "usable"
    return f"built and loaded, not usable on {'; '.join(unsupported)}"


def _instruction_set() -> str:
    """Return the instruction set of the CPU kernels and the reason for its choice."""
    try:
        return str(torch.ops.cyclip_ext.cpu_isa())
    except (AttributeError, RuntimeError, ValueError) as error:
        return f"unknown: {error}"


def _cuda_engines() -> str:
    """Return the engine of the CUDA kernels on each device and the reason for its choice."""
    try:
        choices = map(torch.ops.cyclip_ext.cuda_engine, range(torch.cuda.device_count()))
        return ", ".join(dict.fromkeys(map(str, choices)))
    except (AttributeError, RuntimeError) as error:
        return f"unknown: {error}"


def build_tools(record: dict[str, Any]) -> str:
    """Return the tools that setup.py recorded, and which GPUs the kernels are compiled for."""
    if not record:
        return "unknown: no record of a build; install with pip"
    tools = {
        "torch": record.get("torch"),
        "C++": record.get("cxx"),
        "nvcc": record.get("nvcc"),
        "GPU architectures": record.get("cuda_architectures"),
    }
    used = ", ".join(f"{tool} {value}" for tool, value in tools.items() if value)
    return f"{used}; runs under torch {record.get('torch_target')} and later"


def import_state(module: str) -> str:
    """Return the version of a module, or the reason why it cannot be imported.

    torchvision raises RuntimeError, not ImportError, beside a torch that it was not made for.
    """
    try:
        return str(importlib.import_module(module).__version__)
    except Exception as error:
        return f"cannot be imported: {error}"


def _cuda_of_torch() -> str:
    return f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"


def _version_of(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    raise SystemExit(main())
