"""Consistency of the four corners of two pairs: image i, text i, image j, text j.

The two in-modal sides <x_i, x_j> and <y_i, y_j> should be equal, and so should the two diagonals
<x_i, y_j> and <x_j, y_i>; then the corners are geometrically consistent. Source: Goel et al. 2022,
figure 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..._plotting import BLUE, GREEN, VERMILION
from ..embeddings import Embeddings, unit_pairs
from .base import Metric, Plot, TaskOptions, TaskResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TASK = "four_corners"

QUANTILES = (0.5, 0.9, 0.99)
EXAMPLES = 3  # plotted quadrilaterals

METRICS = tuple(
    metric
    for key, label in (("cross", "cross"), ("in_modal", "in-modal"))
    for metric in (
        Metric(f"{key}_gap_rms", f"{label} gap, root mean square"),
        *(
            Metric(f"{key}_gap_q{round(100 * q)}", f"{label} gap, {round(100 * q)}% quantile")
            for q in QUANTILES
        ),
    )
)


@dataclass(frozen=True)
class Corners:
    """Cosines between the corners of P couples of pairs (i, j), i < j; float64 [P] each."""

    pairs: Tensor  # int64 [P, 2]
    image_image: Tensor  # <x_i, x_j>
    text_text: Tensor  # <y_i, y_j>
    image_text: Tensor  # <x_i, y_j>
    text_image: Tensor  # <x_j, y_i>

    @property
    def cross_gap(self) -> Tensor:
        """S_ij - S_ji, which cross-modal consistency makes small."""
        return self.image_text - self.text_image

    @property
    def in_modal_gap(self) -> Tensor:
        """<x_i, x_j> - <y_i, y_j>, which in-modal consistency makes small."""
        return self.image_image - self.text_text


def sample_corners(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [N, d]
    *,
    count: int = 20_000,
    seed: int = 0,
) -> Corners:
    """Draw `count` random couples of different pairs, with repetition; all if there are fewer.

    Raises ValueError for fewer than two pairs or a count below one.
    """
    images, texts = unit_pairs(image_features, text_features)
    n = len(images)
    if n < 2:
        raise ValueError("image_features has 1 row; corners need at least two pairs")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if count >= n * (n - 1) // 2:
        first, second = torch.triu_indices(n, n, offset=1)
    else:
        generator = torch.Generator().manual_seed(seed)
        a = torch.randint(n, (count,), generator=generator)
        b = (a + torch.randint(1, n, (count,), generator=generator)) % n  # another one, uniformly
        first, second = torch.minimum(a, b), torch.maximum(a, b)

    def cosines(rows: Tensor, cols: Tensor) -> Tensor:
        parts = zip(first.split(4096), second.split(4096), strict=True)
        return torch.cat([(rows[i] * cols[j]).sum(1) for i, j in parts])

    return Corners(
        pairs=torch.stack([first, second], dim=1),
        image_image=cosines(images, images),
        text_text=cosines(texts, texts),
        image_text=cosines(images, texts),
        text_image=cosines(texts, images),
    )


def corner_metrics(corners: Corners) -> dict[str, float]:
    """Return root mean square and 50, 90 and 99 percent quantiles of both absolute gaps.

    Keys: cross_gap_rms, cross_gap_q50, ..., in_modal_gap_q99. CyCLIP's two terms penalize the
    squares of the root mean squares.
    """
    metrics = {}
    for name, gap in (("cross_gap", corners.cross_gap), ("in_modal_gap", corners.in_modal_gap)):
        metrics[f"{name}_rms"] = gap.square().mean().sqrt().item()
        ordered = gap.abs().sort().values  # torch.quantile refuses more than 2^24 values
        for q in QUANTILES:
            metrics[f"{name}_q{round(100 * q)}"] = ordered[round(q * (len(gap) - 1))].item()
    return metrics


def corner_positions(points: Tensor) -> Tensor:
    """Place k points, [k, d], on a plane, [k, 2], by classical multidimensional scaling.

    The plane is the best one in the sense of principal components: no projection preserves the
    distances better. Four points on a sphere need three dimensions in general.
    Source: Torgerson 1952.
    """
    centred = points.double() - points.double().mean(0)
    vectors, lengths, _ = torch.linalg.svd(centred, full_matrices=False)
    places = torch.zeros(len(points), 2, dtype=torch.float64)
    used = min(2, len(lengths))
    places[:, :used] = vectors[:, :used] * lengths[:used]
    return places


def plot_corners(figure: Figure, corners: Corners) -> None:
    """Plot sides against sides and diagonals against diagonals: consistent ones lie on y = x."""
    figure.set_layout_engine("constrained")
    panels: list[Axes] = list(figure.subplots(1, 2))
    contents = (
        ("in-modal", r"$\langle x_i, x_j \rangle$ (images)", r"$\langle y_i, y_j \rangle$ (texts)"),
        ("cross-modal", r"$\langle x_i, y_j \rangle$", r"$\langle x_j, y_i \rangle$"),
    )
    values = (
        (corners.image_image, corners.text_text),
        (corners.image_text, corners.text_image),
    )
    cells: list[Any] = []
    for axes, (title, xlabel, ylabel), (x, y) in zip(panels, contents, values, strict=True):
        low, high = min(x.min(), y.min()).item(), max(x.max(), y.max()).item()
        margin = 0.04 * (high - low) + 1e-3
        low, high = low - margin, high + margin
        extent = (low, high, low, high)
        cells.append(
            axes.hexbin(
                x,
                y,
                gridsize=36,
                bins="log",
                cmap="viridis",
                mincnt=1,
                extent=extent,
                linewidths=0.2,
            )
        )
        axes.plot([low, high], [low, high], color="black", linewidth=0.8, label="$y = x$")
        rms = (x - y).square().mean().sqrt().item()
        axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(low, high), ylim=(low, high), aspect="equal")
        axes.set_title(f"{title}: rms gap {rms:.3f}", fontsize=10)
        axes.locator_params(nbins=5)
        axes.spines[["top", "right"]].set_visible(False)
    most = max(panel.get_array().max() for panel in cells)
    for panel in cells:
        panel.set_clim(1, max(most, 2))  # one scale; a logarithmic one must not be empty
    panels[0].legend(frameon=False, fontsize=9, loc="upper left")
    figure.colorbar(cells[0], ax=panels, shrink=0.6, label="couples of pairs")


def plot_quadrilaterals(
    figure: Figure,
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [N, d]
    pairs: Sequence[tuple[int, int]],
) -> None:
    """Plot the corners of each (i, j) of `pairs` on a plane of their own, all at one scale.

    Each edge is labelled with its cosine in the full space. Raises ValueError without pairs, or for
    one that does not exist.
    """
    images, texts = unit_pairs(image_features, text_features)
    if not pairs:
        raise ValueError("pairs is empty: name at least one (i, j) to plot")
    for i, j in pairs:
        if not (0 <= i < len(images) and 0 <= j < len(images)):
            raise ValueError(f"pairs must be in 0 ... {len(images) - 1}, got ({i}, {j})")
    figure.set_layout_engine("constrained")
    panels: list[Axes] = list(figure.subplots(1, len(pairs), squeeze=False)[0])
    for axes, (i, j) in zip(panels, pairs, strict=True):
        _quadrilateral(axes, torch.stack([images[i], texts[i], images[j], texts[j]]))
        axes.set_title(f"pairs {i} and {j}", fontsize=10)
    across = max(max(map(abs, axes.get_xlim())) for axes in panels)
    up = max(max(map(abs, axes.get_ylim())) for axes in panels)
    for axes in panels:
        axes.set(xlim=(-across, across), ylim=(-up, up), aspect="equal")
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def _quadrilateral(axes: Axes, points: Tensor) -> None:
    """Plot the points image i, text i, image j, text j, float64 [4, d]."""
    places = corner_positions(points)
    # Signs of the axes are arbitrary: image i is placed above and to the left.
    places = places * torch.where(places[0] < 0, -1, 1) * torch.tensor([-1, 1])
    cosines = points @ points.T
    edges = (
        ((0, 1), "0.6", "-", "positive pair"),
        ((2, 3), "0.6", "-", None),
        ((0, 2), BLUE, "-", "images"),
        ((1, 3), VERMILION, "-", "texts"),
        ((0, 3), GREEN, "--", "image to the other's text"),
        ((1, 2), GREEN, "--", None),
    )
    for (a, b), color, dashes, name in edges:
        axes.plot(
            *places[[a, b]].T, color=color, linestyle=dashes, linewidth=1.4, label=name, zorder=1
        )
        # The diagonals may cross in the middle: their numbers are placed beside it.
        at = 0.5 if dashes == "-" else 0.3
        place = (1 - at) * places[a] + at * places[b]
        axes.annotate(
            f"{round(cosines[a, b].item(), 2) + 0.0:.2f}",  # no "-0.00"
            (place[0].item(), place[1].item()),
            fontsize=8,
            color=color if color != "0.6" else "0.35",
            ha="center",
            va="center",
            bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none"},
        )
    for index, name in enumerate(("$x_i$", "$y_i$", "$x_j$", "$y_j$")):
        color = BLUE if index % 2 == 0 else VERMILION
        marker = "o" if index % 2 == 0 else "s"
        x, y = places[index].tolist()
        axes.plot(x, y, marker=marker, color=color, zorder=2)
        outward = places[index] / places[index].norm().clamp_min(1e-9)
        axes.annotate(
            name,
            (x, y),
            xytext=(12 * outward[0].item(), 12 * outward[1].item()),
            textcoords="offset points",
            ha="center",
            va="center",
        )
    axes.margins(0.2)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def run(embeddings: Embeddings, options: TaskOptions) -> TaskResult | None:
    """Measure the gaps of random couples of pairs, and plot a few of the couples."""
    pairs = embeddings.pairs()
    if pairs is None:
        return None
    images, texts = pairs[:2]
    corners = sample_corners(images, texts, seed=options.seed)
    examples = [(int(i), int(j)) for i, j in corners.pairs[:EXAMPLES].tolist()]
    plots = (
        Plot(
            "corners",
            "Couples of pairs: similarity of the two images against that of the two texts (left), "
            "and one diagonal against the other (right). The nearer to the line, the more "
            "consistent.",
            partial(plot_corners, corners=corners),
            (6.4, 3.0),
        ),
        Plot(
            "quadrilaterals",
            "Random couples on the plane that preserves their distances best; numbers are cosines. "
            "Solid coloured sides should be equal, and so should the dashed diagonals.",
            partial(
                plot_quadrilaterals, image_features=images, text_features=texts, pairs=examples
            ),
            (6.4, 3.2),
        ),
    )
    return TaskResult(
        embeddings.name,
        TASK,
        corner_metrics(corners),
        METRICS,
        "Four corners of two pairs",
        "Two images and their two texts are consistent if the images are as similar as the texts, "
        "and the two diagonals are equal (CyCLIP, figure 1). The two cycle terms of the loss make "
        "the gaps small; 0 is perfect.",
        plots=plots if options.details else (),
    )
