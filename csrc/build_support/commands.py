"""The setuptools commands: compile the planned libraries and write a record of the build.

`cyclip-info` reads the record, cyclip_ext/_build_info.json, to explain a missing backend.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

from setuptools import Command, Extension
from setuptools.command.build_py import build_py

from build_support.plan import OLDEST_PYTHON, TORCH_TARGET, Plan

RECORD = "_build_info.json"


def commands_for(plan: Plan) -> dict[str, type[Command]]:
    """Return the `cmdclass` of setup()."""
    commands = {"build_py": _recording_build_py(plan)}
    if plan.extensions():
        commands["build_ext"] = _recording_build_ext(plan)
    return commands


def options_for(plan: Plan) -> dict[str, dict[str, str]]:
    """Return the `options` of setup(): one wheel serves the oldest Python and all later ones."""
    return {"bdist_wheel": {"py_limited_api": OLDEST_PYTHON}} if plan.extensions() else {}


def _recording_build_py(plan: Plan) -> type[Command]:
    class BuildPy(build_py):
        """Copies the Python files and warns about libraries that will not be built."""

        def run(self) -> None:
            super().run()
            for backend, reason in plan.missing.items():
                self.warn(f"cyclip_ext gets no {backend} library: {reason}")
            _write_record(self, plan)

    return BuildPy


def _recording_build_ext(plan: Plan) -> type[Command]:
    # torch reads both variables when the module below is imported or used. Otherwise it guesses the
    # toolkit from the folder of nvcc, which is wrong for a wrapper script, and the architectures
    # from the GPUs of this machine, which may have none. nvcc checks the host compiler itself.
    if plan.cuda is not None:
        os.environ["CUDA_HOME"] = str(plan.cuda.home)
    if plan.architectures is not None:
        os.environ["TORCH_CUDA_ARCH_LIST"] = plan.architectures
        os.environ.setdefault("TORCH_DONT_CHECK_COMPILER_ABI", "1")
    from torch.utils.cpp_extension import BuildExtension

    class BuildExt(BuildExtension):
        """Compiles with ninja. An optional library that fails is reported and skipped."""

        def run(self) -> None:
            super().run()
            _write_record(self, plan)  # `build_ext --inplace` alone copies no Python files

        def build_extension(self, ext: Extension) -> None:
            try:
                if ext.name.endswith("_cuda"):
                    self._compile_for_hopper(ext)
                super().build_extension(ext)
            except Exception:
                if not ext.optional:
                    raise
                reason = "it did not compile; `CYCLIP_BUILD_CUDA=1 pip install -v .` shows why"
                self.warn(f"cyclip_ext gets no cuda library: {reason}")
                plan.missing["cuda"] = reason
                _write_record(self, plan)

        def _compile_for_hopper(self, ext: Extension) -> None:
            """Compile sources that need other flags than torch's, which are those of all files."""
            folder = Path(self.build_temp) / "hopper"
            folder.mkdir(parents=True, exist_ok=True)
            for source in plan.hopper_sources:
                target = str(folder / Path(source).with_suffix(".o").name)
                self.spawn(plan.hopper_command(source, target))
                ext.extra_objects.append(target)

    return BuildExt


def _write_record(command: Command, plan: Plan) -> None:
    build: Any = command.get_finalized_command("build_py")
    compilation: Any = command.get_finalized_command("build_ext")
    is_in_place = build.editable_mode or compilation.inplace
    folder = Path() if is_in_place else Path(build.build_lib)
    record = {
        "version": command.distribution.get_version(),
        "python": platform.python_version(),
        "torch": plan.torch.version if plan.torch else None,
        "torch_target": TORCH_TARGET,
        "cxx": plan.cxx.description if plan.cxx else None,
        "nvcc": plan.cuda.version if plan.cuda else None,
        "cuda_architectures": plan.architectures,
        "libraries": {
            backend: {"built": backend not in plan.missing, "reason": plan.missing.get(backend, "")}
            for backend in ("cpu", "cuda")
        },
    }
    path = folder / "cyclip_ext" / RECORD
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
