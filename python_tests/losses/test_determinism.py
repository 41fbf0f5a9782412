"""The same bits in every run, and for every number of threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cyclip_ext import _sums
from cyclip_ext._pair_terms import _CrossEntropies

from .inputs import everything, make_features, make_leaves

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("restore_threads")]

# Odd sizes around what tiles and panels are likely to be, and more rows than fit one task.
SHAPES = [(1, 1), (7, 5), (65, 33), (129, 72), (300, 513), (1030, 40), (1100, 200), (2500, 24)]


def _bits(n: int, d: int, dtype: torch.dtype) -> list[Tensor]:
    """Return losses, statistics and gradients of one new run."""
    inputs = make_leaves(n, d, dtype)
    value = everything(*inputs, "native")
    value.backward()
    ops = torch.ops.cyclip_ext
    with torch.no_grad():
        statistics = [*ops.pair_statistics(*inputs[:3]), *ops.cycle_direct(*inputs[:2])]
    direct = [t.detach().clone().requires_grad_() for t in inputs[:2]]
    sum(ops.cycle_direct(*direct)[:2]).backward()
    return [
        value.detach(),
        *(leaf.grad for leaf in inputs),
        *statistics,
        *(leaf.grad for leaf in direct),
    ]


def _assert_same_bits(first: list[Tensor], second: list[Tensor]) -> None:
    for a, b in zip(first, second, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_bits_do_not_depend_on_the_number_of_threads(n: int, d: int, dtype: torch.dtype) -> None:
    runs = []
    for threads in (1, 2, 2, 3):
        torch.set_num_threads(threads)
        runs.append(_bits(n, d, dtype))
    for other in runs[1:]:
        _assert_same_bits(runs[0], other)


def test_scale_gradient_of_a_large_batch_does_not_depend_on_threads() -> None:
    """It is a sum over the pairs, which torch would divide among the threads."""
    positive, *lses = make_features("random", 100_001, 3)[0].T.contiguous()
    runs = []
    for count in 1, 2, 3:
        torch.set_num_threads(count)
        grads = []
        for value in 1.0, 5.0, 14.3, 100.0:  # a single sum can be equal by luck
            scale = torch.tensor(value, dtype=torch.float64, requires_grad=True)
            _CrossEntropies.apply(scale, positive, *lses).mean().backward()
            grads.append(scale.grad.item())
        runs.append(grads)
    assert runs[0] == runs[1] == runs[2]


def test_mean_of_a_long_vector_does_not_depend_on_threads() -> None:
    """torch cuts its own mean into as many parts as there are threads."""
    values = make_features("random", 100_001, 1)[0][:, 0]
    means = []
    for count in 1, 2, 3:
        torch.set_num_threads(count)
        means.append(_sums.mean(values))
    assert len({float(m) for m in means}) == 1
    torch.testing.assert_close(means[0], values.mean(), rtol=1e-12, atol=1e-15)
