"""Layouts, norms and numbers that break naive code: strides, NaN, zero rows, a single pair."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cyclip_ext import functional, reference

from .inputs import FUNCTIONS, all_but_hinge, make_features

Loss = Callable[..., Tensor]
N, D = 7, 5

# How a [N, D] view is made from a leaf of another shape.
LAYOUTS: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "transposed": ((D, N), lambda base: base.T),
    "every_second_row": ((2 * N, D), lambda base: base[::2]),
    "columns_of_a_wider_one": ((N, D + 3), lambda base: base[:, 2 : 2 + D]),
    "every_third_column": ((N, 3 * D), lambda base: base[:, ::3]),
    "odd_storage_offset": ((N * D + 1,), lambda base: base[1:].view(N, D)),
    "one_row_expanded": ((1, D), lambda base: base.expand(N, D)),
    "one_column_expanded": ((N, 1), lambda base: base.expand(N, D)),
    "one_number_expanded": ((1, 1), lambda base: base.expand(N, D)),
    "flipped": ((N, D), lambda base: base.flip(0)),
    "unfolded": ((N + D - 1,), lambda base: base.unfold(0, D, 1)),  # rows overlap in memory
}


@pytest.mark.parametrize("swap", [False, True], ids=["image", "text"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_matter(backend: str, layout: str, dtype: torch.dtype, swap: bool) -> None:
    shape, view = LAYOUTS[layout]
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator).to(dtype)
    other = torch.randn(N, D, generator=generator).to(dtype)
    results = []
    for kind, which in (dtype, backend), (torch.float64, "reference"):
        leaves = base.to(kind).clone().requires_grad_(), other.to(kind).clone().requires_grad_()
        scale = torch.tensor(5.0, dtype=torch.float64 if kind == torch.float64 else torch.float32)
        features = view(leaves[0]), leaves[1]
        value = all_but_hinge(*(features[::-1] if swap else features), scale, which)
        value.backward()
        results.append([value.detach().double(), *(leaf.grad.double() for leaf in leaves)])
    tolerance = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 0.05}[dtype]
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


def _assert_same(
    loss: Loss, expected: Loss, features: tuple[Tensor, Tensor], scale: float, tolerance: float
) -> None:
    """Compare the loss and the gradients times norms with those of `expected` in float64."""
    dtype = torch.float64 if features[0].dtype == torch.float64 else torch.float32
    leaves = [t.clone().requires_grad_() for t in features]
    exact = [t.double().clone().requires_grad_() for t in features]
    factor = torch.tensor(scale, dtype=dtype)
    value, true_value = loss(*leaves, factor), expected(*exact, factor.double())
    value.backward()
    true_value.backward()
    torch.testing.assert_close(value.double(), true_value, rtol=tolerance, atol=0)
    for leaf, true in zip(leaves, exact, strict=True):
        size = leaf.detach().double().norm(dim=1, keepdim=True).clamp_min(reference.EPS)
        torch.testing.assert_close(
            leaf.grad.double() * size, true.grad * size, rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_norms_from_1e_3_to_1e3(backend: str, dtype: torch.dtype) -> None:
    """The loss does not depend on them, and gradients have the factor 1/|x|."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(2, 9, 6, dtype=torch.float64, generator=generator)
    lengths = torch.logspace(-3, 3, 9, dtype=torch.float64)[:, None]
    features = (directions[0] * lengths).to(dtype), (directions[1] * lengths.flip(0)).to(dtype)
    tolerance = 1e-11 if dtype == torch.float64 else 1e-5
    loss = functools.partial(all_but_hinge, backend=backend)
    _assert_same(loss, all_but_hinge, features, 14.3, tolerance)


DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nonfinite_feature_makes_the_loss_nan(loss: Loss, value: float, dtype: torch.dtype) -> None:
    """After a finite loss training would continue; an exception would stop one rank of many."""
    for n, d in ((1, 3), (6, 4), (4, 6), (40, 17)):
        for tower in range(2):
            for row in {0, n // 2, n - 1}:
                features = make_features("random", n, d, dtype=dtype)
                features[tower][row, d // 2] = value
                for t in features:
                    t.requires_grad_()
                result = loss(*features, torch.tensor(5.0))
                assert result.isnan(), (n, d, tower, row, result)
                result.backward()
                assert features[tower].grad.isnan().any()


@pytest.mark.parametrize("loss_name", ["contrastive", "sigmoid"], indirect=True)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e7], ids=str)
def test_scale_beyond_the_range_makes_the_loss_nan(loss: Loss, value: float, backend: str) -> None:
    for dtype in torch.float32, torch.float64:
        image, text = make_features("random", 6, 4, dtype=dtype)
        result = loss(image, text, torch.tensor(value))
        if backend == "native":
            assert result.isnan()
        else:  # dense PyTorch has no limit
            assert result.isfinite() == (value == 1e7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d"), [(1, 3), (5, 3), (3, 7), (40, 17)])
def test_zero_and_tiny_rows_are_treated_as_by_normalize(
    loss: Loss, loss_name: str, n: int, d: int, dtype: torch.dtype
) -> None:
    """Rows shorter than eps are divided by eps: similarity 0, gradient g / eps."""
    features = make_features("zero_rows", n, d, dtype=dtype)
    features[0][-1] *= 1e-14
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    expected = functools.partial(FUNCTIONS[loss_name], backend="reference")
    _assert_same(loss, expected, features, 5.0, tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1e-3, 100.0])
def test_single_pair_has_neither_contrastive_loss_nor_hinge(
    scale: float, dtype: torch.dtype, backend: str
) -> None:
    """A single pair has no negatives, so both terms are zero."""
    for kind in "random", "aligned", "zero_rows":
        for name in "contrastive", "hinge":
            leaves = [t.requires_grad_() for t in make_features(kind, 1, 5, dtype=dtype)]
            factor = torch.tensor(scale, requires_grad=True)
            loss = FUNCTIONS[name](*leaves, factor, backend=backend)
            assert loss.item() == 0
            if loss.requires_grad:
                loss.backward()
            for leaf in (*leaves, factor):
                assert leaf.grad is None or not leaf.grad.any()


def test_single_pair_has_no_cycle_loss(backend: str) -> None:
    for d in 1, 3, 9:
        leaves = [t.requires_grad_() for t in make_features("random", 1, d)]
        loss = functional.cycle_consistency(*leaves, backend=backend)
        loss.backward()
        assert abs(loss.item()) < 1e-28
        assert all(leaf.grad.abs().max() < 1e-14 for leaf in leaves)


def test_identical_pairs_share_the_gradient(backend: str) -> None:
    """The derivative of softplus at 0 is 1/2."""
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
    image = torch.eye(4, dtype=torch.float64).requires_grad_()
    text = torch.eye(4, dtype=torch.float64).requires_grad_()
    functional.hinge_margin_loss(image, text, 2.0, backend=backend).backward()
    exact: list[Tensor] = [torch.eye(4, dtype=torch.float64).requires_grad_() for _ in range(2)]
    reference.hinge_margin_loss(*exact, 2.0).backward()
    assert text.grad[1, 0] > text.grad[2, 0] == text.grad[3, 0]  # image 0: text 1 comes first
    torch.testing.assert_close([image.grad, text.grad], [t.grad for t in exact])
