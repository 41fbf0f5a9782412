"""The sigmoid loss of rows and its gradients against the float64 truth, within bounds.py."""

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
from .devices import Device

pytestmark = pytest.mark.parametrize("precision", PRECISIONS, ids=str)


def check(
    device: Device,
    image: Tensor,
    text: Tensor,
    scale: float,
    bias: float,
    offset: int,
    precision: Precision,
    needs: tuple[bool, bool] = (True, True),
    labels: Labels | None = None,
    positives: bool = False,
    **sizes: int | None,
) -> None:
    scalars = as_double(scale), as_double(bias)
    leaves = [t.double().requires_grad_() for t in (image, text, *scalars)]
    exact = truth.sigmoid_rows(*leaves, offset, labels, positives)
    (upstream,) = random_like((exact,), seed=1)
    expected = torch.autograd.grad(exact, leaves, upstream)
    options = {"allow_tf32": precision.allow_tf32, **of_labels(labels), **sizes}
    options["same_are_positives"] = positives
    (rows,) = device("sigmoid_rows", image, text, *scalars, offset, **options)
    ours = device(
        "sigmoid_rows_backward", image, text, *scalars, offset, upstream, *needs, **options
    )

    sim = reference.similarity(image.double(), text.double()).requires_grad_()
    with mock.patch.object(reference, "similarity", return_value=sim):
        of_rows = truth.sigmoid_rows(image, text, *scalars, offset, labels, positives)
    (slope,) = torch.autograd.grad(of_rows.sum(), sim)
    slope, eps = slope.abs() / abs(scale), bounds.eps_of(precision)  # d loss / d logit
    logit_error = abs(scale) * bounds.cosine(image, text, precision) + 2 * eps * (
        abs(scale) * sim.detach().abs() + abs(bias)
    )
    row_bound = (slope * logit_error).sum(dim=1) + bounds.FUNCTIONS * eps * exact.detach()
    bounds.assert_within(rows, exact.detach(), row_bound, "row_loss")

    of_logit = slope * upstream.abs()[:, None]
    of_logit_error = of_logit * (logit_error + bounds.FUNCTIONS * eps)
    magnitude, error = abs(scale) * of_logit, abs(scale) * of_logit_error
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
    cosine_error = bounds.cosine(image, text, precision)
    of_scale = (of_logit_error * sim.detach().abs() + of_logit * cosine_error).sum()
    bounds.assert_within(ours[2], expected[2], of_scale, "logit_scale_grad")
    bounds.assert_within(ours[3], expected[3], of_logit_error.sum(), "logit_bias_grad")


@pytest.mark.parametrize(
    ("scale", "bias"), [(14.3, -10.0), (1.0, 0.0), (100.0, -5.0), (-14.3, 3.0)]
)
@pytest.mark.parametrize(("n", "m", "d"), [*SMALL, *MIDDLE], ids=str)
def test_shapes(
    device: Device, n: int, m: int, d: int, scale: float, bias: float, precision: Precision
) -> None:
    """Shapes end within tiles, and softplus keeps its digits at both ends."""
    check(device, *rectangle("random", n, m, d, precision.dtype), scale, bias, 0, precision)


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize(("n", "m", "d"), LARGE, ids=str)
def test_large(device: Device, n: int, m: int, d: int, scale: float, precision: Precision) -> None:
    """Several tiles in both directions, and many steps in depth."""
    check(device, *rectangle("random", n, m, d, precision.dtype), scale, -5.0, 100, precision)


@pytest.mark.parametrize("offset", [100, -70])
def test_panels(device: Device, offset: int, precision: Precision) -> None:
    """Positives are counted once, in every choice of panels."""
    case = rectangle("random", 150, 300, 24, precision.dtype)
    check(device, *case, 14.3, -5.0, offset, precision, panel_bytes=0)


@pytest.mark.parametrize(("n", "m", "offset"), [(5, 9, 4), (70, 66, -64), (66, 70, 65), (4, 4, 7)])
def test_offsets(device: Device, n: int, m: int, offset: int, precision: Precision) -> None:
    """Positives lie off the diagonal, in a corner, or outside of the block."""
    check(device, *rectangle("random", n, m, 24, precision.dtype), 14.3, -5.0, offset, precision)


@pytest.mark.parametrize("positives", [False, True], ids=["mask", "positive"])
@pytest.mark.parametrize("labels", ["some", "few", "one"])
@LABELLED_SHAPES
def test_labels(
    device: Device,
    n: int,
    m: int,
    offset: int,
    large_tiles: int | None,
    labels: str,
    positives: bool,
    precision: Precision,
) -> None:
    """Pairs of equal labels leave the sum or become positives, in every tile."""
    case = rectangle("random", n, m, 24, precision.dtype)
    options = {"labels": labels_of(labels, n, m), "positives": positives}
    sizes = {"large_tiles": large_tiles, "panel_bytes": 0}
    check(device, *case, 14.3, -5.0, offset, precision, **options, **sizes)


@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)], ids=str)
def test_partial_gradients(device: Device, needs: tuple[bool, bool], precision: Precision) -> None:
    """A gradient does not depend on which others are needed."""
    case = rectangle("random", 70, 9, 24, precision.dtype)
    check(device, *case, 14.3, -5.0, 2, precision, needs)
