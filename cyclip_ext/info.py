"""`python -m cyclip_ext.info`: versions, and which backends are built and usable.

The first thing to run when something is slower than it should be, and to paste into a report. It
never fails: what cannot be imported or loaded is reported as such.
"""

from __future__ import annotations

import importlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import cyclip_ext
from cyclip_ext.ops import BackendStatus, backend_status

_RECORD = Path(__file__).with_name("_build_info.json")


def describe() -> str:
    """The whole report, one fact per line."""
    facts = {
        "cyclip_ext": f"{cyclip_ext.__version__}, in {Path(cyclip_ext.__file__).parent}",
        "Python": platform.python_version(),
        "torch": f"{torch.__version__} ({_cuda_of_torch()})",
        "open_clip": _version_of("open_clip_torch"),
        "torchvision": _import_of("torchvision"),
        "built with": _build(),
    }
    for name, status in backend_status().items():
        facts[f"{name} kernels"] = backend_state(name, status)
    if backend_status()["cpu"].loaded:
        facts["instructions"] = _instruction_set()
    return "\n".join(f"{name:<14} {value}" for name, value in facts.items())


def backend_state(name: str, status: BackendStatus) -> str:
    """One backend in words: how far it got, and what to do where that is not far enough."""
    if not status.built:
        return f"not built: {status.reason}"
    if not status.loaded:
        return f"built, not loaded: {status.reason}"
    if name == "cuda" and not torch.cuda.is_available():
        return "built and loaded, not usable: torch sees no GPU; does nvidia-smi?"
    return "usable"


def _instruction_set() -> str:
    """Return the instruction set of the CPU kernels and the reason for its choice."""
    try:
        return str(torch.ops.cyclip_ext.cpu_isa())
    except (AttributeError, RuntimeError, ValueError) as error:
        return f"unknown: {error}"


def _cuda_of_torch() -> str:
    return f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"


def _build() -> str:
    """What setup.py recorded: the tools, and which GPUs the CUDA kernels are compiled for."""
    try:
        record: dict[str, Any] = json.loads(_RECORD.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "unknown: no record of a build; install with pip"
    tools = {
        "torch": record.get("torch"),
        "C++": record.get("cxx"),
        "nvcc": record.get("nvcc"),
        "GPU architectures": record.get("cuda_architectures"),
    }
    used = ", ".join(f"{tool} {value}" for tool, value in tools.items() if value)
    return f"{used}; runs under torch {record.get('torch_target')} and later"


def _version_of(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def _import_of(module: str) -> str:
    """The version of a module that can be imported, or why it cannot.

    torchvision raises RuntimeError, not ImportError, beside a torch that it was not made for.
    """
    try:
        return str(importlib.import_module(module).__version__)
    except Exception as error:
        return f"cannot be imported: {error}"


if __name__ == "__main__":
    print(describe())
