"""Random features, and the texts of figures."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import normalize


def unit(*shape: int, seed: int = 0) -> Tensor:
    """Return random unit rows, float32."""
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def pairs(n: int, d: int, noise: float = 0.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return both towers of n pairs that resemble each other, with a gap between the towers."""
    images = unit(n, d, seed=seed)
    texts = images + noise * unit(n, d, seed=seed + 1) + 0.3
    return images, normalize(texts, dim=-1)


def visible_texts(figure: Figure) -> list[str]:
    """Return labels and titles of all axes, and the entries of all legends."""
    legends = [axes.get_legend() for axes in figure.axes] + list(figure.legends)
    texts = [text.get_text() for legend in legends if legend for text in legend.get_texts()]
    for axes in figure.axes:
        texts += [axes.get_xlabel(), axes.get_ylabel(), axes.get_title()]
    return texts


def at(*degrees: float) -> Tensor:
    """Return points on the unit circle."""
    radians = torch.tensor(degrees).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)
