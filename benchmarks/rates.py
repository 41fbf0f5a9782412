"""The rate of matrix products on this machine, with which the losses' times are compared."""

from __future__ import annotations

import time

import torch

from .family import Arithmetic

_ROWS = 4096
_REPEATS = 3


def product_rates(d: int) -> dict[torch.dtype, float]:
    """Return the flops per second of torch's 4096 x d x 4096 products into allocated memory."""
    return {dtype: _rate(dtype, d) for dtype in (torch.float32, torch.bfloat16)}


def _rate(dtype: torch.dtype, d: int) -> float:
    left, right = (torch.randn(_ROWS, d).to(dtype) for _ in range(2))
    out = torch.empty(_ROWS, _ROWS, dtype=dtype)
    times = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        torch.mm(left, right.T, out=out)
        times.append(time.perf_counter() - begin)
    return 2 * _ROWS * _ROWS * d / min(times)  # the best rate, because the floor is a lower bound


def dtype_of_products(arithmetic: Arithmetic) -> torch.dtype:
    return torch.float32 if arithmetic == "float32" else torch.bfloat16
