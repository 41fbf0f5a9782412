"""PEP 517 hooks: setuptools' own, preceded by a look into the target environment.

pip builds in an environment of its own, in which torch would be the newest of the index: several
gigabytes, and perhaps for another CUDA than the torch that is already there. So, where the target
environment has a torch that will do, its headers are used in place. Only where it has none does
the build ask for one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import distributions
from typing import Any

import setuptools
from setuptools import build_meta
from setuptools.build_meta import build_sdist, get_requires_for_build_sdist

from build_support.toolchain import find_cxx

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
Settings = Mapping[str, Any] | None


def target_path() -> list[str]:
    """The import path of the environment that is installed into.

    pip's build environment is the same interpreter with another PYTHONPATH; without the variables
    that pip set, a child sees what the user sees.
    """
    hidden = {"PYTHONPATH", "PYTHONNOUSERSITE"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    program = "import json, sys; print(json.dumps(sys.path[1:]))"
    child = [sys.executable, "-c", program]
    return json.loads(subprocess.check_output(child, env=environment, text=True))


def has_usable_torch(path: list[str]) -> bool:
    """Whether the first torch on `path` is one that this package runs under."""
    for torch in distributions(name="torch", path=path):
        major, minor = torch.version.split(".")[:2]
        return (int(major), int(minor)) >= OLDEST_TORCH
    return False


def _requirements() -> list[str]:
    if find_cxx() is None:
        return []  # pure Python
    if has_usable_torch(target_path()):
        return ["ninja"]
    return ["ninja", "torch>=" + ".".join(map(str, OLDEST_TORCH))]


def _prepare() -> None:
    """Let `import torch` find the target's, behind everything of the build environment.

    Raises RuntimeError for an old setuptools, which without build isolation is the user's own.
    """
    if int(setuptools.__version__.partition(".")[0]) < OLDEST_SETUPTOOLS:
        raise RuntimeError(
            f"building cyclip_ext needs setuptools {OLDEST_SETUPTOOLS} or later, found "
            f"{setuptools.__version__}; run `pip install --upgrade setuptools ninja`, or drop "
            "--no-build-isolation"
        )
    path = target_path()
    if has_usable_torch(path):
        sys.path.extend(entry for entry in path if entry not in sys.path)


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
