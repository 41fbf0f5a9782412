"""NaN, infinity, overflow and empty rows in the operators: docs/losses.md, "Special cases"."""

from __future__ import annotations

import pytest
import torch
from losses import truth
from torch import Tensor

from .cases import PRECISIONS, Precision, as_double, rectangle
from .device_losses import device_losses
from .devices import Device

pytestmark = pytest.mark.parametrize("precision", PRECISIONS, ids=str)

LOSSES = [
    "contrastive",
    "sigmoid",
    "in_modal by grams",
    "cross_modal by grams",
    "in_modal by pairs",
    "cross_modal by pairs",
]


def _leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.clone().requires_grad_() for t in tensors]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_nonfinite_feature_makes_the_loss_nan(
    device: Device, name: str, value: float, precision: Precision
) -> None:
    """A NaN or an infinity in the features reaches the loss and the tower's gradient."""
    loss = device_losses(device, precision.allow_tf32)[name]
    for n, d, tower, row in ((1, 3, 0, 0), (6, 4, 1, 5), (70, 17, 0, 66), (70, 17, 1, 0)):
        features = rectangle("random", n, n, d, precision.dtype)
        features[tower][row, d // 2] = value
        leaves = _leaves(*features)
        result = loss(*leaves, torch.tensor(5.0))
        assert result.isnan(), (n, d, tower, row)
        result.backward()
        assert leaves[tower].grad.isnan().any()


@pytest.mark.parametrize("name", ["contrastive", "sigmoid"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1.1e6, -1.1e6, 1e38], ids=str)
def test_bad_scale_makes_the_loss_not_finite(
    device: Device, name: str, value: float, precision: Precision
) -> None:
    """A temperature that has diverged must be noticed."""
    loss = device_losses(device, precision.allow_tf32)[name]
    leaves = _leaves(*rectangle("random", 6, 6, 4, precision.dtype), torch.tensor(value))
    result = loss(*leaves)
    assert not result.isfinite()
    result.backward()


def test_largest_scale(device: Device, precision: Precision) -> None:
    """Exponents of a scale of 1e6, the largest that is accepted, fit into integers."""
    image, text = rectangle("ties", 20, 20, 8, precision.dtype)
    exact = truth.pair_statistics(image.double(), text.double(), 1e6)
    ours = device(
        "pair_statistics", image, text, as_double(1e6), 0, allow_tf32=precision.allow_tf32
    )
    tolerance = 1e-10 if precision.dtype == torch.float64 else 1e-6
    torch.testing.assert_close(ours[:2], tuple(exact[:2]), rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-30])
def test_zero_scale(device: Device, scale: float, precision: Precision) -> None:
    """Masked entries have no weight, however small the scale is."""
    image, text = rectangle("random", 5, 7, 4, precision.dtype)
    stats = truth.PairStatistics(
        *device(
            "pair_statistics", image, text, as_double(scale), 0, allow_tf32=precision.allow_tf32
        )
    )
    rows = torch.full((5,), 6.0, dtype=torch.float64).log()
    cols = torch.tensor([4.0] * 5 + [5.0] * 2, dtype=torch.float64).log()
    torch.testing.assert_close(stats.row_lse, rows, rtol=0, atol=1e-6)
    torch.testing.assert_close(stats.col_lse, cols, rtol=0, atol=1e-6)
    (losses,) = device(
        "sigmoid_rows",
        *(image, text, as_double(scale), as_double(-1.0), 0),
        allow_tf32=precision.allow_tf32,
    )
    # Six negatives at z = -1, and one positive.
    expected = 6 * truth.softplus(as_double(-1.0)) + truth.softplus(as_double(1.0))
    torch.testing.assert_close(losses, expected.expand(5), rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [1e-3, 100.0])
def test_single_pair(device: Device, scale: float, precision: Precision) -> None:
    """N = 1 has no negatives: the loss and its gradients are exactly 0."""
    for kind in "random", "zero_rows":
        image, text = rectangle(kind, 1, 1, 5, precision.dtype)
        stats = truth.PairStatistics(
            *device(
                "pair_statistics", image, text, as_double(scale), 0, allow_tf32=precision.allow_tf32
            )
        )
        for value in (stats.row_lse, stats.col_lse, stats.row_hardest, stats.col_hardest):
            assert value.item() == -torch.inf
        assert stats.row_hardest_index.item() == stats.col_hardest_index.item() == -1
        leaves = _leaves(image, text, torch.tensor(scale))
        loss = device_losses(device, precision.allow_tf32)["contrastive"](*leaves)
        loss.backward()
        assert loss.item() == 0
        assert all(not leaf.grad.any() for leaf in leaves)


def test_rows_shorter_than_eps(device: Device, precision: Precision) -> None:
    """Rows shorter than eps = 1e-12 are divided by eps."""
    if precision.dtype == torch.float16:
        pytest.skip("its smallest number is 6e-8")
    image, text = rectangle("random", 5, 5, 3, precision.dtype)
    image[1] *= 1e-14
    exact = truth.pair_statistics(image.double(), text.double(), 5.0)
    ours = device(
        "pair_statistics", image, text, as_double(5.0), 0, allow_tf32=precision.allow_tf32
    )
    tolerance = 1e-2 if precision.allow_tf32 else 1e-5
    torch.testing.assert_close(ours[2], exact.positive, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours[0], exact.row_lse, rtol=tolerance, atol=tolerance)


def test_poisoned_statistics(device: Device, precision: Precision) -> None:
    """NaN compares as false, so a maximum would ignore it."""
    image, text = rectangle("random", 6, 70, 9, precision.dtype)
    image[2, 4] = torch.nan
    stats = truth.PairStatistics(
        *device("pair_statistics", image, text, as_double(5.0), 0, allow_tf32=precision.allow_tf32)
    )
    bad, others = torch.arange(6) == 2, torch.arange(70) != 2  # its positive is not a negative
    assert torch.equal(stats.row_lse.isnan(), bad)
    assert torch.equal(stats.row_hardest.isnan(), bad)
    assert torch.equal(stats.positive.isnan(), bad)
    assert torch.equal(stats.col_lse.isnan(), others)
    assert torch.equal(stats.col_hardest.isnan(), others)
