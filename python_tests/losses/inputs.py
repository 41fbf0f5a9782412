"""Features for which naive code fails, and the losses by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from cyclip_ext import CyCLIPLoss, functional

Towers = tuple[Tensor, Tensor]


def _randn(n: int, d: int, generator: Generator) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=generator)


def _random(n: int, d: int, generator: Generator) -> Towers:
    return _randn(n, d, generator), _randn(n, d, generator)


def _aligned(n: int, d: int, generator: Generator) -> Towers:
    """Pairs differing by 1e-3: the cycle terms cancel, the contrastive loss is tiny at s = 100."""
    image = _randn(n, d, generator)
    return image, image + 1e-3 * _randn(n, d, generator)


def _duplicates(n: int, d: int, generator: Generator) -> Towers:
    """Half of the pairs appear twice: negatives as good as the positive."""
    image, text = _random(n, d, generator)
    half = n // 2
    for tower in image, text:
        tower[half : 2 * half] = tower[:half]
    return image, text


def _narrow_cone(n: int, d: int, generator: Generator) -> Towers:
    """All rows within a few degrees of one direction, as towers are at initialization."""
    axis = _randn(1, d, generator)
    image, text = _random(n, d, generator)
    return axis + 0.05 * image, axis + 0.05 * text


def _two_cones(n: int, d: int, generator: Generator) -> Towers:
    """Each tower in a narrow cone of its own: cosines near 1 within a tower, a gap between."""
    axes = _randn(2, d, generator)
    image, text = _random(n, d, generator)
    return axes[0] + 0.05 * image, axes[1] + 0.05 * text


def _both_ends(n: int, d: int, generator: Generator) -> Towers:
    """Half of the pairs in a cone and half in its mirror image, so that the mean vanishes."""
    image, text = _narrow_cone(n, d, generator)
    sign = 1 - 2 * (torch.arange(n) % 2)[:, None]
    return sign * image, sign * text


def _modality_gap(n: int, d: int, generator: Generator) -> Towers:
    """Towers on opposite sides of the sphere: every cosine is negative."""
    axis = _randn(1, d, generator)
    image, text = _random(n, d, generator)
    return image + 3 * axis, text - 3 * axis


def _zero_rows(n: int, d: int, generator: Generator) -> Towers:
    image, text = _random(n, d, generator)
    image[0] = 0
    text[-1] = 0
    return image, text


def _ties(n: int, d: int, generator: Generator) -> Towers:
    """Three prototypes of entries 0 and +-1 and norm 1 or 2: cosines exact in any precision."""
    width = 4 if d >= 4 else 1
    prototypes = torch.zeros(3, d, dtype=torch.float64)
    for row in prototypes:
        where = torch.randperm(d, generator=generator)[:width]
        row[where] = torch.randint(0, 2, (width,), generator=generator).double() * 2 - 1
    image, text = (prototypes[torch.randint(0, 3, (n,), generator=generator)] for _ in range(2))
    return image, text


# (n, d, generator) -> two float64 tensors [n, d]
INPUTS: dict[str, Callable[[int, int, Generator], Towers]] = {
    "random": _random,
    "aligned": _aligned,
    "duplicates": _duplicates,
    "narrow_cone": _narrow_cone,
    "two_cones": _two_cones,
    "both_ends": _both_ends,
    "modality_gap": _modality_gap,
    "zero_rows": _zero_rows,
    "ties": _ties,
}


def make_features(
    kind: str, n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Towers:
    """Return the features of one kind, rounded to `dtype`."""
    generator = Generator().manual_seed(seed)
    image, text = INPUTS[kind](n, d, generator)
    return image.to(dtype), text.to(dtype)


def random_like(outputs: tuple[Tensor, ...], seed: int = 0) -> tuple[Tensor, ...]:
    """Return random upstream gradients, because uniform ones hide wrong factors of single rows."""
    generator = Generator().manual_seed(seed)
    return tuple(
        torch.randn(out.shape, dtype=torch.float64, generator=generator).to(out.dtype)
        for out in outputs
    )


def make_leaves(n: int, d: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return random features, a scale and a bias, all of which require gradients."""
    image, text = make_features("random", n, d, dtype=dtype)
    return [t.requires_grad_() for t in (image, text, torch.tensor(14.3), torch.tensor(-5.0))]


def _cycle(in_modal: float, cross_modal: float) -> Callable[..., Tensor]:
    return lambda x, y, s=1.0, b=-5.0, backend="auto": functional.cycle_consistency(
        x, y, in_modal=in_modal, cross_modal=cross_modal, backend=backend
    )


# (image_features, text_features, logit_scale, logit_bias, backend) -> loss
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "contrastive": lambda x, y, s=1.0, b=-5.0, backend="auto": functional.contrastive_loss(
        x, y, s, backend=backend
    ),
    "cycle": _cycle(0.25, 0.25),
    "in_modal": _cycle(0.25, 0.0),
    "cross_modal": _cycle(0.0, 0.25),
    "margin": lambda x, y, s=1.0, b=-5.0, backend="auto": functional.margin_loss(x, y),
    "hinge": lambda x, y, s=1.0, b=-5.0, backend="auto": functional.hinge_margin_loss(
        x, y, backend=backend
    ),
    "sigmoid": lambda x, y, s=1.0, b=-5.0, backend="auto": functional.sigmoid_loss(
        x, y, s, b, backend=backend
    ),
}


def everything(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, backend: str) -> Tensor:
    """Return the sum of all terms, each with a different weight."""
    loss = CyCLIPLoss(0.3, 0.2, margin=0.1, hinge=0.4, backend=backend)
    return loss(image, text, scale) + functional.sigmoid_loss(
        image, text, scale, bias, backend=backend
    )
