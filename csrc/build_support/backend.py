"""PEP 517 hooks: those of setuptools, which build against the torch of the target environment.

pip builds in an isolated environment and would download the newest torch into it: several
gigabytes, possibly for another CUDA version than the installed torch. If the target environment
has a suitable torch, these hooks use its headers in place. Otherwise the build requires a torch.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import setuptools
from setuptools import build_meta
from setuptools.build_meta import build_sdist, get_requires_for_build_sdist

from build_support.toolchain import Torch, find_cuda, find_cxx, find_torch

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

OLDEST_TORCH = (2, 10)
OLDEST_SETUPTOOLS = 77  # reads the license expression in pyproject.toml; has bdist_wheel
OLDEST_CUDA_WHEELS = 13  # the first major version whose wheels on PyPI contain nvcc
CUDA_WHEELS = ("cuda-nvcc", "nvvm", "cuda-crt", "cuda-runtime", "cuda-cccl")
Settings = Mapping[str, Any] | None


def target_pythons() -> list[str]:
    """Return the interpreters whose environment may be the target, best candidate first.

    pip builds with the interpreter of the target. `python -m build` and uv build with one of their
    own: the target is then the active environment, `.venv` in the folder of the sources or in that
    of the command (uv hides VIRTUAL_ENV and builds an sdist in its cache), or the environment of a
    `python` further down on PATH.
    """
    if "PIP_BUILD_TRACKER" in os.environ:  # set by pip
        return [sys.executable]
    named = [os.environ.get("VIRTUAL_ENV"), os.environ.get("CONDA_PREFIX"), ".venv"]
    named.append(str(Path(os.environ.get("PWD", "")) / ".venv"))
    on_path = os.environ.get("PATH", "").split(os.pathsep)
    folders = [str(Path(prefix) / "bin") for prefix in named if prefix] + on_path
    found = [shutil.which("python", path=folder) for folder in folders]
    return list(dict.fromkeys([sys.executable, *(python for python in found if python)]))


def import_path_of(python: str) -> list[str]:
    """Return the import path of an interpreter without the variables that pip sets for a build."""
    hidden = {"PYTHONPATH", "PYTHONNOUSERSITE"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    program = "import json, sys; print(json.dumps(sys.path[1:]))"
    child = [python, "-c", program]
    try:
        return json.loads(subprocess.check_output(child, env=environment, text=True))
    except (OSError, subprocess.CalledProcessError, ValueError):
        return []


def installed_torch() -> tuple[Torch, list[str]] | None:
    """Find the first suitable torch of the target environment, with the path to import it from."""
    for python in target_pythons():
        path = import_path_of(python)
        torch = find_torch(path)
        if torch is not None and torch.release >= OLDEST_TORCH:
            return torch, path
    return None


def _requirements() -> list[str]:
    if find_cxx() is None:
        return []  # pure Python
    found = installed_torch()
    if found is None:
        return ["ninja", "torch>=" + ".".join(map(str, OLDEST_TORCH))]
    return ["ninja", *_nvcc_requirements(found[0])]


def _nvcc_requirements(torch: Torch) -> list[str]:
    """Return the wheels of PyPI that hold an nvcc, if torch has CUDA and no toolkit fits it."""
    if torch.cuda is None or torch.cuda_major is None or os.environ.get("CYCLIP_BUILD_CUDA") == "0":
        return []
    toolkit = find_cuda(torch.cuda_major)
    if toolkit is not None and toolkit.major == torch.cuda_major:
        return []
    if int(torch.cuda_major) < OLDEST_CUDA_WHEELS or sys.platform != "linux":
        return []
    return [f"nvidia-{part}=={torch.cuda}.*" for part in CUDA_WHEELS]


def _prepare() -> None:
    """Append the target's import path, so that `import torch` finds the target's torch.

    Raises:
        RuntimeError: if setuptools is too old. Without build isolation it is the user's.
    """
    if int(setuptools.__version__.partition(".")[0]) < OLDEST_SETUPTOOLS:
        raise RuntimeError(
            f"building cyclip_ext needs setuptools {OLDEST_SETUPTOOLS} or later, found "
            f"{setuptools.__version__}; run `pip install --upgrade setuptools ninja`, or drop "
            "--no-build-isolation"
        )
    found = installed_torch()
    if found is not None:
        sys.path.extend(entry for entry in found[1] if entry not in sys.path)


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    return _requirements()


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    return _requirements()


def prepare_metadata_for_build_wheel(directory: str, config_settings: Settings = None) -> str:
    _prepare()
    return build_meta.prepare_metadata_for_build_wheel(directory, config_settings)


def prepare_metadata_for_build_editable(directory: str, config_settings: Settings = None) -> str:
    _prepare()
    return build_meta.prepare_metadata_for_build_editable(directory, config_settings)


def build_wheel(
    directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    _prepare()
    return build_meta.build_wheel(directory, config_settings, metadata_directory)


def build_editable(
    directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    _prepare()
    return build_meta.build_editable(directory, config_settings, metadata_directory)
