"""Measurements of the package, and what can be known of its kernels without running them.

    python -m benchmarks loss          the losses beside their peers on the CPU: time, memory, error
    python -m benchmarks report        docs/benchmarks.md and its pictures from the CSV of `loss`
    python -m benchmarks grad_cache    a large batch in chunks: memory, time, whose gradient it is
    python -m benchmarks gpu           the first ten minutes on a GPU
    python -m benchmarks sass_report   what the compiler made of each kernel; nvcc, no GPU

Run from the root of the repository; not installed with the package. README.md says what each of
them writes.
"""

import sys
from pathlib import Path

# `python -m` puts the repository first on the path, where cyclip_ext lies without its compiled
# kernels. What is measured is the installed one, where there is one.
_ROOT = Path(__file__).resolve().parent.parent
sys.path.sort(key=lambda entry: Path(entry).resolve() == _ROOT)
