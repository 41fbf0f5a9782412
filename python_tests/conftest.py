"""Options and fixtures common to all tests: reproducible examples, programs, what is native."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "reproducible",
    derandomize=True,  # the same examples in every run: a failure is a failure for everyone
    deadline=None,
    max_examples=20,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("reproducible")

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):  # pytest -n
    threads = max(1, torch.get_num_threads() // workers)
    torch.set_num_threads(threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # for the programs that tests start


def pytest_report_header(config: pytest.Config) -> str:
    import cyclip_ext

    return f"cyclip_ext: {cyclip_ext.__file__}, torch {torch.__version__}"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "native: needs the C++ operators")


def pytest_runtest_setup(item: pytest.Item) -> None:
    from cyclip_ext.libraries import has_operator

    if item.get_closest_marker("native") and not has_operator("pair_statistics", "cpu"):
        pytest.skip("the C++ operators are not built")


@pytest.fixture
def run_program(tmp_path: Path) -> Callable[..., str]:
    """Run a program in an interpreter of its own, with the cyclip_ext of this process."""

    def run(program: str, *arguments: str) -> str:
        import cyclip_ext

        # `python -c` puts the current folder first on the import path, and in a checkout that would
        # be the source tree, without its libraries.
        package = str(Path(cyclip_ext.__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        result = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run
