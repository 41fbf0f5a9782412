"""Norms of rows against the float64 truth."""

from __future__ import annotations

import pytest
import torch

from . import bounds
from .cases import PRECISIONS, SURROUNDINGS, Precision, rectangle, surrounded
from .devices import Device


@pytest.mark.parametrize("precision", [p for p in PRECISIONS if not p.allow_tf32], ids=str)
@pytest.mark.parametrize(("left", "right"), [(0, 0), *SURROUNDINGS])
@pytest.mark.parametrize(
    ("n", "d"), [(1, 1), (5, 7), (9, 40), (77, 72), (33, 257), (128, 64), (129, 513)]
)
def test_row_norms(
    device: Device, n: int, d: int, left: int, right: int, precision: Precision
) -> None:
    """Squares of large and small rows leave the range of float32; zero rows have norm 1e-12."""
    image, _ = rectangle("zero_rows", n, n, d, precision.dtype)
    if precision.dtype != torch.float16 and n > 4:
        image[1] *= 1e25  # squares leave the range of float32
        image[2] *= 1e-25
    image = surrounded(image, left, right)
    (norms,) = device("row_norms", image)
    assert norms.dtype == precision.accumulation
    exact = image.double().norm(dim=1).clamp_min(1e-12)
    bounds.assert_within(norms, exact, 2 * bounds.eps_of(precision) * exact, "norms")
