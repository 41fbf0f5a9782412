"""Margins of pairs within batches: how far a pair is above its hardest negative.

Source: Chen et al. 2024 (arXiv 2310.00927), figure 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._plotting import line_style, plain
from .directions import BLOCK, check_labels, unit_pairs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROUNDING = 1e-12  # of a difference of two cosines in float64: less is a tie
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Margins:
    """Margins of the pairs that have a negative, float64, in the order of the shuffled batches."""

    image_to_text: Tensor  # S_ii - max_{j != i} S_ij
    text_to_image: Tensor  # S_ii - max_{j != i} S_ji


def batch_margins(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [N, d]
    batch_size: int,
    *,
    labels: Tensor | None = None,  # int64 [N]
    seed: int = 0,
    repeats: int = 1,
) -> Margins:
    """Margins in random batches: the set is shuffled and cut into batches, `repeats` times.

    labels: pairs with equal ones (equal captions) are no negatives of each other; a pair without
    any negative in its batch has no margin and is left out. Without labels all others are.
    A margin falls as the batch grows, so all batches are of one size: the N mod batch_size pairs
    that remain of a shuffle are left out. Cost O(repeats N batch_size d), memory O(N d).

    Raises ValueError for a batch_size outside of 2 ... N, repeats below 1, or where no pair has a
    negative.
    """
    images, texts = unit_pairs(image_features, text_features)
    n = len(images)
    if labels is None:
        labels = torch.arange(n)
    check_labels(labels, "labels", images, "image_features")
    if not 2 <= batch_size <= n:
        raise ValueError(f"batch_size must be in 2 ... {n} (the number of pairs), got {batch_size}")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    generator = torch.Generator().manual_seed(seed)
    to_text, to_image = [], []
    for _ in range(repeats):
        order = torch.randperm(n, generator=generator)[: n - n % batch_size]
        for batch in order.split(batch_size):
            image, text, own = images[batch], texts[batch], labels[batch]
            positive = (image * text).sum(1)
            to_text.append(positive - _hardest(image, text, own))
            to_image.append(positive - _hardest(text, image, own))
    margins = [torch.cat(parts) for parts in (to_text, to_image)]
    margins = [values[values.isfinite()] for values in margins]  # -inf: no negative
    if not len(margins[0]):
        raise ValueError("labels are equal within every batch: no pair has a negative")
    return Margins(*margins)


def _hardest(
    rows: Tensor,  # float64 [B, d], unit length
    cols: Tensor,  # float64 [B, d], unit length
    labels: Tensor,  # int64 [B]
) -> Tensor:
    """Largest cosine with a column of another label, float64 [B]; -inf without one."""
    hardest = rows.new_full((len(rows),), -torch.inf)
    parts = zip(
        rows.split(BLOCK), labels.split(BLOCK), hardest.split(BLOCK), strict=True
    )  # of `hardest` views, filled here
    for row_block, row_own, best in parts:
        for col_block, col_own in zip(cols.split(BLOCK), labels.split(BLOCK), strict=True):
            similarity = row_block @ col_block.T
            similarity.masked_fill_(row_own[:, None] == col_own[None, :], -torch.inf)
            torch.maximum(best, similarity.amax(1), out=best)
    return hardest


def margin_metrics(margins: Tensor) -> dict[str, float]:
    """Of one direction's margins: mean, share_positive, and the quantiles q5, q25, q50, q75, q95.

    A tie with a negative is not positive.
    """
    if not len(margins):
        raise ValueError("margins is empty")
    ordered = margins.sort().values  # torch.quantile refuses more than 2^24 values
    metrics = {
        "mean": margins.mean().item(),
        "share_positive": (margins > ROUNDING).double().mean().item(),
    }
    for q in QUANTILES:
        position = q * (len(ordered) - 1)
        below = int(position)
        above = min(below + 1, len(ordered) - 1)
        metrics[f"q{round(100 * q)}"] = torch.lerp(
            ordered[below], ordered[above], position - below
        ).item()
    return metrics


def plot_margins(figure: Figure, margins: Mapping[str, Margins]) -> None:
    """Densities of the margins in both directions, one curve per name, over common bins.

    Raises ValueError where there is no curve.
    """
    if not margins:
        raise ValueError("margins is empty: nothing to plot")
    figure.set_layout_engine("constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    both = torch.cat([torch.cat([m.image_to_text, m.text_to_image]) for m in margins.values()])
    low, high = min(both.min().item(), 0.0), max(both.max().item(), 0.0)
    edges = [-0.5, 0.5]
    if high > low:  # in the margins' own dtype, so that the last bin has the largest
        edges = torch.linspace(low, high, 61, dtype=torch.float64).tolist()
    for axes, direction in zip(panels, ("image_to_text", "text_to_image"), strict=True):
        for index, (name, values) in enumerate(margins.items()):
            shown = getattr(values, direction)
            style = line_style(index)
            axes.hist(shown, bins=edges, density=True, histtype="step", lw=1.4, label=name, **style)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel("margin (cosine)")
        axes.set_title(direction.replace("_", " "), fontsize=10)
        plain(axes)
    panels[0].set_ylabel("density")
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
