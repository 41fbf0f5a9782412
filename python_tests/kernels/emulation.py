"""Builds and imports the emulated kernels (csrc/emulation/module.cpp)."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
NAME = "cyclip_emulation"


@cache
def emulation() -> ModuleType:
    """Return the module `cyclip_emulation`; skip or fail the test if it cannot be built."""
    folder = os.environ.get("CYCLIP_EMULATION_DIR")
    return _import_from(Path(folder) if folder else _build())


def _build() -> Path:
    """Build the kernels with cmake and return the build folder."""
    missing = [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]
    missing += [] if importlib.util.find_spec("pybind11") else ["pybind11"]
    missing += [] if (ROOT / "CMakeLists.txt").exists() else ["the sources beside the tests"]
    if missing:
        reason = f"the emulated kernels need {', '.join(missing)}"
        if os.environ.get("CYCLIP_REQUIRE_EMULATION") == "1":
            pytest.fail(f"{reason}, and CYCLIP_REQUIRE_EMULATION=1")
        pytest.skip(reason)

    folder = ROOT / "build" / f"emulation-{sysconfig.get_config_var('SOABI')}"
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CYCLIP_CUDA": "OFF",
        "BUILD_TESTING": "OFF",
        "Python_EXECUTABLE": sys.executable,
    }
    configure = ["cmake", "-S", ROOT, "-B", folder, *(f"-D{k}={v}" for k, v in options.items())]
    build = ["cmake", "--build", folder, "--target", NAME, "--parallel", str(os.cpu_count())]
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another pytest may be building
        for command in configure, build:
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stdout + result.stderr
    return folder


def _import_from(folder: Path) -> ModuleType:
    paths = sorted(folder.glob(f"{NAME}.*so"))
    assert paths, f"no {NAME}.*so in {folder}: build the cmake target {NAME} there"
    spec = importlib.util.spec_from_file_location(NAME, paths[0])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
