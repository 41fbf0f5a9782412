"""Features for which naive code fails, the losses by name, and a measure of memory."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cyclip_ext import CLIPLoss, CyCLIPLoss, SigLIPLoss, functional

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


def _named(values: dict[str, Any], names: Container[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in names}


def _loss(function: Callable[..., Tensor], **fixed: float) -> Callable[..., Tensor]:
    """Return (image_features, text_features, scale, bias, **options) -> loss.

    The function gets only those of its arguments that it has.
    """
    known = inspect.signature(function).parameters

    def loss(
        x: Tensor, y: Tensor, s: Tensor | float = 1.0, b: Tensor | float = -5.0, **options: Any
    ) -> Tensor:
        given = {"logit_scale": s, "logit_bias": b, **fixed}
        if "options" in known:
            return function(x, y, **_named(given, known), **options)
        return function(x, y, **_named(given | options, known))

    return loss


FUNCTIONS = {
    "contrastive": _loss(functional.contrastive_loss),
    "cycle": _loss(functional.cycle_consistency),
    "in_modal": _loss(functional.cycle_consistency, cross_modal=0.0),
    "cross_modal": _loss(functional.cycle_consistency, in_modal=0.0),
    "margin": _loss(functional.margin_loss),
    "hinge": _loss(functional.hinge_margin_loss),
    "sigmoid": _loss(functional.sigmoid_loss),
}
MODULES: dict[str, Callable[..., Tensor]] = {
    "CLIPLoss": lambda x, y, s=1.0, b=-5.0, **o: CLIPLoss(**o)(x, y, s, b),
    "CyCLIPLoss": lambda x, y, s=1.0, b=-5.0, **o: CyCLIPLoss(**o)(x, y, s, b),
    "SigLIPLoss": lambda x, y, s=1.0, b=-5.0, **o: SigLIPLoss(**o)(x, y, s, b),
}


def all_but_hinge(
    image: Tensor, text: Tensor, scale: Tensor | float, backend: str = "reference"
) -> Tensor:
    """Return the sum of the losses whose gradient is unique if rounded cosines tie."""
    return sum(
        loss(image, text, scale, -3.0, backend=backend)
        for name, loss in FUNCTIONS.items()
        if name != "hinge"
    )


class LargestTensor(TorchDispatchMode):
    """Number of elements of the largest tensor that any operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def everything(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, backend: str) -> Tensor:
    """Return the sum of all terms, each with a different weight."""
    loss = CyCLIPLoss(0.3, 0.2, margin=0.1, hinge=0.4, backend=backend)
    return loss(image, text, scale) + functional.sigmoid_loss(
        image, text, scale, bias, backend=backend
    )


def gradients(
    loss: Tensor, leaves: Sequence[Tensor], *, retain_graph: bool = False
) -> list[Tensor]:
    """Return the gradients of all leaves, zeros for those that the loss does not depend on."""
    options = {"allow_unused": True, "materialize_grads": True, "retain_graph": retain_graph}
    return list(torch.autograd.grad(loss, leaves, **options))
