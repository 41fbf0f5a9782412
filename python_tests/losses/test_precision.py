"""Precision beyond the bound: bfloat16 products of rounded features, and losses of 1e-30.

Dense code computes log(e^z + tiny) - z = 0 as soon as the loss is below one ulp of the logit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import cyclip_ext
from cyclip_ext import functional, reference

from . import truth
from .inputs import FUNCTIONS, make_features

SHAPES = [(1, 1), (2, 3), (33, 65), (129, 512), (300, 130)]


EXACT = {
    "contrastive": truth.contrastive_loss,
    "sigmoid": lambda x, y, s: reference.sigmoid_loss(x, y, s, -5.0),
}


def _bf16(name: str, backend: str = "native") -> Callable[..., Tensor]:
    return functools.partial(FUNCTIONS[name], precision="bf16", backend=backend)


def _run(loss, *inputs: Tensor) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    value = loss(*leaves)
    value.backward()
    return [value.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("kind", ["random", "narrow_cone", "aligned"])
@pytest.mark.parametrize(("n", "d"), SHAPES, ids=str)
def test_bf16_loss_is_that_of_the_rounded_features(
    n: int, d: int, kind: str, name: str, backend: str
) -> None:
    """Dense bfloat16 code rounds the cosines as well, and s multiplies the error."""
    features = make_features(kind, n, d, dtype=torch.float32)
    rounded = [t.bfloat16().double() for t in features]
    value, *gradients = _run(_bf16(name, backend), *features, torch.tensor(14.3))
    expected, *true = _run(EXACT[name], *rounded, torch.tensor(14.3).double())
    assert value.dtype == torch.float32
    if backend == "native":  # the reference cancels, as dense code does
        torch.testing.assert_close(value.double(), expected, rtol=2e-5, atol=1e-9)
    for mine, exact in zip(gradients[:2], true[:2], strict=True):
        assert mine.dtype == torch.float32
        # One rounding of dL/dS to 8 bits: of every entry by itself, and not of their sum.
        assert (mine.double() - exact).norm() <= 2**-7 * exact.norm() + 1e-6


@pytest.mark.native
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_bf16_leaves_other_dtypes_alone(dtype: torch.dtype) -> None:
    inputs = (*make_features("random", 33, 20, dtype=dtype), torch.tensor(5.0))
    plain = _run(lambda *a: functional.contrastive_loss(*a, backend="native"), *inputs)
    for a, b in zip(_run(_bf16("contrastive"), *inputs), plain, strict=True):
        assert torch.equal(a, b)


@pytest.mark.native
@pytest.mark.parametrize("n", [5, 130])
def test_bf16_rounds_as_torch_does(n: int) -> None:
    features = make_features("random", n, 64, dtype=torch.float32)
    scale = torch.tensor(14.3)
    by_argument = _bf16("contrastive")(*features, scale)
    by_dtype = functional.contrastive_loss(*(t.bfloat16() for t in features), scale)
    assert torch.equal(by_argument, by_dtype)


@pytest.mark.native
@pytest.mark.parametrize("kind", ["random", "cone", "tiny", "nan", "ties"])
@pytest.mark.parametrize("d", [1, 7, 24, 33])
def test_cycle_gradients_of_bfloat16_are_those_of_float32_rounded(kind: str, d: int) -> None:
    """By Gram matrices, where only the features and their gradients are bfloat16."""
    features = [t.bfloat16() for t in make_features("random", 50, d)]
    if kind == "cone":
        features = [t + 8 for t in features]
    elif (
        kind == "tiny"
    ):  # with denormal gradients of the large rows, and infinite ones of the small
        features = [t * torch.logspace(-38, 38, 50)[:, None].bfloat16() for t in features]
    elif kind == "nan":
        features[0][3, d // 2] = torch.nan
    elif kind == "ties":  # integers above 256 with an upstream gradient of integers
        axes = torch.eye(d).bfloat16().repeat(51, 1)
        features = [axes[:50], axes[1:51]]
    ops = torch.ops.cyclip_ext
    wide = [t.float() for t in features]
    upstream = [(300 * torch.randn(d, d, dtype=torch.float64)).round() for _ in range(3)]
    gradients = ops.cycle_grams_backward(*wide, *upstream)
    found = *ops.cycle_grams(*features), *ops.cycle_grams_backward(*features, *upstream)
    expected = *ops.cycle_grams(*wide), *(t.bfloat16() for t in gradients)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.native
def test_bf16_infinity_makes_the_loss_nan() -> None:
    """Two numbers share a word, and infinity may meet a padding zero."""
    image, text = make_features("random", 3, 3, dtype=torch.float32)
    image[1, 2] = torch.inf
    loss, image_grad, *_ = _run(_bf16("contrastive"), image, text, torch.tensor(5.0))
    assert loss.isnan()
    assert image_grad.isnan().any()


def test_unknown_precision_raises() -> None:
    with pytest.raises(ValueError, match="precision must be 'auto' or 'bf16', got 'fp8'"):
        cyclip_ext.CLIPLoss(precision="fp8")
    with pytest.raises(ValueError, match="precision must be"):
        functional.contrastive_loss(torch.ones(2, 2), torch.ones(2, 2), 1.0, precision="fp8")


# ------------------------------------------------- tiny losses


@pytest.mark.native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "d"), [(2, 64), (8, 128), (65, 256)])
def test_tiny_loss_and_gradients_are_exact(n: int, d: int, dtype: torch.dtype) -> None:
    image, text = make_features("aligned", n, d, dtype=dtype)
    leaves = [t.requires_grad_() for t in (image, text, torch.tensor(100.0, dtype=dtype))]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    loss = functional.contrastive_loss(*leaves, backend="native")
    expected = truth.contrastive_loss(*exact)
    loss.backward()
    expected.backward()
    assert 0 < expected.item() < 1e-18
    with torch.no_grad():
        assert reference.contrastive_loss(image, text, 100.0).item() < 1e-5  # 0, or noise of s ulp
    # A cosine rounded to float32 moves a logit by up to 100 ulp, and the loss by as much, relative.
    tolerance = {torch.float32: 2e-5, torch.float64: 1e-11}[dtype]
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance, abs=0)
    for leaf, true in zip(leaves, exact, strict=True):
        error = (leaf.grad.double() - true.grad).norm() / true.grad.norm()
        assert error <= 2 * tolerance


@pytest.mark.native
def test_loss_of_opposite_pairs_is_exact() -> None:
    """Positives have a cosine of about -1, so the loss is close to its largest value."""
    image, text = make_features("aligned", 8, 16)
    leaves = [t.requires_grad_() for t in (image, -text, torch.tensor(1000.0).double())]
    exact = [t.detach().clone().requires_grad_() for t in leaves]
    loss = functional.contrastive_loss(*leaves, backend="native")
    expected = truth.contrastive_loss(*exact)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    loss.backward()
    expected.backward()
    for leaf, true in zip(leaves, exact, strict=True):
        torch.testing.assert_close(leaf.grad, true.grad, rtol=1e-9, atol=1e-11)
