"""Decides which of the two libraries are built, and records why one is not."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from setuptools import Extension

from build_support.toolchain import (
    CudaToolkit,
    CxxCompiler,
    Torch,
    architectures_for,
    find_cuda,
    find_cxx,
    find_torch,
)

# Restricts symbols to torch 2.10, so a build against any torch >= 2.10 runs with all of them.
TORCH_TARGET = "2.10"
TORCH_TARGET_VERSION = "0x020a000000000000"  # one byte each: major, minor, patch, ... (version.h)
OLDEST_PYTHON = "cp310"

COMMON_FLAGS = ["-O3", "-std=c++17", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
CXX_FLAGS = [
    *("-Wall", "-Wextra", "-Wno-psabi", "-fvisibility=hidden", "-g0"),
    # The argument reduction of the exponential (simd.inl.h) is exact with fused multiply-adds.
    "-ffp-contract=fast",
    # No -ffast-math: the kernels rely on infinities, NaN and a fixed order of summation. These two
    # flags only drop errno and floating-point traps, which are not used, and let loops vectorize.
    *("-fno-math-errno", "-fno-trapping-math"),
]
NVCC_FLAGS = ["-Xcompiler=-Wall,-Wextra,-fvisibility=hidden"]

WERROR_NVCC_FLAGS = ["-Xcompiler=-Werror", "--Werror=all-warnings"]
# Together with these, spilled registers are errors. Another nvcc may spill without harm, so only
# the checks of the project itself add them.
SPILL_NVCC_FLAGS = ["-Xptxas=--warn-on-spills,--warn-on-local-memory-usage"]

# Sources for compute capability 9.0a. Their instructions exist on no other architecture.
HOPPER_SOURCES = "csrc/kernels/cuda/hopper_*.cu"
HOPPER_FLAGS = ["-gencode=arch=compute_90a,code=sm_90a"]


@dataclass
class Plan:
    """The libraries of a build.

    `missing` maps each backend that is not built to the reason and, if there is one, the remedy.
    Every other backend is built.
    """

    torch: Torch | None
    cxx: CxxCompiler | None
    cuda: CudaToolkit | None
    missing: dict[str, str] = field(default_factory=dict)
    cuda_required: bool = False

    def extensions(self) -> list[Extension]:
        libraries = []
        if "cpu" not in self.missing:
            libraries.append(self._cpu_library())
        if "cuda" not in self.missing:
            libraries.append(self._cuda_library())
        return libraries

    @property
    def architectures(self) -> str | None:
        if "cuda" in self.missing or self.cuda is None:
            return None
        return architectures_for(self.cuda)

    @property
    def hopper_sources(self) -> list[str]:
        return _sources(HOPPER_SOURCES)

    def hopper_command(self, source: str, target: str) -> list[str]:
        """Return the command that compiles one of the sources for compute capability 9.0a."""
        assert self.cuda is not None
        nvcc = str(self.cuda.home / "bin" / "nvcc")
        flags = [*COMMON_FLAGS, *NVCC_FLAGS, "-Xcompiler=-fPIC", "-Icsrc", *HOPPER_FLAGS]
        if self._warnings_are_errors():
            flags += WERROR_NVCC_FLAGS
        if compiler := os.environ.get("CC"):  # as torch does
            flags += ["-ccbin", compiler]
        return [nvcc, *flags, "-c", source, "-o", target]

    def _cpu_library(self) -> Extension:
        return self._library(
            "cyclip_ext._C",
            sources=_sources(
                "csrc/ops/*.cpp", "csrc/ops/cpu/**/*.cpp", "csrc/kernels/cpu/**/*.cpp"
            ),
            libraries=["torch_cpu"],
        )

    def _cuda_library(self) -> Extension:
        assert self.cuda is not None
        sources = _sources("csrc/ops/cuda/**/*.cpp", "csrc/kernels/cuda/**/*.cu")
        library = self._library(
            "cyclip_ext._C_cuda",
            sources=[source for source in sources if source not in self.hopper_sources],
            libraries=["torch_cpu", "torch_cuda", self.cuda.runtime_library],
        )
        library.library_dirs.append(str(self.cuda.library_dir))
        library.define_macros.append(("USE_CUDA", None))  # torch declares its CUDA functions
        # If the CUDA library was not requested, its failure must not prevent the CPU library.
        library.optional = not self.cuda_required
        return library

    def _library(self, name: str, *, sources: list[str], libraries: list[str]) -> Extension:
        assert self.torch is not None
        # As system headers, so that their warnings are not reported. nvcc does not need them. If
        # one of its flags contained "arch", such as the path of a folder "research", torch would
        # take it for a choice of the architecture and add none.
        system = ["-isystem", str(self.torch.root / "include")]
        if self.cuda is not None:
            system += ["-isystem", str(self.cuda.include_dir)]
        relative_names = f"-ffile-prefix-map={Path.cwd()}/="  # in messages, in every build folder
        cxx_flags = [*COMMON_FLAGS, *CXX_FLAGS, relative_names, *system]
        nvcc_flags = [*COMMON_FLAGS, *NVCC_FLAGS]
        if self._warnings_are_errors():
            cxx_flags.append("-Werror")
            nvcc_flags += WERROR_NVCC_FLAGS
        if os.environ.get("CYCLIP_WERROR") == "1":
            nvcc_flags += SPILL_NVCC_FLAGS
        return Extension(
            name,
            sources=sources,
            include_dirs=["csrc"],
            library_dirs=[str(self.torch.root / "lib")],
            libraries=libraries,
            extra_compile_args={"cxx": cxx_flags, "nvcc": nvcc_flags},
            language="c++",
            py_limited_api=True,
        )

    def _warnings_are_errors(self) -> bool:
        """Return True for the compiler of the project's own checks.

        The new warnings of other compilers should not prevent an installation.
        """
        stated = os.environ.get("CYCLIP_WERROR")
        if stated is not None:
            return stated == "1"
        return self.cxx is not None and self.cxx.is_tested


def _sources(*patterns: str) -> list[str]:
    return sorted(path.as_posix() for pattern in patterns for path in Path().glob(pattern))


def make_plan() -> Plan:
    """Plan the build for this machine and its environment variables.

    Raises:
        SystemExit: if CYCLIP_BUILD_CUDA=1 or FORCE_CUDA=1 is set but CUDA cannot be built.
    """
    torch = find_torch()
    plan = Plan(torch, find_cxx(), find_cuda(torch.cuda_major if torch else None))
    reason = _why_no_cpu(plan)
    if reason:
        plan.missing["cpu"] = reason
    demand = os.environ.get("CYCLIP_BUILD_CUDA", os.environ.get("FORCE_CUDA") or None)
    plan.cuda_required = demand == "1"
    reason = "CYCLIP_BUILD_CUDA=0 was set" if demand == "0" else reason or _why_no_cuda(plan)
    if reason and plan.cuda_required:
        raise SystemExit(f"cyclip_ext: CYCLIP_BUILD_CUDA=1 is set, but {reason}")
    if reason:
        plan.missing["cuda"] = reason
    return plan


def _why_no_cpu(plan: Plan) -> str:
    if sys.platform == "win32":
        return "native libraries are not built on Windows yet"
    if plan.cxx is None:
        command = os.environ.get("CXX", "c++")
        return f"no C++ compiler was found ({command}); install g++ or clang++, then reinstall"
    if plan.torch is None:
        return "torch was not found at build time; install torch, then reinstall"
    return ""


def _why_no_cuda(plan: Plan) -> str:
    assert plan.torch is not None
    if plan.torch.cuda is None:
        return f"torch {plan.torch.version} is built without CUDA; install a torch with CUDA"
    major = plan.torch.cuda_major
    if plan.cuda is None:
        where = os.environ.get("CUDA_HOME", "PATH or /usr/local/cuda")
        return f"no nvcc was found in {where}; install the CUDA {major} toolkit or set CUDA_HOME"
    if not architectures_for(plan.cuda):
        return (
            f"TORCH_CUDA_ARCH_LIST is {os.environ['TORCH_CUDA_ARCH_LIST']!r}, but the CUDA kernels "
            "need compute capability 8.0 or later; add that of your GPU, or unset the variable"
        )
    if plan.cuda.major != major:
        return (
            f"nvcc of {plan.cuda.home} is CUDA {plan.cuda.version}, but torch "
            f"{plan.torch.version} uses CUDA {plan.torch.cuda}; set CUDA_HOME to a CUDA {major} "
            f"toolkit, or install a torch for CUDA {plan.cuda.major}"
        )
    return ""
