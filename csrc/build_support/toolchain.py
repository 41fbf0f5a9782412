"""Finds what a native build needs: a C++ compiler, a CUDA toolkit, and torch.

Nothing here imports torch: the plan is also made where only metadata is wanted, and the import
takes seconds.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Machine code runs on all devices of its major version, PTX on all later devices as well. 11.0 has no
# machine code of its own and compiles the PTX of 10.0.
DEFAULT_ARCHITECTURES = ("8.0", "9.0", "10.0+PTX", "12.0+PTX")


@dataclass(frozen=True)
class CxxCompiler:
    """The compiler that torch's build machinery is going to call."""

    command: str
    description: str  # first line of `--version`

    @property
    def is_tested(self) -> bool:
        """Whether the project's own checks run with this compiler on this architecture."""
        is_gcc_12 = re.search(r"^(c\+\+|g\+\+).* 12\.\d+\.\d+$", self.description) is not None
        return is_gcc_12 and platform.machine() == "x86_64"


@dataclass(frozen=True)
class CudaToolkit:
    home: Path
    version: str  # "13.0"
    architectures: frozenset[str]  # "8.0", "9.0", ...: what its nvcc can compile for

    @property
    def major(self) -> str:
        return self.version.partition(".")[0]


@dataclass(frozen=True)
class Torch:
    root: Path
    version: str
    cuda: str | None  # "13.0"; None in a build without CUDA


def _output_of(*command: str) -> str | None:
    """Everything the command printed, or None where it could not be run or failed."""
    try:
        done = subprocess.run(
            command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout


def find_cxx() -> CxxCompiler | None:
    command = os.environ.get("CXX", "c++")  # torch's rule
    version = _output_of(*shlex.split(command), "--version")
    return CxxCompiler(command, version.splitlines()[0]) if version else None


def find_torch() -> Torch | None:
    """The torch that `import torch` would find."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent
    facts = runpy.run_path(str(root / "version.py"))
    return Torch(root, str(facts["__version__"]), facts["cuda"])


def find_cuda() -> CudaToolkit | None:
    home = _cuda_home()
    if home is None:
        return None
    nvcc = str(home / "bin" / "nvcc")
    release = re.search(r"release (\d+\.\d+)", _output_of(nvcc, "--version") or "")
    if release is None:
        return None
    codes = re.findall(r"compute_(\d+)(\d)\b", _output_of(nvcc, "--list-gpu-arch") or "")
    return CudaToolkit(home, release[1], frozenset(f"{major}.{minor}" for major, minor in codes))


def _cuda_home() -> Path | None:
    stated = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if stated:
        return Path(stated)
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        return _home_of(nvcc)
    usual = Path("/usr/local/cuda")
    return usual if usual.exists() else None


def _home_of(nvcc: str) -> Path:
    """The toolkit an nvcc on PATH belongs to.

    The command may be a link or a script that calls the real nvcc, so that its own folder tells
    nothing: nvcc itself is asked. Its dry run lists the folders of the toolkit as `#$ TOP=...`.
    """
    dry_run = _output_of(nvcc, "--dryrun", "-x", "cu", os.devnull) or ""
    top = re.search(r"^#\$ TOP=(.+)$", dry_run, flags=re.MULTILINE)
    if top is not None:
        home = Path(top[1].strip()).resolve()
        if (home / "bin" / "nvcc").exists():
            return home
    return Path(nvcc).resolve().parent.parent


def architectures_for(toolkit: CudaToolkit) -> str:
    """Return TORCH_CUDA_ARCH_LIST or, if it is not set, the default architectures that nvcc supports.

    The newest of the default architectures always includes PTX, for later GPUs.
    """
    stated = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if stated:
        return stated
    known = [
        arch for arch in DEFAULT_ARCHITECTURES if arch.removesuffix("+PTX") in toolkit.architectures
    ]
    return ";".join(known).removesuffix("+PTX") + "+PTX"
