"""Softmax statistics and their gradients against the float64 truth, within bounds.py."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from losses import truth
from losses.inputs import random_like
from torch import Tensor

from cyclip_ext import reference

from . import bounds
from .cases import (
    LABELLED_SHAPES,
    LABELS,
    LARGE,
    MIDDLE,
    PRECISIONS,
    SMALL,
    Labels,
    Precision,
    as_double,
    labels_of,
    of_labels,
    rectangle,
)
from .devices import Device, Emulated

pytestmark = pytest.mark.parametrize("precision", PRECISIONS, ids=str)

SCALES = [1.0, 14.3, 100.0]


def similarity(image: Tensor, text: Tensor) -> Tensor:
    return reference.similarity(image.double(), text.double())


def _of_side(stats: truth.PairStatistics, side: str) -> list[Tensor]:
    return [getattr(stats, f"{side}_{what}") for what in ("lse", "hardest", "hardest_index")]


def check_forward(
    device: Device,
    image: Tensor,
    text: Tensor,
    scale: float,
    offset: int,
    precision: Precision,
    labels: Labels | None = None,
    positives: bool = False,
    **options: int | None,
) -> None:
    exact = truth.pair_statistics(
        image.double(), text.double(), as_double(scale), offset, labels, positives
    )
    ours = truth.PairStatistics(
        *device(
            "pair_statistics",
            image,
            text,
            as_double(scale),
            offset,
            allow_tf32=precision.allow_tf32,
            same_are_positives=positives,
            **of_labels(labels),
            **options,
        )
    )
    error, sim = bounds.cosine(image, text, precision), similarity(image, text)
    eps = bounds.eps_of(precision)
    for side, along in ("row", 1), ("col", 0):
        ours_lse, ours_hardest, ours_index = _of_side(ours, side)
        exact_lse, exact_hardest, exact_index = _of_side(exact, side)
        worst = error.amax(dim=along)
        of_log = 4 * bounds.EPS64 * exact_lse.abs().nan_to_num(posinf=0)
        bound = abs(scale) * worst + bounds.FUNCTIONS * eps + of_log
        bounds.assert_within(ours_lse, exact_lse, bound, f"{side}_lse")
        bounds.assert_within(ours_hardest, exact_hardest, worst, f"{side}_hardest")
        assert torch.equal(ours_index == -1, exact_index == -1)
        values = sim.gather(along, ours_index.clamp_min(0).unsqueeze(along)).squeeze(along)
        values = values.where(ours_index >= 0, -torch.inf)
        bounds.assert_within(values, exact_hardest, 2 * worst, f"{side}_hardest_index")
        positive = torch.arange(len(ours_index)) + (offset if along else -offset)
        assert not ((ours_index == positive) & (ours_index >= 0)).any(), "a positive as negative"
        if labels is not None:
            own, other = labels if along else labels[::-1]
            same = own == other[ours_index.clamp_min(0)]
            assert not (same & (ours_index >= 0)).any(), "a pair of equal labels as negative"
    rows = torch.arange(len(image))
    inside = (rows + offset >= 0) & (rows + offset < len(text))
    of_positive = torch.zeros(len(image), dtype=torch.float64)
    of_positive[inside] = error[rows[inside], rows[inside] + offset]
    bounds.assert_within(ours.positive, exact.positive, of_positive, "positive")


def check_backward(
    device: Device,
    image: Tensor,
    text: Tensor,
    scale: float,
    offset: int,
    precision: Precision,
    needs: tuple[bool, bool] = (True, True),
    labels: Labels | None = None,
    weight: float = 1.0,
    **options: int | None,
) -> None:
    """Check the gradients of exact statistics, so that no error of the forward operator counts."""
    leaves = [t.double().requires_grad_() for t in (image, text, as_double(scale))]
    exact = truth.pair_statistics(*leaves, offset, labels)
    upstream = random_like(exact[:5], seed=1)
    upstream = [
        torch.where(out.isfinite(), weight * g, 0.0)
        for out, g in zip(exact[:5], upstream, strict=True)
    ]
    expected = torch.autograd.grad(
        exact[:5], leaves, upstream, allow_unused=True, materialize_grads=True
    )
    ours = device(
        "pair_statistics_backward", image, text, as_double(scale), offset,
        *(t.detach() for t in (exact.row_lse, exact.col_lse)),
        exact.row_hardest_index, exact.col_hardest_index,
        *upstream, *needs, allow_tf32=precision.allow_tf32, **of_labels(labels), **options,
    )  # fmt: skip

    sim = similarity(image, text).requires_grad_()
    with mock.patch.object(reference, "similarity", return_value=sim):
        outputs = truth.pair_statistics(image, text, as_double(scale), offset, labels)[:5]
    magnitudes = []
    for used in (0, 1), (2, 3, 4):  # separately, because the two could cancel
        grads = [g.abs() if i in used else 0 * g for i, g in enumerate(upstream)]
        magnitudes.append(torch.autograd.grad(outputs, sim, grads, retain_graph=True)[0].abs())
    of_softmax, magnitude = magnitudes[0], sum(magnitudes)
    cosine_error = bounds.cosine(image, text, precision)
    error = bounds.pair_gradient(magnitude, scale, cosine_error, precision)

    sides = ((image, text, magnitude, error), (text, image, magnitude.T, error.T))
    for name, (own, other, g, of_g), mine, true, needed in zip(
        ("image_grad", "text_grad"), sides, ours, expected, needs, strict=False
    ):
        assert mine.dtype == own.dtype
        if not needed:
            assert mine.shape == (0, own.shape[1])
            continue
        true = true * bounds.norms(own)
        bound = bounds.feature_gradient(g, of_g, own, other, true, precision)
        bounds.assert_within(mine.double() * bounds.norms(own), true, bound, name)
    slope = bounds.pair_gradient(of_softmax, scale, cosine_error, precision) * sim.detach().abs()
    of_scale = (slope + of_softmax * cosine_error).sum() / abs(scale)
    rounding = 4 * bounds.EPS64 * (of_softmax * sim.detach().abs()).sum() / abs(scale)
    bounds.assert_within(ours[2], expected[2], of_scale + rounding, "logit_scale_grad")


def check(device: Device, *case, **options) -> None:
    check_forward(device, *case, **options)
    check_backward(device, *case, **options)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("n", "m", "d"), [*SMALL, *MIDDLE], ids=str)
def test_shapes(device: Device, n: int, m: int, d: int, scale: float, precision: Precision) -> None:
    """Shapes end within tiles, steps in depth and rows; scales reach the range of exponents."""
    image, text = rectangle("random", n, m, d, precision.dtype)
    check(device, image, text, scale, 0, precision)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("n", "m", "d"), LARGE, ids=str)
def test_large(device: Device, n: int, m: int, d: int, scale: float, precision: Precision) -> None:
    """Several tiles in both directions, and many steps in depth."""
    image, text = rectangle("random", n, m, d, precision.dtype)
    check(device, image, text, scale, 100, precision)


@pytest.mark.parametrize(("n", "m"), [(2100, 66), (3, 2100)])
def test_long(device: Device, n: int, m: int, precision: Precision) -> None:
    """A block has several tiles, a sum several parts, a gradient several panels."""
    image, text = rectangle("random", n, m, 9, precision.dtype)
    check(device, image, text, 14.3, 1 - n // 2, precision, panel_bytes=0)


@pytest.mark.parametrize("scale", [20.0, 40.0, 100.0, 3000.0])
def test_spread_within_a_tile(device: Device, scale: float, precision: Precision) -> None:
    """One shift for all lines of a tile would underflow for half of the rows."""
    image, text = rectangle("narrow_cone", 140, 70, 24, precision.dtype)
    image[::2] *= -1
    check(device, image, text, scale, 3, precision)


@pytest.mark.parametrize("weight", [1e-25, 1e25])
def test_extreme_upstream_gradients(device: Device, weight: float, precision: Precision) -> None:
    """Weights of a spread of 2^58 must neither overflow nor underflow."""
    if precision.dtype == torch.float16:
        pytest.skip("the gradients are outside of the range")
    image, text = rectangle("narrow_cone", 140, 70, 24, precision.dtype)
    image[::2] *= -1
    check_backward(device, image, text, 20.0, 3, precision, weight=weight)


@pytest.mark.parametrize("labels", ["some", "few", "one"])
@LABELLED_SHAPES
def test_labels(
    device: Device,
    n: int,
    m: int,
    offset: int,
    large_tiles: int | None,
    labels: str,
    precision: Precision,
) -> None:
    """Pairs of equal labels are masked in every tile, in rows of one label all of them."""
    image, text = rectangle("random", n, m, 24, precision.dtype)
    known = labels_of(labels, n, m)
    sizes = {"large_tiles": large_tiles, "panel_bytes": 0}
    check_forward(device, image, text, 14.3, offset, precision, known, **sizes)
    check_backward(device, image, text, 14.3, offset, precision, labels=known, **sizes)


@pytest.mark.parametrize("scale", [14.3, -14.3])
@pytest.mark.parametrize("labels", ["some", "one"])
@LABELLED_SHAPES
def test_further_positives(
    device: Device,
    n: int,
    m: int,
    offset: int,
    large_tiles: int | None,
    labels: str,
    scale: float,
    precision: Precision,
) -> None:
    """They are in the sums, where they may have the largest logit, but never the hardest."""
    image, text = rectangle("random", n, m, 24, precision.dtype)
    known = labels_of(labels, n, m)
    options = {"labels": known, "positives": True, "large_tiles": large_tiles}
    check_forward(device, image, text, scale, offset, precision, **options)


@pytest.mark.parametrize(
    ("needs_hardest", "positives", "large_tiles"),
    [(False, False, None), (False, False, 0), (True, False, None), (True, True, None)],
)
def test_distinct_labels_change_no_bit(
    emulated: Emulated,
    needs_hardest: bool,
    positives: bool,
    large_tiles: int | None,
    precision: Precision,
) -> None:
    """A tile is summed as without labels. With the hardest negatives, labels use small tiles."""
    image, text = rectangle("random", 70, 130, 24, precision.dtype)
    labels = {"row_labels": torch.arange(70) + 3, "col_labels": torch.arange(130)}
    results = [
        emulated(
            *("pair_statistics", image, text, as_double(14.3), 3),
            allow_tf32=precision.allow_tf32,
            needs_hardest=needs_hardest,
            same_are_positives=positives,
            large_tiles=large_tiles,
            **known,
        )
        for known in ({}, labels)
    ]
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("positives", [False, True], ids=["mask", "positive"])
def test_ties_with_labels(device: Device, positives: bool, precision: Precision) -> None:
    """The first of several equal cosines counts that has another label."""
    image, text = rectangle("ties", 70, 130, 24, precision.dtype)
    known = labels_of("some", 70, 130)
    exact = truth.pair_statistics(image.double(), text.double(), 14.3, 3, known)
    ours = truth.PairStatistics(
        *device(
            *("pair_statistics", image, text, as_double(14.3), 3),
            allow_tf32=precision.allow_tf32,
            same_are_positives=positives,
            **of_labels(known),
        )
    )
    assert torch.equal(ours.row_hardest_index, exact.row_hardest_index)
    assert torch.equal(ours.col_hardest_index, exact.col_hardest_index)


@pytest.mark.parametrize(
    ("labels", "positives"), [*((kind, False) for kind in LABELS), ("some", True)]
)
def test_without_hardest(
    device: Device, labels: str, positives: bool, precision: Precision
) -> None:
    """The hardest negatives are optional, and other results do not depend on them."""
    image, text = rectangle("random", 140, 70, 24, precision.dtype)
    for scale in 14.3, -14.3:
        arguments = image, text, as_double(scale), -30
        known = of_labels(labels_of(labels, 140, 70))
        options = {"allow_tf32": precision.allow_tf32, "same_are_positives": positives, **known}
        full = truth.PairStatistics(*device("pair_statistics", *arguments, **options))
        slim = truth.PairStatistics(
            *device("pair_statistics", *arguments, needs_hardest=False, **options)
        )
        for name in "row_lse", "col_lse", "positive":
            assert torch.equal(getattr(slim, name), getattr(full, name)), name
        for hardest in slim.row_hardest, slim.col_hardest:
            assert (hardest == -torch.inf).all()
        for index in slim.row_hardest_index, slim.col_hardest_index:
            assert (index == -1).all()


@pytest.mark.parametrize(
    ("n", "m", "offset"),
    [(5, 9, 4), (5, 9, 6), (9, 5, -3), (70, 66, -64), (66, 70, 65), (4, 4, 7), (4, 4, -4)],
)
def test_offsets(device: Device, n: int, m: int, offset: int, precision: Precision) -> None:
    """Positives lie off the diagonal, in a corner, or outside of the block."""
    check(device, *rectangle("random", n, m, 24, precision.dtype), 14.3, offset, precision)


@pytest.mark.parametrize(
    "kind", ["aligned", "duplicates", "narrow_cone", "modality_gap", "zero_rows"]
)
@pytest.mark.parametrize("scale", [1e-3, 100.0])
def test_hard_inputs(device: Device, kind: str, scale: float, precision: Precision) -> None:
    """Sums must not underflow or overflow, and zero rows have no direction."""
    image, text = rectangle(kind, 37, 37, 24, precision.dtype)
    if (
        kind == "zero_rows" and precision.dtype == torch.float16
    ):  # its gradient, g / 1e-12, overflows
        check_forward(device, image, text, scale, 0, precision)
    else:
        check(device, image, text, scale, 0, precision)


def test_negative_scale(device: Device, precision: Precision) -> None:
    """With a negative scale, the smallest cosine has the largest logit."""
    check(device, *rectangle("random", 20, 30, 8, precision.dtype), -14.3, 3, precision)


@pytest.mark.parametrize(("n", "m", "offset"), [(40, 70, 0), (140, 70, -30)])
def test_ties(device: Device, n: int, m: int, offset: int, precision: Precision) -> None:
    """The first of several equal cosines counts, within a tile and between tiles."""
    image, text = rectangle("ties", n, m, 24, precision.dtype)
    exact = truth.pair_statistics(image.double(), text.double(), 14.3, offset)
    ours = truth.PairStatistics(
        *device(
            "pair_statistics", image, text, as_double(14.3), offset, allow_tf32=precision.allow_tf32
        )
    )
    assert torch.equal(ours.row_hardest_index, exact.row_hardest_index)
    assert torch.equal(ours.col_hardest_index, exact.col_hardest_index)
    assert torch.equal(ours.row_hardest, exact.row_hardest)
    check_backward(device, image, text, 14.3, offset, precision)


@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)], ids=str)
def test_partial_gradients(device: Device, needs: tuple[bool, bool], precision: Precision) -> None:
    """A gradient does not depend on which others are needed."""
    check_backward(
        device, *rectangle("random", 70, 9, 24, precision.dtype), 14.3, 2, precision, needs
    )
