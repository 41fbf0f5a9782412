"""precision="bf16" and bfloat16 features: the loss of the rounded features, with its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import cyclip_ext
from cyclip_ext import functional, reference

from . import truth
from .backends import BACKENDS, needs_native
from .inputs import make_features

SHAPES = [(1, 1), (2, 3), (33, 65), (129, 512), (300, 130)]


def _losses(backend: str) -> dict:
    options = {"backend": backend, "precision": "bf16"}
    return {
        "contrastive": lambda x, y, s: functional.contrastive_loss(x, y, s, **options),
        "sigmoid": lambda x, y, s: functional.sigmoid_loss(x, y, s, -5.0, **options),
    }


EXACT = {
    "contrastive": truth.contrastive_loss,
    "sigmoid": lambda x, y, s: reference.sigmoid_loss(x, y, s, -5.0),
}


def _run(loss, *inputs: Tensor) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    value = loss(*leaves)
    value.backward()
    return [value.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("kind", ["random", "narrow_cone", "aligned"])
@pytest.mark.parametrize(("n", "d"), SHAPES, ids=str)
def test_loss_of_the_rounded_features(n: int, d: int, kind: str, name: str, backend: str) -> None:
    """Wrong: cosines rounded to bfloat16, as dense bfloat16 code has them, which s multiplies."""
    features = make_features(kind, n, d, dtype=torch.float32)
    rounded = [t.bfloat16().double() for t in features]
    value, *gradients = _run(_losses(backend)[name], *features, torch.tensor(14.3))
    expected, *true = _run(EXACT[name], *rounded, torch.tensor(14.3).double())
    assert value.dtype == torch.float32
    if backend == "native":  # the reference cancels, as dense code does
        torch.testing.assert_close(value.double(), expected, rtol=2e-5, atol=1e-9)
    for mine, exact in zip(gradients[:2], true[:2], strict=True):
        assert mine.dtype == torch.float32
        # One rounding of dL/dS to 8 bits: of every entry by itself, and not of their sum.
        assert (mine.double() - exact).norm() <= 2**-7 * exact.norm() + 1e-6


@needs_native
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_stay_as_they_are(dtype: torch.dtype) -> None:
    """Wrong: features that are not float32 are rounded, too."""
    inputs = (*make_features("random", 33, 20, dtype=dtype), torch.tensor(5.0))
    plain = _run(lambda *a: functional.contrastive_loss(*a, backend="native"), *inputs)
    for a, b in zip(_run(_losses("native")["contrastive"], *inputs), plain, strict=True):
        assert torch.equal(a, b)


@needs_native
@pytest.mark.parametrize("n", [5, 130])
def test_rounded_features_give_the_same_loss(n: int) -> None:
    """Wrong: rounding here is another one than torch's."""
    features = make_features("random", n, 64, dtype=torch.float32)
    scale = torch.tensor(14.3)
    by_argument = _losses("native")["contrastive"](*features, scale)
    by_dtype = functional.contrastive_loss(*(t.bfloat16() for t in features), scale)
    assert torch.equal(by_argument, by_dtype)


@needs_native
def test_not_finite_features() -> None:
    """Wrong: a pair of words in which infinity meets a zero that fills it up."""
    image, text = make_features("random", 3, 3, dtype=torch.float32)
    image[1, 2] = torch.inf
    loss, image_grad, *_ = _run(_losses("native")["contrastive"], image, text, torch.tensor(5.0))
    assert loss.isnan()
    assert image_grad.isnan().any()


def test_unknown_precision() -> None:
    """Wrong: a misspelt precision computes in another one."""
    with pytest.raises(ValueError, match="precision must be 'auto' or 'bf16', got 'fp8'"):
        cyclip_ext.CLIPLoss(precision="fp8")
    with pytest.raises(ValueError, match="precision must be"):
        functional.contrastive_loss(torch.ones(2, 2), torch.ones(2, 2), 1.0, precision="fp8")
