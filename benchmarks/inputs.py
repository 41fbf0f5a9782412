"""Batches of features, of kinds that are easy and hard for the losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


@dataclass(frozen=True)
class Batch:
    """The arguments of a loss. All of them are leaves that require gradients."""

    image_features: Tensor  # [N, d], raw
    text_features: Tensor  # [N, d]
    logit_scale: Tensor  # scalar, exponentiated; float32
    logit_bias: Tensor  # scalar, float32

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.image_features, self.text_features, self.logit_scale, self.logit_bias

    def of_dtype(self, features: torch.dtype, scalars: torch.dtype | None = None) -> Batch:
        """Return the same numbers, rounded if necessary, as new leaves."""

        def leaf(tensor: Tensor, dtype: torch.dtype) -> Tensor:
            return tensor.detach().to(dtype, copy=True).requires_grad_()

        return Batch(
            *(leaf(tensor, features) for tensor in self.leaves[:2]),
            *(leaf(tensor, scalars or tensor.dtype) for tensor in self.leaves[2:]),
        )

    def in_float64(self) -> Batch:
        return self.of_dtype(torch.float64, torch.float64)

    def first(self, rows: int) -> Batch:
        """Return a new batch of the first rows."""
        image, text, scale, bias = (leaf.detach().clone() for leaf in self.leaves)
        parts = (image[:rows].clone(), text[:rows].clone(), scale, bias)
        return Batch(*(tensor.requires_grad_() for tensor in parts))


Towers = tuple[Tensor, Tensor]


def _randn(n: int, d: int, generator: Generator) -> Tensor:
    return torch.randn(n, d, generator=generator)


def _weak(n: int, d: int, generator: Generator) -> Towers:
    """Pairs with a cosine of about 0.25, so that the loss is of order 1, as early in training."""
    image = _randn(n, d, generator)
    return image, image / 4 + _randn(n, d, generator)


def _random(n: int, d: int, generator: Generator) -> Towers:
    return _randn(n, d, generator), _randn(n, d, generator)


def _aligned(n: int, d: int, generator: Generator) -> Towers:
    """Pairs that differ by 1e-3: expanded squares cancel, and the loss is tiny at s = 100."""
    image = _randn(n, d, generator)
    return image, image + 1e-3 * _randn(n, d, generator)


def _cone(n: int, d: int, generator: Generator) -> Towers:
    """All rows within a few degrees of one direction, as in newly initialized towers."""
    axis = _randn(1, d, generator)
    image, text = _random(n, d, generator)
    return axis + 0.05 * image, axis + 0.05 * text


def _gap(n: int, d: int, generator: Generator) -> Towers:
    """Put the towers on opposite sides of the sphere: every cosine is negative."""
    axis = _randn(1, d, generator)
    image, text = _random(n, d, generator)
    return image + 3 * axis, text - 3 * axis


KINDS: dict[str, Callable[[int, int, Generator], Towers]] = {
    "weak": _weak,
    "random": _random,
    "aligned": _aligned,
    "cone": _cone,
    "gap": _gap,
}


def make_batch(
    n: int,
    d: int,
    scale: float,
    bias: float,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    *,
    kind: str = "weak",
    seed: int | None = None,
    unit_rows: bool = False,
) -> Batch:
    generator = Generator().manual_seed(n + d if seed is None else seed)
    towers = KINDS[kind](n, d, generator)
    if unit_rows:
        towers = F.normalize(towers[0], dim=-1), F.normalize(towers[1], dim=-1)
    of_scalars = torch.float64 if dtype == torch.float64 else torch.float32
    scalars = [torch.tensor(value, device=device, dtype=of_scalars) for value in (scale, bias)]
    features = [tower.to(device, dtype) for tower in towers]
    return Batch(*(tensor.requires_grad_() for tensor in (*features, *scalars)))
