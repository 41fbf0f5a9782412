"""What a measurement ran on, as columns of its CSV."""

from __future__ import annotations

import platform
import shutil
import subprocess

import torch

import cyclip_ext
from cyclip_ext.info import backend_state
from cyclip_ext.ops import backend_status

# Fields of nvidia-smi: versions and clocks that torch does not tell.
_QUERIES = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit")


def describe(device: torch.device) -> dict[str, str]:
    """Names and versions; an empty value where something cannot be read."""
    facts = {
        "device": _processor(),
        "cyclip_ext": cyclip_ext.__version__,
        "kernels": backend_state(device.type, backend_status()[device.type]),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["device"] = f"{properties.name}, sm_{properties.major}{properties.minor}"
    return facts | _nvidia_smi(device)


def _processor() -> str:
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads: no GPU was used"


def _nvidia_smi(device: torch.device) -> dict[str, str]:
    values = [""] * len(_QUERIES)
    program = shutil.which("nvidia-smi")
    if program and device.type == "cuda":
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
