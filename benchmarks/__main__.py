"""`python -m benchmarks PROGRAM`: runs a program of this folder."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import benchmarks

PROGRAMS = ("loss", "report", "grad_cache", "gpu", "sass_report")


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] not in PROGRAMS:
        print(benchmarks.__doc__)
        return 0 if list(arguments) in (["-h"], ["--help"]) else 2
    # Imports only this program, because the programs have different dependencies.
    program = importlib.import_module(f"benchmarks.{arguments[0]}")
    status: int = program.main(arguments[1:])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
