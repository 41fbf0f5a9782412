"""The same bits in every run and in every order of the threads.

A missing barrier changes the numbers in some order, or returns NaN from unwritten shared memory. A
sum without a fixed order changes the bits.
"""

from __future__ import annotations

import pytest
import torch
from losses.inputs import random_like
from torch import Tensor

from .cases import PRECISIONS, Precision, as_double, rectangle
from .devices import Device, Emulated

ORDERS = [("DESCENDING", 0), ("RANDOM", 1), ("RANDOM", 2)]
# Several tiles in both directions and several K-steps for every precision.
SHAPES = [(70, 130, 200)]


def _doubles(*sizes: int, seed: int) -> list[Tensor]:
    return list(random_like(tuple(torch.empty(s, dtype=torch.float64) for s in sizes), seed))


def calls(n: int, m: int, d: int, dtype: torch.dtype) -> dict[str, tuple]:
    """Return arguments of every operator, with statistics that a forward operator could return."""
    image, text = rectangle("random", n, m, d, dtype)
    scale, bias, g = as_double(14.3), as_double(-5.0), as_double(0.7)
    lse = [torch.full((size,), 5.0, dtype=torch.float64) for size in (n, m)]
    indices = torch.arange(n) % m, torch.arange(m) % n
    square = image, text[:n]
    labels = torch.arange(n) // 2, torch.arange(m) // 3
    return {
        "row_norms": (image,),
        "pair_statistics": (image, text, scale, 3),
        "pair_statistics_backward": (
            *(image, text, scale, 3, *lse, *indices, *_doubles(n, m, n, n, m, seed=2)),
            *(True, True),
        ),
        "sigmoid_rows": (image, text, scale, bias, 3),
        "sigmoid_rows_backward": (
            *(image, text, scale, bias, 3, *_doubles(n, seed=3)),
            *(True, True),
        ),
        "cycle_grams": square,
        "cycle_grams_backward": (*square, *(t.view(d, d) for t in _doubles(*[d * d] * 3, seed=4))),
        "cycle_direct": square,
        "cycle_direct_backward": (*square, g, -g),
        "retrieval_ranks": (image, text, *labels),
        "similarity_top_k": (image, text, min(10, m)),
    }


OPERATORS = list(calls(2, 2, 2, torch.float32))
IN_PAIRS = [operator for operator in OPERATORS if operator.startswith(("pair", "sigmoid"))]


def bits(outputs: tuple[Tensor, ...]) -> list[bytes]:
    return [
        out.contiguous().view(torch.uint8).numpy().tobytes()
        if out.dim()
        else out[None].view(torch.uint8).numpy().tobytes()
        for out in outputs
    ]


@pytest.mark.parametrize("tiles", ["chosen", "large", "pairs"])
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_orders(emulated: Emulated, operator: str, precision: Precision, tiles: str) -> None:
    """Another order of threads reveals a missing barrier or a sum without a fixed order."""
    if tiles == "pairs" and not (precision.dtype.itemsize == 2 and operator in IN_PAIRS):
        pytest.skip("the same tiles as `large`")
    for shape in SHAPES:
        arguments = calls(*shape, precision.dtype)[operator]
        options = {
            "allow_tf32": precision.allow_tf32,
            "large_tiles": None if tiles == "chosen" else 0,
        }
        options["tile_pairs"] = 0 if tiles == "pairs" else None
        options["panel_bytes"] = 65 * shape[1] * arguments[0].element_size()
        first = emulated(operator, *arguments, **options)
        assert all(not out.isnan().any() for out in first)
        for order in ORDERS:
            assert bits(emulated(operator, *arguments, order=order, **options)) == bits(first), (
                order
            )


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_runs(device: Device, operator: str, precision: Precision) -> None:
    """Two runs on the same device return the same bits."""
    arguments = calls(40, 70, 24, precision.dtype)[operator]
    first, second = (
        bits(device(operator, *arguments, allow_tf32=precision.allow_tf32)) for _ in range(2)
    )
    assert first == second


def test_rows_far_apart(emulated: Emulated) -> None:
    """Offsets of elements exceed 32 bits. Only the pages that are written take memory."""
    n, d, pitch = 5, 16, (1 << 29) + 8
    memory = torch.empty(2, n * pitch, dtype=torch.bfloat16)
    for operator, arguments in calls(n, n, d, torch.bfloat16).items():
        features = [t for t in arguments[:2] if t.shape == (n, d)]
        apart = [of.as_strided((n, d), (pitch, 1), of.storage_offset()) for of in memory]
        far = [a.copy_(t) for a, t in zip(apart, features, strict=False)]
        found = emulated(operator, *far, *arguments[len(far) :])
        assert bits(found) == bits(emulated(operator, *arguments)), operator
