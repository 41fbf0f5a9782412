"""Measurements of the package, and an analysis of its compiled CUDA kernels.

    python -m benchmarks loss          time, memory and error of the losses and their peers on a CPU
    python -m benchmarks report        docs/benchmarks.md and its plots from the CSV of `loss`
    python -m benchmarks grad_cache    a large batch in chunks: memory, time, gradient
    python -m benchmarks gpu           correctness, times and peers on a GPU, in ten minutes
    python -m benchmarks sass_report   the machine code of each CUDA kernel; needs nvcc but no GPU

Run from the root of the repository. README.md describes the output.
"""

import sys
from pathlib import Path

# `python -m` puts the repository first on the path, where cyclip_ext has no compiled kernels. An
# installed cyclip_ext takes precedence.
_ROOT = Path(__file__).resolve().parent.parent
sys.path.sort(key=lambda entry: Path(entry).resolve() == _ROOT)
