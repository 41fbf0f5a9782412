"""Programs in an interpreter of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cyclip_ext


def run_program(program: str, *arguments: str) -> str:
    """What a program prints that imports the same cyclip_ext as this process.

    `python -c` puts the current folder first on the import path, and in a checkout that would be
    the source tree, without its libraries.
    """
    package = str(Path(cyclip_ext.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as elsewhere:
        result = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=elsewhere,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 0, result.stderr
    return result.stdout
