"""Pitch, alignment, panels and tile sizes; and nothing beside the features is read or written."""

from __future__ import annotations

import pytest
import torch

from . import bounds
from .cases import PRECISIONS, Precision, as_double, rectangle, surrounded
from .devices import Device, Emulated
from .test_cycle import check_direct, check_grams
from .test_pair_statistics import check
from .test_retrieval import integer_features
from .test_sigmoid import check as check_sigmoid

pytestmark = pytest.mark.parametrize("precision", PRECISIONS, ids=str)

# Elements of NaN to the left and right of the rows: aligned or not, in address and in pitch.
SURROUNDINGS = [(8, 8), (0, 1), (1, 0), (1, 7), (3, 2)]


@pytest.mark.parametrize(("left", "right"), SURROUNDINGS)
@pytest.mark.parametrize("d", [8, 13, 64])
def test_surrounded_by_nan(
    device: Device, d: int, left: int, right: int, precision: Precision
) -> None:
    """Wrong: an operator reads beside its features, which are a slice of something larger."""
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
    """Wrong: the same of the operators of evaluation."""
    image, text = integer_features(40, 70, 13, precision.dtype)
    labels = torch.arange(40) // 2, torch.arange(70) // 3
    slices = [surrounded(t, left, right) for t in (image, text)]
    options = {"allow_tf32": precision.allow_tf32}
    for operator, arguments in (("retrieval_ranks", labels), ("similarity_top_k", (7,))):
        dense = device(operator, image, text, *arguments, **options)
        sliced = device(operator, *slices, *arguments, **options)
        assert all(torch.equal(a, b) for a, b in zip(dense, sliced, strict=True))


@pytest.mark.parametrize(("left", "right"), [(0, 0), *SURROUNDINGS])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (5, 3), (9, 40), (33, 257)])
def test_row_norms(
    device: Device, n: int, d: int, left: int, right: int, precision: Precision
) -> None:
    """Wrong: a norm that overflows or underflows on the way, its floor of 1e-12, its dtype."""
    image, _ = rectangle("zero_rows", n, n, d, precision.dtype)
    if precision.dtype != torch.float16 and n > 4:
        image[1] *= 1e25  # squares leave the range of float32
        image[2] *= 1e-25
    image = surrounded(image, left, right)
    (norms,) = device("row_norms", image)
    assert norms.dtype == precision.accumulation
    exact = image.double().norm(dim=1).clamp_min(1e-12)
    bounds.assert_within(norms, exact, 2 * bounds.eps_of(precision) * exact, "norms")


def test_rows_that_share_memory(device: Device, precision: Precision) -> None:
    """Wrong: a pitch of zero (expanded rows) or below d (a sliding window)."""
    image, _ = rectangle("random", 1, 1, 40, precision.dtype)
    one_row = image[:, :20].expand(9, 20)
    window = image[0].unfold(0, 32, 1)
    text = rectangle("random", 9, 9, 32, precision.dtype, seed=1)[1]
    check(device, one_row, text[:, :20].contiguous(), 14.3, 0, precision)
    check(device, window, text, 14.3, 0, precision)


@pytest.mark.parametrize("rows", [1, 64, 130])
def test_panels(emulated: Emulated, rows: int, precision: Precision) -> None:
    """Wrong: what one panel leaves to the next, and panels that are not a multiple of a tile."""
    image, text = rectangle("random", 200, 70, 24, precision.dtype)
    panel_bytes = rows * 70 * image.element_size()
    check(emulated, image, text, 14.3, 3, precision, panel_bytes=panel_bytes)


@pytest.mark.parametrize(("n", "m", "d"), [(5, 3, 7), (77, 130, 72), (129, 257, 40)])
def test_large_tiles(emulated: Emulated, n: int, m: int, d: int, precision: Precision) -> None:
    """Wrong: the 128 x 128 tile, which small problems do not get by themselves."""
    image, text = rectangle("random", n, m, d, precision.dtype)
    check(emulated, image, text, 14.3, 3, precision, large_tiles=0)
    if n == 5:
        square = image[:3]
        assert torch.isfinite(emulated("cycle_direct", square, text, large_tiles=0)[0]).all()


def test_wrong_arguments(emulated: Emulated, precision: Precision) -> None:
    """Wrong: the module of the emulated kernels takes what it would misread."""
    image, text = rectangle("random", 4, 4, 3, precision.dtype)
    with pytest.raises(ValueError, match="unit column stride"):
        emulated("row_norms", image.T)
    with pytest.raises(ValueError, match="logit_scale must be dense"):
        emulated("pair_statistics", image, text, as_double(1.0).float(), 0)
