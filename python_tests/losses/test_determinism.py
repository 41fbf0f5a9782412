"""The same bits in every run, and for every number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import cyclip_ext
from cyclip_ext import _terms, functional

from .backends import needs_native
from .inputs import make_features

pytestmark = needs_native

# Odd sizes around what tiles and panels are likely to be, and more rows than fit one task.
SHAPES = [(1, 1), (7, 5), (65, 33), (129, 72), (300, 513), (1030, 40), (1100, 200), (2500, 24)]


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    loss = cyclip_ext.CyCLIPLoss(0.3, 0.2, margin=0.1, hinge=0.4, backend="native")
    return loss(image, text, scale) + functional.sigmoid_loss(
        image, text, scale, bias, backend="native"
    )


def _bits(n: int, d: int, dtype: torch.dtype) -> list[Tensor]:
    """Losses, statistics and gradients of one fresh run."""
    image, text = make_features("random", n, d, dtype=dtype)
    leaves = [t.requires_grad_() for t in (image, text, torch.tensor(14.3), torch.tensor(-5.0))]
    value = _loss(*leaves)
    value.backward()
    ops = torch.ops.cyclip_ext
    with torch.no_grad():
        statistics = [*ops.pair_statistics(*leaves[:3]), *ops.cycle_direct(*leaves[:2])]
    direct = [t.detach().clone().requires_grad_() for t in leaves[:2]]
    sum(ops.cycle_direct(*direct)).backward()
    return [
        value.detach(),
        *(leaf.grad for leaf in leaves),
        *statistics,
        *(leaf.grad for leaf in direct),
    ]


def _assert_same_bits(first: list[Tensor], second: list[Tensor]) -> None:
    for a, b in zip(first, second, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_same_bits(n: int, d: int, dtype: torch.dtype) -> None:
    """Wrong: a sum whose order depends on the run, or on how many threads shared the work."""
    runs = []
    for threads in (1, 2, 2, 3):
        torch.set_num_threads(threads)
        runs.append(_bits(n, d, dtype))
    for other in runs[1:]:
        _assert_same_bits(runs[0], other)


@needs_native
def test_means_of_long_vectors() -> None:
    """Wrong: torch's own mean, which it cuts into as many parts as there are threads."""
    values = make_features("random", 100_001, 1)[0][:, 0]
    threads = torch.get_num_threads()
    means = []
    for count in 1, 2, 3:
        torch.set_num_threads(count)
        means.append(_terms.mean(values))
    torch.set_num_threads(threads)
    assert len({float(m) for m in means}) == 1
    torch.testing.assert_close(means[0], values.mean(), rtol=1e-12, atol=1e-15)
