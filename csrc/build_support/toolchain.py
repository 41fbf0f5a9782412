"""Finds the C++ compiler, the CUDA toolkit and torch.

Nothing here imports torch: the import takes seconds, and a build of the metadata alone also makes
the plan.
"""

from __future__ import annotations

import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

DEFAULT_HOME = Path("/usr/local/cuda")

# Machine code runs on all devices of its major version, PTX on all later devices as well. 11.0 has
# no machine code of its own and compiles the PTX of 10.0.
DEFAULT_ARCHITECTURES = ("8.0", "9.0", "10.0+PTX", "12.0+PTX")

# Entries of TORCH_CUDA_ARCH_LIST whose GPUs lack asynchronous copies and bfloat16.
TOO_OLD = re.compile(r"[1-7]\.\d\S*|(Kepler|Maxwell|Pascal|Volta|Turing)\S*")


@dataclass(frozen=True)
class CxxCompiler:
    """The compiler that torch's build extension will call."""

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
    architectures: frozenset[str]  # "8.0", "9.0", ...: supported by its nvcc

    @property
    def major(self) -> str:
        return self.version.partition(".")[0]

    @property
    def include_dir(self) -> Path:
        """The folder of the headers: include, or targets/*/include in conda's packages."""
        folders = [self.home / "include", *sorted(self.home.glob("targets/*/include"))]
        return next((d for d in folders if (d / "cuda_runtime_api.h").exists()), folders[0])

    @property
    def library_dir(self) -> Path:
        """The folder of the CUDA runtime: lib64 in NVIDIA's installers, lib in PyPI's wheels."""
        return next((d for d in (self.home / "lib64", self.home / "lib") if d.is_dir()), self.home)

    @property
    def runtime_library(self) -> str:
        """The name to link the CUDA runtime by; the wheels of PyPI only have libcudart.so.MAJOR."""
        if (self.library_dir / "libcudart.so").exists():
            return "cudart"
        return f":libcudart.so.{self.major}"


@dataclass(frozen=True)
class Torch:
    root: Path
    version: str  # "2.14.1+cu130"
    cuda: str | None  # "13.0"; None in a build without CUDA

    @property
    def release(self) -> tuple[int, int]:
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)

    @property
    def cuda_major(self) -> str | None:
        return None if self.cuda is None else self.cuda.partition(".")[0]


def _output_of(*command: str) -> str | None:
    """Return the output of a command, or None if it cannot be run or fails."""
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


def find_torch(path: Sequence[str] | None = None) -> Torch | None:
    """Find the torch that `import torch` would import from an import path, by default sys.path."""
    spec = PathFinder.find_spec("torch", path)
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent
    facts = runpy.run_path(str(root / "version.py"))
    return Torch(root, str(facts["__version__"]), facts["cuda"])


def find_cuda(major: str | None = None) -> CudaToolkit | None:
    """Find a CUDA toolkit, preferably of one major version ("13").

    CUDA_HOME or CUDA_PATH decide if they are set. Otherwise the candidates are the nvcc on PATH,
    /usr/local/cuda, and the wheels of PyPI on sys.path, in this order.
    """
    stated = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if stated:
        return _toolkit(Path(stated))
    nvcc = shutil.which("nvcc")
    homes = [] if nvcc is None else [_home_of(nvcc)]
    homes.append(DEFAULT_HOME)
    homes += [Path(entry) / "nvidia" / f"cu{major}" for entry in sys.path if major is not None]
    found = [toolkit for home in homes if (toolkit := _toolkit(home)) is not None]
    fitting = [toolkit for toolkit in found if toolkit.major == major]
    return next(iter(fitting + found), None)


def _toolkit(home: Path) -> CudaToolkit | None:
    nvcc = str(home / "bin" / "nvcc")
    release = re.search(r"release (\d+\.\d+)", _output_of(nvcc, "--version") or "")
    if release is None:
        return None
    codes = re.findall(r"compute_(\d+)(\d)\b", _output_of(nvcc, "--list-gpu-arch") or "")
    return CudaToolkit(home, release[1], frozenset(f"{major}.{minor}" for major, minor in codes))


def _home_of(nvcc: str) -> Path:
    """Return the toolkit that an nvcc on PATH belongs to.

    The command may be a link or a script that calls the real nvcc, so its folder may not be the
    toolkit's. The dry run of nvcc prints the folder of the toolkit as `#$ TOP=...`.
    """
    dry_run = _output_of(nvcc, "--dryrun", "-x", "cu", os.devnull) or ""
    top = re.search(r"^#\$ TOP=(.+)$", dry_run, flags=re.MULTILINE)
    if top is not None:
        home = Path(top[1].strip()).resolve()
        if (home / "bin" / "nvcc").exists():
            return home
    return Path(nvcc).resolve().parent.parent


def architectures_for(toolkit: CudaToolkit) -> str:
    """Return TORCH_CUDA_ARCH_LIST, or by default the architectures that nvcc supports.

    Stated architectures before 8.0 are dropped: containers often state all that torch supports. The
    newest of the default architectures always includes PTX, for later GPUs.
    """
    stated = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if stated:
        return ";".join(entry for entry in stated if TOO_OLD.fullmatch(entry) is None)
    known = [
        arch for arch in DEFAULT_ARCHITECTURES if arch.removesuffix("+PTX") in toolkit.architectures
    ]
    return ";".join(known).removesuffix("+PTX") + "+PTX"
