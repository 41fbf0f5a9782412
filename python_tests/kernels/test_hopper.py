"""The engine for compute capability 9.0: orders of threads, and regions of several tiles.

CYCLIP_EMULATE_HOPPER_BLOCKS=2 runs all other tests of 16-bit features on it as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from . import test_pair_statistics, test_sigmoid
from .cases import PRECISIONS, Precision, as_double, rectangle
from .devices import Emulated
from .test_orders import ORDERS, bits, calls

BFLOAT16, FLOAT16 = PRECISIONS[:2]


@pytest.fixture
def hopper(emulated: Emulated) -> Iterator[Emulated]:
    """Return the emulator, and fail if no kernel of the engine was launched."""
    before = emulated.module.hopper_launches()
    yield emulated
    assert emulated.module.hopper_launches() > before


@pytest.mark.parametrize(
    "shape",
    # With several tiles, the last row of tiles belongs to one consumer only.
    [(300, 150, 450), (200, 100, 450)],
    ids=["several tiles of each consumer", "one tile of each consumer"],
)
@pytest.mark.parametrize("precision", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize(
    ("operator", "labels"),
    [
        ("pair_statistics", {}),
        ("pair_statistics", {"needs_hardest": False}),
        ("pair_statistics", {"same_are_positives": True}),
        ("sigmoid_rows", {}),
        ("sigmoid_rows", {"same_are_positives": True}),
        ("pair_statistics_backward", {}),
        ("pair_statistics_backward", {"same_are_positives": False}),
        ("sigmoid_rows_backward", {}),
        ("sigmoid_rows_backward", {"same_are_positives": True}),
    ],
    ids=str,
)
def test_orders(
    hopper: Emulated,
    operator: str,
    labels: dict[str, bool],
    precision: Precision,
    shape: tuple[int, int, int],
) -> None:
    """The order of threads, delays of copies and the number of blocks do not change the results.

    The seed of a random order also draws the delays. The depth exceeds the ring of stages.
    """
    n, m, _ = shape
    arguments = calls(*shape, precision.dtype)[operator]
    options: dict[str, Any] = {"large_tiles": 0, **labels}
    if labels:
        options |= {"row_labels": torch.arange(n) // 4, "col_labels": torch.arange(m) // 3}
    first = hopper(operator, *arguments, **options, hopper_blocks=1, order=("ASCENDING", 0))
    assert all(not out.isnan().any() for out in first)
    for blocks, order in [(3, ORDERS[0]), (1, ORDERS[1]), (5, ORDERS[2])]:
        again = hopper(operator, *arguments, **options, hopper_blocks=blocks, order=order)
        assert bits(again) == bits(first), (blocks, order)


@pytest.mark.parametrize("precision", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize(("n", "m"), [(8300, 9), (3, 4200)])
def test_long(hopper: Emulated, n: int, m: int, precision: Precision) -> None:
    """A region has several tiles along its rows or its columns, from this size on."""
    image, text = rectangle("random", n, m, 9, precision.dtype)
    options = {"large_tiles": 0, "hopper_blocks": 3, "order": ORDERS[1]}
    offset = 1 - n // 2
    test_pair_statistics.check_forward(hopper, image, text, 14.3, offset, precision, **options)
    arguments = image, text, as_double(14.3), offset
    slim, full = (
        hopper("pair_statistics", *arguments, needs_hardest=hardest, **options)[:3]
        for hardest in (False, True)
    )
    assert bits(slim) == bits(full)
    test_sigmoid.check(hopper, image, text, 14.3, -5.0, offset, precision, **options)
