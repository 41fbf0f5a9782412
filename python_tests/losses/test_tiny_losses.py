"""Losses of 1e-30 and their gradients: the training signal that is left when towers are aligned.

Dense code computes log(e^z + tiny) - z = 0 as soon as the loss is below one ulp of the logit.
"""

from __future__ import annotations

import pytest
import torch

from cyclip_ext import functional, reference

from . import truth
from .backends import needs_native
from .inputs import make_features

pytestmark = needs_native


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "d"), [(2, 64), (8, 128), (65, 256)])
def test_tiny_loss_and_gradients(n: int, d: int, dtype: torch.dtype) -> None:
    """Wrong: the loss of well aligned towers, or its gradient, is rounded to zero or to noise."""
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


def test_loss_of_opposite_pairs() -> None:
    """Wrong: the other end, a positive that loses by s everywhere, overflows or saturates."""
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
