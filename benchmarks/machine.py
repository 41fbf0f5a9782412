"""The machine of a measurement, as columns of its CSV."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

import cyclip_ext
from cyclip_ext.info import backend_state
from cyclip_ext.libraries import backend_status

# Fields of nvidia-smi: versions and clocks that torch does not return.
_QUERIES = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit")


def describe(device: torch.device) -> dict[str, str]:
    """Return names and versions, and the clocks of a GPU. Values that cannot be read are empty."""
    facts = {
        "date": datetime.date.today().isoformat(),
        "device": _processor(),
        "cores": str(os.cpu_count() or ""),
        "threads": str(torch.get_num_threads()),
        "isa": _instruction_sets(),
        "cyclip_ext": cyclip_ext.__version__,
        "kernels": backend_state(device.type, backend_status()[device.type]),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["device"] = f"{properties.name}, sm_{properties.major}{properties.minor}"
        facts["cuda"] = torch.version.cuda or ""
        facts |= _nvidia_smi(device)
    return facts


def _processor() -> str:
    names = _cpuinfo("model name")
    return f"{names} ({platform.machine()})" if names else f"{platform.machine()} CPU"


def _instruction_sets() -> str:
    """Return the instruction sets that torch and cyclip_ext use, and the bfloat16 ones here."""
    flags = _cpuinfo("flags").split()
    in_use = [f"torch {torch.backends.cpu.get_cpu_capability()}"]
    if backend_status()["cpu"].loaded:
        in_use.append(f"cyclip_ext {str(torch.ops.cyclip_ext.cpu_isa()).partition(' ')[0]}")
    of_processor = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags]
    if of_processor:
        in_use.append(f"processor {' '.join(of_processor)}")
    return ", ".join(in_use)


def _cpuinfo(field: str) -> str:
    """Return a field of the first core, or an empty string if it cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == field), "")


def _nvidia_smi(device: torch.device) -> dict[str, str]:
    values = [""] * len(_QUERIES)
    program = shutil.which("nvidia-smi")
    if program:
        uuid = torch.cuda.get_device_properties(
            device
        ).uuid  # CUDA and nvidia-smi count differently
        query = f"--query-gpu={','.join(_QUERIES)}"
        command = [program, query, "--format=csv,noheader", f"--id=GPU-{uuid}"]
        done = subprocess.run(command, text=True, capture_output=True)
        answers = done.stdout.strip().split(", ")
        if done.returncode == 0 and len(answers) == len(_QUERIES):
            values = answers
    return dict(zip(_QUERIES, values, strict=True))
