"""Both routes of the cycle terms against the float64 truth, within bounds.py."""

from __future__ import annotations

import pytest
import torch
from losses.inputs import random_like
from torch import Tensor

from cyclip_ext import reference

from . import bounds
from .cases import LARGE, MIDDLE, PRECISIONS, Precision, as_double, rectangle
from .devices import Device, Emulated

pytestmark = pytest.mark.parametrize("precision", PRECISIONS, ids=str)

SQUARE = [(1, 1), (1, 7), (5, 3), (3, 65), (70, 33)]  # (n, d)
SHAPES = [*SQUARE, (5, 7), *((m, d) for _, m, d in MIDDLE)]
KINDS = ["random", "aligned", "narrow_cone"]


def factors(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Return P and M."""
    x, y = reference.normalize(image), reference.normalize(text)
    return x + y, x - y


def grams(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    plus, minus = factors(image, text)
    return plus.T @ plus, minus.T @ minus, plus.T @ minus


def sums(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    plus, minus = factors(image, text)
    w = plus @ minus.T
    return (w + w.T).square().sum() / 4, (w - w.T).square().sum() / 4


def _factor_error(image: Tensor, text: Tensor, precision: Precision) -> Tensor:
    """Return the error of each entry of P and M, which are rounded at the size of their terms."""
    x, y = (reference.normalize(t.double()).abs() for t in (image, text))
    return 4 * bounds.eps_of(precision) * (x + y)


def check_gradients(
    ours: tuple[Tensor, ...],
    expected: tuple[Tensor, ...],
    error: Tensor,
    features: tuple[Tensor, ...],
) -> None:
    """`error`: of dL/dX^ and dL/dY^, [n, d]."""
    for name, own, mine, true in zip(("image", "text"), features, ours, expected, strict=True):
        assert mine.dtype == own.dtype
        true = true * bounds.norms(own)
        bound = bounds.stored(bounds.projected(error, own), own, true)
        bounds.assert_within(mine.double() * bounds.norms(own), true, bound, f"{name}_grad")


def check_grams(
    device: Device,
    image: Tensor,
    text: Tensor,
    precision: Precision,
    cross_grad: Tensor | None = None,  # random if none is given
    **sizes: int | None,
) -> None:
    leaves = [t.double().requires_grad_() for t in (image, text)]
    exact = grams(*leaves)
    upstream = random_like(exact, seed=1)
    if cross_grad is not None:
        upstream = *upstream[:2], cross_grad
    expected = torch.autograd.grad(exact, leaves, upstream)
    options = {"allow_tf32": precision.allow_tf32, **sizes}
    plus, minus = (t.detach() for t in factors(*leaves))
    error = _factor_error(image, text, precision)
    for name, mine, true, a, b in zip(
        ("plus_gram", "minus_gram", "cross_gram"),
        device("cycle_grams", image, text, **options),
        exact,
        (plus, minus, plus),
        (plus, minus, minus),
        strict=True,
    ):
        bound = error.T @ (b.abs() + error) + a.abs().T @ error  # also if a and b vanish
        bound += bounds.product(a.T, b.T, precision, 0.0)
        bounds.assert_within(mine, true.detach(), bound, name)

    a, b, k = upstream
    a, b = a + a.T, b + b.T
    terms = [(plus, a), (minus, k.T), (minus, b), (plus, k)]
    of_gradient = sum(
        bounds.product(factor, g.T, precision, 0.0) + error @ g.abs() for factor, g in terms
    )
    ours = device("cycle_grams_backward", image, text, *upstream, **options)
    check_gradients(ours, expected, of_gradient, (image, text))


def check_direct(
    device: Device, image: Tensor, text: Tensor, precision: Precision, **sizes: int | None
) -> None:
    """Check products in at least float32: TF32 and 16 bits would round P and M."""
    leaves = [t.double().requires_grad_() for t in (image, text)]
    exact = sums(*leaves)
    upstream = as_double(0.7), as_double(-0.4)
    expected = torch.autograd.grad(exact, leaves, upstream)
    options = {"allow_tf32": precision.allow_tf32, **sizes}
    plus, minus = (t.detach() for t in factors(*leaves))
    error = _factor_error(image, text, precision)
    w = plus @ minus.T
    of_w = bounds.product(plus, minus, precision, 0.0)
    of_w += error @ minus.abs().T + plus.abs() @ error.T
    both = of_w + of_w.T
    for name, mine, true, half in zip(
        ("in_modal_sum", "cross_modal_sum"),
        device("cycle_direct", image, text, **options),
        exact,
        ((w + w.T) / 2, (w - w.T) / 2),
        strict=True,
    ):
        bound = (
            half.abs() * both + both.square() / 4
        ).sum() + bounds.FUNCTIONS * bounds.EPS64 * true
        bounds.assert_within(mine, true.detach(), bound.detach(), name)

    g_in, g_cross = (abs(float(g)) for g in upstream)
    g = float(upstream[0]) * (w + w.T) + float(upstream[1]) * (w - w.T)
    of_g = (g_in + g_cross) * both + bounds.eps_of(precision) * g.abs()
    of_gradient = torch.zeros_like(plus)
    for matrix, of_matrix, factor in (g, of_g, minus), (g.T, of_g.T, plus):
        of_gradient += of_matrix @ factor.abs() + matrix.abs() @ error
        of_gradient += bounds.product(matrix, factor.T, precision, 0.0)
    ours = device("cycle_direct_backward", image, text, *upstream, **options)
    check_gradients(ours, expected, of_gradient, (image, text))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_grams(device: Device, n: int, d: int, kind: str, precision: Precision) -> None:
    """The Gram matrices of the normalized rows, and their gradients."""
    check_grams(device, *rectangle(kind, n, n, d, precision.dtype), precision)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_direct(device: Device, n: int, d: int, kind: str, precision: Precision) -> None:
    """Both sums of squares, and their gradients."""
    check_direct(device, *rectangle(kind, n, n, d, precision.dtype), precision)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d"), [*SHAPES, (300, 9), (70, 130)])
def test_deflated_grams(
    emulated: Emulated, n: int, d: int, kind: str, precision: Precision
) -> None:
    """Devices without tensor cores for float64 multiply in float32, after deflation."""
    case = rectangle(kind, n, n, d, precision.dtype)
    check_grams(emulated, *case, precision, float64_is_slow=True)


@pytest.mark.parametrize("entry", [None, (40, 65)], ids=str)
def test_deflated_grams_in_chunks(
    emulated: Emulated, entry: tuple[int, int] | None, precision: Precision
) -> None:
    """Only some rows of P and M are in memory, and the gradient of K may be zero."""
    cross_grad = torch.zeros(70, 70, dtype=torch.float64)
    if entry is not None:
        cross_grad[entry] = 3.0
    case = rectangle("narrow_cone", 300, 300, 70, precision.dtype)
    options = {"panel_bytes": 0, "float64_is_slow": True}
    check_grams(emulated, *case, precision, cross_grad, **options)


# The Gram route is intended for n >= 2d, but correct for all sizes.
@pytest.mark.parametrize(
    ("check", "n", "d"),
    [(check_direct, *LARGE[0][1:]), (check_grams, 129, 513), (check_grams, 513, 130)],
)
def test_large(device: Device, check, n: int, d: int, precision: Precision) -> None:
    """Several tiles in both directions, and many steps in depth."""
    check(device, *rectangle("random", n, n, d, precision.dtype), precision)


def test_long(device: Device, precision: Precision) -> None:
    """The sum over the rows is divided into parts."""
    check_grams(device, *rectangle("random", 2100, 2100, 9, precision.dtype), precision)


def test_chunks(device: Device, precision: Precision) -> None:
    """Only some rows of P and M are in memory at the same time."""
    case = rectangle("random", 300, 300, 9, precision.dtype)
    check_grams(device, *case, precision, panel_bytes=0)


@pytest.mark.parametrize("entry", [None, (0, 0), (1, 1), (40, 65), (69, 2)], ids=str)
def test_sparse_cross_gradient(
    device: Device, entry: tuple[int, int] | None, precision: Precision
) -> None:
    """The products with the gradient of K are skipped only if it is zero."""
    cross_grad = torch.zeros(70, 70, dtype=torch.float64)
    if entry is not None:
        cross_grad[entry] = 3.0
    check_grams(device, *rectangle("random", 9, 9, 70, precision.dtype), precision, cross_grad)


def test_equal_towers(device: Device, precision: Precision) -> None:
    """M of equal towers is exactly zero."""
    image, _ = rectangle("random", 70, 70, 33, precision.dtype)
    options = {"allow_tf32": precision.allow_tf32}
    assert all(not out.any() for out in device("cycle_direct", image, image.clone(), **options))
    _, minus, cross = device("cycle_grams", image, image.clone(), **options)
    assert not minus.any()
    assert not cross.any()


@pytest.mark.parametrize("check", [check_grams, check_direct])
def test_zero_rows(device: Device, check, precision: Precision) -> None:
    """A zero row has no direction, and its norm is clamped."""
    if precision.dtype == torch.float16:
        pytest.skip("the gradient of a zero row, g / 1e-12, overflows")
    check(device, *rectangle("zero_rows", 9, 9, 5, precision.dtype), precision)
