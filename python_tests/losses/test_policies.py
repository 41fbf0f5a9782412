"""What the losses do with numbers that nobody wants: NaN, infinity, zero rows, a single pair."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cyclip_ext import functional, reference

from .backends import BACKENDS
from .inputs import make_features

pytestmark = pytest.mark.parametrize("backend", BACKENDS)

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def _losses(backend: str) -> dict:
    f = functional
    return {
        "contrastive": lambda x, y, s: f.contrastive_loss(x, y, s, backend=backend),
        "cycle": lambda x, y, s: f.cycle_consistency(x, y, backend=backend),
        "in_modal": lambda x, y, s: f.cycle_consistency(x, y, cross_modal=0.0, backend=backend),
        "cross_modal": lambda x, y, s: f.cycle_consistency(x, y, in_modal=0.0, backend=backend),
        "margin": lambda x, y, s: f.margin_loss(x, y),
        "hinge": lambda x, y, s: f.hinge_margin_loss(x, y, backend=backend),
        "sigmoid": lambda x, y, s: f.sigmoid_loss(x, y, s, -5.0, backend=backend),
    }


LOSSES = list(_losses("auto"))
SCALED = ["contrastive", "sigmoid"]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_bad_number_makes_the_loss_nan(
    name: str, value: float, dtype: torch.dtype, backend: str
) -> None:
    """Wrong: a poisoned batch gives a finite loss and trains on, or raises in the middle of it."""
    for n, d in ((1, 3), (6, 4), (4, 6), (40, 17)):
        for tower in range(2):
            for row in {0, n // 2, n - 1}:
                features = make_features("random", n, d, dtype=dtype)
                features[tower][row, d // 2] = value
                for t in features:
                    t.requires_grad_()
                loss = _losses(backend)[name](*features, torch.tensor(5.0))
                assert loss.isnan(), (n, d, tower, row, loss)
                loss.backward()
                assert features[tower].grad.isnan().any()


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_bad_scale_makes_the_loss_nan_or_infinite(name: str, value: float, backend: str) -> None:
    """Wrong: a temperature that has run away goes unnoticed."""
    image, text = make_features("random", 6, 4, dtype=torch.float32)
    loss = _losses(backend)[name](image, text, torch.tensor(value))
    assert not loss.isfinite()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d"), [(1, 3), (5, 3), (3, 7), (40, 17)])
def test_zero_rows_as_normalize_treats_them(
    name: str, n: int, d: int, dtype: torch.dtype, backend: str
) -> None:
    """Wrong: a zero row is not of similarity 0, or its gradient is not g / eps, or is NaN."""
    features = make_features("zero_rows", n, d, dtype=dtype)
    leaves = [t.clone().requires_grad_() for t in features]
    exact = [t.double().clone().requires_grad_() for t in features]
    loss = _losses(backend)[name](*leaves, torch.tensor(5.0))
    expected = _losses("reference")[name](*exact, torch.tensor(5.0).double())
    loss.backward()
    expected.backward()
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance)
    for leaf, true in zip(leaves, exact, strict=True):
        size = leaf.detach().double().norm(dim=1, keepdim=True).clamp_min(1e-12)
        assert leaf.grad.isfinite().all()
        torch.testing.assert_close(
            leaf.grad.double() * size, true.grad * size, rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rows_shorter_than_eps(dtype: torch.dtype, backend: str) -> None:
    """Wrong: rows below eps = 1e-12 are divided by their norm instead of by eps."""
    image, text = make_features("random", 5, 3, dtype=dtype)
    image[1] *= 1e-14
    for name, loss in _losses(backend).items():
        leaf, true = (image.to(t, copy=True).requires_grad_() for t in (dtype, torch.float64))
        value = loss(leaf, text, torch.tensor(5.0, dtype=dtype))
        expected = _losses("reference")[name](true, text.double(), torch.tensor(5.0).double())
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
        value.backward()
        expected.backward()
        torch.testing.assert_close(leaf.grad[1].double(), true.grad[1], rtol=1e-4, atol=1e5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1e-3, 100.0])
def test_single_pair(scale: float, dtype: torch.dtype, backend: str) -> None:
    """Wrong: N = 1 has no negatives, so the contrastive loss is exactly 0, and so is the hinge."""
    for kind in "random", "aligned", "zero_rows":
        for name in "contrastive", "hinge":
            leaves = [t.requires_grad_() for t in make_features(kind, 1, 5, dtype=dtype)]
            factor = torch.tensor(scale, requires_grad=True)
            loss = _losses(backend)[name](*leaves, factor)
            assert loss.item() == 0
            if loss.requires_grad:
                loss.backward()
            for leaf in (*leaves, factor):
                assert leaf.grad is None or not leaf.grad.any()


def test_single_pair_cycle(backend: str) -> None:
    """Wrong: for N = 1 both cycle terms vanish (a pair of unit rows, each similar to itself)."""
    for d in 1, 3, 9:
        leaves = [t.requires_grad_() for t in make_features("random", 1, d)]
        loss = functional.cycle_consistency(*leaves, backend=backend)
        loss.backward()
        assert abs(loss.item()) < 1e-28
        assert all(leaf.grad.abs().max() < 1e-14 for leaf in leaves)


def test_identical_pairs_share_the_gradient(backend: str) -> None:
    """Wrong: the softplus form has derivative 0 or 1 instead of 1/2 where negative = positive."""
    image = torch.ones(2, 3, dtype=torch.float64)
    text = torch.ones(2, 3, dtype=torch.float64)
    text[:, 0] = 2
    leaves = [t.requires_grad_() for t in (image, text, torch.tensor(5.0).double())]
    exact = [t.detach().clone().requires_grad_() for t in leaves]
    functional.contrastive_loss(*leaves, backend=backend).backward()
    reference.contrastive_loss(*exact).backward()
    for leaf, true in zip(leaves, exact, strict=True):
        torch.testing.assert_close(leaf.grad, true.grad, rtol=1e-12, atol=1e-15)


def test_hinge_of_ties_takes_the_first(backend: str) -> None:
    """Wrong: tied negatives share the gradient, or it depends on the order of the work."""
    image = torch.eye(4, dtype=torch.float64).requires_grad_()
    text = torch.eye(4, dtype=torch.float64).requires_grad_()
    functional.hinge_margin_loss(image, text, 2.0, backend=backend).backward()
    exact: list[Tensor] = [torch.eye(4, dtype=torch.float64).requires_grad_() for _ in range(2)]
    reference.hinge_margin_loss(*exact, 2.0).backward()
    assert text.grad[1, 0] > text.grad[2, 0] == text.grad[3, 0]  # image 0: text 1 comes first
    torch.testing.assert_close([image.grad, text.grad], [t.grad for t in exact])
