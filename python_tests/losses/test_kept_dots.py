"""Dot products kept for the backward pass, within a budget: the same numbers at other costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import cyclip_ext
from cyclip_ext import functional

from .backends import needs_native
from .inputs import make_features

pytestmark = needs_native
ops = torch.ops.cyclip_ext


def _leaves(n: int, d: int, dtype: torch.dtype) -> list[Tensor]:
    image, text = make_features("random", n, d, dtype=dtype)
    return [t.requires_grad_() for t in (image, text, torch.tensor(14.3), torch.tensor(-5.0))]


def _run(n: int, d: int, dtype: torch.dtype, memory_budget: int | None) -> list[Tensor]:
    leaves = _leaves(n, d, dtype)
    options = {"backend": "native", "memory_budget": memory_budget}
    loss = cyclip_ext.CyCLIPLoss(margin=0.1, hinge=0.2, **options)(*leaves[:3])
    loss = loss + 3 * functional.sigmoid_loss(*leaves, **options)
    loss.backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (2, 65), (63, 7), (130, 64), (1029, 33)])
def test_same_bits(n: int, d: int, dtype: torch.dtype) -> None:
    """Wrong: a tile that is read from another place than it was written to."""
    for kept, recomputed in zip(_run(n, d, dtype, None), _run(n, d, dtype, 0), strict=True):
        assert torch.equal(kept, recomputed)


def test_twice_through_one_graph() -> None:
    """Wrong: the backward pass writes over what it may need again."""
    leaves = _leaves(70, 8, torch.float32)[:3]
    loss = functional.contrastive_loss(*leaves, backend="native")
    first, second = (torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class _KeptNumbers(TorchDispatchMode):
    """Counts the dot products that pair_statistics keeps."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        if func is ops.pair_statistics.default:
            self.numbers += outputs[-1].numel()
        return outputs


def test_budget_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong: more is kept than allowed, or nothing although it fits."""
    leaves = [t.requires_grad_() for t in make_features("random", 128, 8, dtype=torch.float32)]
    leaves.append(torch.tensor(5.0))
    needed = 128 * 128 * 4

    def kept(budget: int | None) -> int:
        with _KeptNumbers() as mode:
            functional.contrastive_loss(*leaves, backend="native", memory_budget=budget)
        return mode.numbers

    assert kept(needed) == 128 * 128
    assert kept(needed - 1) == 0
    assert kept(0) == 0
    assert kept(None) == 128 * 128  # 256 MiB
    monkeypatch.setenv("CYCLIP_MEMORY_BUDGET", str(needed - 1))
    assert kept(None) == 0
    assert kept(needed) == 128 * 128  # the argument comes first
    monkeypatch.delenv("CYCLIP_MEMORY_BUDGET")
    with torch.no_grad():
        assert kept(None) == 0
    leaves[0].requires_grad_(False), leaves[1].requires_grad_(False)
    assert kept(None) == 0


def test_ragged_tiles_are_cleared() -> None:
    """Wrong: an output with bits of somebody else's memory."""
    image, text = make_features("random", 33, 5, dtype=torch.float32)
    dots = ops.pair_statistics(image, text, torch.tensor(1.0), 0, False, False, 1 << 20)[-1]
    assert dots.shape == (33, 128)
    assert (dots[:, 33:] == 0).all()
    torch.testing.assert_close(dots[:, :33], image @ text.T)


@pytest.mark.parametrize("stated", ["256MiB", "-1", "1e9", ""])
def test_wrong_budgets(stated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong: a budget that cannot be read is taken for another one."""
    with pytest.raises(ValueError, match="memory_budget must be"):
        cyclip_ext.CLIPLoss(memory_budget=-1)
    for backend in "native", "reference":
        with pytest.raises(ValueError, match="memory_budget must be"):
            functional.contrastive_loss(
                *_leaves(4, 3, torch.float32)[:3], backend=backend, memory_budget=-1
            )
    monkeypatch.setenv("CYCLIP_MEMORY_BUDGET", stated)
    with pytest.raises(ValueError, match="CYCLIP_MEMORY_BUDGET must be"):
        functional.contrastive_loss(*_leaves(4, 3, torch.float32)[:3], backend="native")


def test_operators_check_the_dots() -> None:
    """Wrong: a backward pass that reads outside of what it is given."""
    image, text = make_features("random", 5, 3, dtype=torch.float32)
    scale, rows = torch.tensor(1.0), torch.ones(5, dtype=torch.float64)
    for dots in (torch.zeros(5, 64), torch.zeros(5, 128).double()):
        with pytest.raises(RuntimeError, match="dots must be what"):
            ops.sigmoid_rows_backward(
                image, text, scale, scale, 0, dots, rows, True, True, False, False
            )
