"""Measurements of the package, and what can be known of its kernels without running them.

    python -m benchmarks.sass_report   what the compiler made of each kernel; nvcc, no GPU
    python -m benchmarks.roofline      flops, bytes and lower bounds; needs nothing
    python -m benchmarks.gpu           correctness, then time and memory beside the peers

Run from the root of the repository; not installed with the package. README.md says what each of
them writes.
"""
