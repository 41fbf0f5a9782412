"""Features as they come: transposed, sliced, expanded, and rows of very different length."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cyclip_ext import functional, reference

from .backends import BACKENDS

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


def _total(image: Tensor, text: Tensor, scale: Tensor, backend: str) -> Tensor:
    """All terms at once, none of them with the weight of another."""
    f = functional
    return (
        f.contrastive_loss(image, text, scale, backend=backend)
        + f.cycle_consistency(image, text, in_modal=0.5, cross_modal=0.3, backend=backend)
        + 0.7 * f.margin_loss(image, text)
        + 0.2 * f.sigmoid_loss(image, text, scale, -3.0, backend=backend)
    )


def _expected(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    return reference.cyclip_loss(
        image, text, scale, in_modal=0.5, cross_modal=0.3, margin=0.7
    ) + 0.2 * reference.sigmoid_loss(image, text, scale, -3.0)


@pytest.mark.parametrize("swap", [False, True], ids=["image", "text"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_layout(backend: str, layout: str, dtype: torch.dtype, swap: bool) -> None:
    """Wrong: strides are ignored, so that other numbers are read or gradients land elsewhere."""
    shape, view = LAYOUTS[layout]
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator).to(dtype)
    other = torch.randn(N, D, generator=generator).to(dtype)
    scale = torch.tensor(5.0, dtype=torch.float64)

    def order(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return (b, a) if swap else (a, b)

    results = []
    for kind, loss in ((dtype, lambda *a: _total(*a, backend)), (torch.float64, _expected)):
        leaves = base.to(kind).clone().requires_grad_(), other.to(kind).clone().requires_grad_()
        value = loss(
            *order(view(leaves[0]), leaves[1]),
            scale.to(torch.float32 if kind != torch.float64 else kind),
        )
        value.backward()
        results.append([value.detach().double(), *(leaf.grad.double() for leaf in leaves)])
    tolerance = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 0.05}[dtype]
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_any_length(backend: str, dtype: torch.dtype) -> None:
    """Wrong: raw norms from 1e-3 to 1e3 change the loss, or gradients lose the factor 1/|x|."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(2, 9, 6, dtype=torch.float64, generator=generator)
    lengths = torch.logspace(-3, 3, 9, dtype=torch.float64)[:, None]
    image, text = directions[0] * lengths, directions[1] * lengths.flip(0)
    scale = torch.tensor(14.3, dtype=dtype)
    leaves = [t.to(dtype).requires_grad_() for t in (image, text)]
    truth = [t.detach().double().requires_grad_() for t in leaves]
    value, expected = _total(*leaves, scale, backend), _expected(*truth, scale.double())
    value.backward()
    expected.backward()
    tolerance = 1e-11 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=0)
    for leaf, exact in zip(leaves, truth, strict=True):
        size = leaf.detach().double().norm(dim=1, keepdim=True)
        torch.testing.assert_close(
            leaf.grad.double() * size, exact.grad * size, rtol=tolerance, atol=tolerance
        )
