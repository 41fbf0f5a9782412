"""Pitch, alignment, panels and tile sizes; no memory outside the features is accessed."""

from __future__ import annotations

import pytest
import torch

from .cases import PRECISIONS, SURROUNDINGS, Precision, rectangle, surrounded
from .devices import Device, Emulated
from .test_cycle import check_direct, check_grams
from .test_pair_statistics import check
from .test_retrieval import check_ranks, check_top_k, integer_features
from .test_sigmoid import check as check_sigmoid

pytestmark = pytest.mark.parametrize("precision", PRECISIONS, ids=str)


@pytest.mark.parametrize(("left", "right"), SURROUNDINGS)
@pytest.mark.parametrize("d", [8, 13, 64])
def test_surrounded_by_nan(
    device: Device, d: int, left: int, right: int, precision: Precision
) -> None:
    """Features may be a slice of a larger matrix, whose other entries must not be read."""
    image, text = (
        surrounded(t, left, right) for t in rectangle("random", 70, 70, d, precision.dtype)
    )
    before = [t.clone() for t in (image, text)]
    check(device, image, text, 14.3, 3, precision)
    check_sigmoid(device, image, text, 14.3, -5.0, 3, precision)
    check_grams(device, image, text, precision)
    check_direct(device, image, text, precision)
    assert all(torch.equal(a, b) for a, b in zip((image, text), before, strict=True))


@pytest.mark.parametrize(("left", "right"), SURROUNDINGS[1:4])
def test_retrieval_surrounded_by_nan(
    device: Device, left: int, right: int, precision: Precision
) -> None:
    """The same holds for the operators of evaluation."""
    image, text = integer_features(40, 70, 13, precision.dtype)
    labels = torch.arange(40) // 2, torch.arange(70) // 3
    slices = [surrounded(t, left, right) for t in (image, text)]
    options = {"allow_tf32": precision.allow_tf32}
    for operator, arguments in (("retrieval_ranks", labels), ("similarity_top_k", (7,))):
        dense = device(operator, image, text, *arguments, **options)
        sliced = device(operator, *slices, *arguments, **options)
        assert all(torch.equal(a, b) for a, b in zip(dense, sliced, strict=True))


def test_rows_that_share_memory(device: Device, precision: Precision) -> None:
    """Rows may share memory: a pitch of zero (expanded), or below d (a sliding window)."""
    image, _ = rectangle("random", 1, 1, 40, precision.dtype)
    one_row = image[:, :20].expand(9, 20)
    window = image[0].unfold(0, 32, 1)
    text = rectangle("random", 9, 9, 32, precision.dtype, seed=1)[1]
    check(device, one_row, text[:, :20].contiguous(), 14.3, 0, precision)
    check(device, window, text, 14.3, 0, precision)


@pytest.mark.parametrize("rows", [1, 64, 130])
def test_panels(emulated: Emulated, rows: int, precision: Precision) -> None:
    """Panels accumulate into the same gradients, and need not be a multiple of a tile."""
    image, text = rectangle("random", 200, 70, 24, precision.dtype)
    panel_bytes = rows * 70 * image.element_size()
    check(emulated, image, text, 14.3, 3, precision, panel_bytes=panel_bytes)


@pytest.mark.parametrize(("n", "d"), [(1601, 72), (1700, 520), (4100, 40)])
def test_batch_that_takes_large_tiles(device: Device, n: int, d: int, precision: Precision) -> None:
    """From N = 1,409 on, a device chooses 128 x 128 tiles automatically; from 3,969 on, pairs."""
    emulated = isinstance(device, Emulated)
    is_long = n > 1700 or precision.dtype == torch.float64
    if emulated and (is_long or (d > 72 and str(precision) != "bfloat16")):
        pytest.skip("takes a minute under emulation; float64 has no large tiles")
    image, text = rectangle("random", n, n, d, precision.dtype)
    check(device, image, text, 14.3, 3, precision)
    if not emulated or d == 72:
        check_sigmoid(device, image, text, 14.3, -5.0, 3, precision)
    if not emulated:
        check_grams(device, image, text, precision)
        check_direct(device, image, text, precision)
        image, text = integer_features(n, n, d, precision.dtype)
        labels = torch.arange(n) // 2, torch.arange(n) // 3
        check_ranks(device, image, text, labels, precision)
        check_top_k(device, image, text, 33, precision)


@pytest.mark.parametrize(("n", "m", "d"), [(5, 3, 7), (77, 130, 72), (129, 257, 40)])
def test_large_tiles(emulated: Emulated, n: int, m: int, d: int, precision: Precision) -> None:
    """Small problems do not use the 128 x 128 tile automatically."""
    image, text = rectangle("random", n, m, d, precision.dtype)
    check(emulated, image, text, 14.3, 3, precision, large_tiles=1)
    check_sigmoid(emulated, image, text, 14.3, -5.0, 3, precision, large_tiles=1)
    square = [t[: min(n, m)] for t in (image, text)]
    check_grams(emulated, *square, precision, large_tiles=1)
    check_direct(emulated, *square, precision, large_tiles=1)
    image, text = integer_features(n, m, d, precision.dtype)
    labels = torch.arange(n) // 2, torch.arange(m) // 3
    check_ranks(emulated, image, text, labels, precision, large_tiles=1)
    check_top_k(emulated, image, text, min(m, 33), precision, large_tiles=1)


@pytest.mark.parametrize(("n", "m", "d"), [(5, 3, 7), (129, 257, 72), (140, 250, 200)])
@pytest.mark.parametrize("panel_side", [128, 512])
def test_pairs_of_large_tiles(
    emulated: Emulated, n: int, m: int, d: int, panel_side: int, precision: Precision
) -> None:
    """The second tile of a pair may lie outside the matrix or the panel."""
    if precision.dtype not in (torch.bfloat16, torch.float16):
        pytest.skip("pairs of tiles are for 16-bit features")
    image, text = rectangle("random", n, m, d, precision.dtype)
    options = {"large_tiles": 0, "tile_pairs": 0, "panel_bytes": 2 * panel_side**2}
    check(emulated, image, text, 14.3, 3, precision, **options)
    check_sigmoid(emulated, image, text, 14.3, -5.0, 3, precision, **options)
