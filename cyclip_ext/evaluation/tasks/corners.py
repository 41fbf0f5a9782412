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
from ..embeddings import Embeddings, unit_rows
from .base import Metric, Plot, TaskOptions, TaskResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TASK = "four_corners"

COUPLES = 20_000
PERCENT = (50, 90, 99)  # quantiles of the gaps
EXAMPLES = 3  # plotted quadrilaterals


@dataclass(frozen=True)
class Corners:
    """Cosines between the corners of P couples of pairs (i, j), i < j; float64 [P] each."""

    pairs: Tensor  # int64 [P, 2]
    image_image: Tensor  # <x_i, x_j>
    text_text: Tensor  # <y_i, y_j>
    image_text: Tensor  # <x_i, y_j>
    text_image: Tensor  # <x_j, y_i>

    @property
    def gaps(self) -> dict[str, Tensor]:
        """Differences that cross-modal and in-modal consistency make small."""
        return {
            "cross": self.image_text - self.text_image,
            "in-modal": self.image_image - self.text_text,
        }


def sample_corners(
    image_features: Tensor,  # [N, d], N > 1
    text_features: Tensor,  # [N, d]
    *,
    count: int = COUPLES,
    seed: int = 0,
) -> Corners:
    """Draw `count` random couples of different pairs, with repetition; all if there are fewer."""
    images, texts = unit_rows(image_features), unit_rows(text_features)
    n = len(images)
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


def corner_metrics(corners: Corners) -> dict[Metric, float]:
    """Return root mean square and 50, 90 and 99 percent quantiles of both absolute gaps.

    CyCLIP's two terms penalize the squares of the root mean squares.
    """
    measured = {}
    for name, gap in corners.gaps.items():
        key, label = f"{name.replace('-', '_')}_gap", f"{name} gap"
        rms = gap.square().mean().sqrt().item()
        measured[Metric(f"{key}_rms", f"{label}, root mean square")] = rms
        ordered = gap.abs().sort().values  # torch.quantile is limited to 2^24 values
        for percent in PERCENT:
            metric = Metric(f"{key}_q{percent}", f"{label}, {percent}% quantile")
            measured[metric] = ordered[round(percent / 100 * (len(gap) - 1))].item()
    return measured


def corner_positions(points: Tensor) -> Tensor:
    """Place k points, [k, d], on a plane, [k, 2], by classical multidimensional scaling.

    The plane is the best one in the sense of principal components: no projection preserves the
    distances better. Four points on a sphere need three dimensions in general.
    Source: Torgerson 1952.
    """
    centred = points - points.mean(0)
    vectors, lengths, _ = torch.linalg.svd(centred, full_matrices=False)
    places = points.new_zeros(len(points), 2)
    used = min(2, len(lengths))
    places[:, :used] = vectors[:, :used] * lengths[:used]
    return places


def plot_corners(figure: Figure, corners: Corners) -> None:
    """Plot sides against sides and diagonals against diagonals: consistent ones lie on y = x."""
    panels: list[Axes] = list(figure.subplots(1, 2))
    contents = (
        ("in-modal", corners.image_image, corners.text_text),
        ("cross-modal", corners.image_text, corners.text_image),
    )
    labels = (
        (r"$\langle x_i, x_j \rangle$ (images)", r"$\langle y_i, y_j \rangle$ (texts)"),
        (r"$\langle x_i, y_j \rangle$", r"$\langle x_j, y_i \rangle$"),
    )
    cells: list[Any] = []
    for axes, (title, x, y), (xlabel, ylabel) in zip(panels, contents, labels, strict=True):
        low, high = min(x.min(), y.min()).item(), max(x.max(), y.max()).item()
        margin = 0.04 * (high - low) + 1e-3
        ends = low - margin, high + margin
        cells.append(
            axes.hexbin(
                x, y, gridsize=36, bins="log", mincnt=1, extent=(*ends, *ends), linewidths=0.2
            )
        )
        axes.plot(ends, ends, color="black", linewidth=0.8, label="$y = x$")
        rms = (x - y).square().mean().sqrt().item()
        axes.set(xlabel=xlabel, ylabel=ylabel, xlim=ends, ylim=ends, aspect="equal")
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

    Each edge is labelled with its cosine in the full space.
    """
    images, texts = unit_rows(image_features), unit_rows(text_features)
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
    centre: Any = {"ha": "center", "va": "center"}
    for (a, b), color, dashes, name in edges:
        axes.plot(
            *places[[a, b]].T, color=color, linestyle=dashes, linewidth=1.4, label=name, zorder=1
        )
        # The diagonals may cross in the middle: their numbers are placed beside it.
        place = torch.lerp(places[a], places[b], 0.5 if dashes == "-" else 0.3)
        axes.annotate(
            f"{round(cosines[a, b].item(), 2) + 0.0:.2f}",  # no "-0.00"
            (place[0].item(), place[1].item()),
            fontsize=8,
            color=color if color != "0.6" else "0.35",
            bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none"},
            **centre,
        )
    corners = zip(("$x_i$", "$y_i$", "$x_j$", "$y_j$"), 2 * ("o", "s"), places, strict=True)
    for name, marker, place in corners:
        color = BLUE if marker == "o" else VERMILION
        x, y = place.tolist()
        axes.plot(x, y, marker=marker, color=color, zorder=2)
        outward = 12 * place / place.norm().clamp_min(1e-9)
        axes.annotate(name, (x, y), xytext=outward.tolist(), textcoords="offset points", **centre)
    axes.margins(0.2)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def run(embeddings: Embeddings, options: TaskOptions) -> TaskResult | None:
    """Measure the gaps of random couples of pairs, and plot a few of the couples."""
    pairs = embeddings.pairs()
    if pairs is None:
        return None
    images, texts, _ = pairs
    corners = sample_corners(images, texts, seed=options.seed)
    examples = corners.pairs[:EXAMPLES].tolist()
    quadrilaterals = partial(
        plot_quadrilaterals, image_features=images, text_features=texts, pairs=examples
    )
    return TaskResult(
        embeddings.name,
        TASK,
        corner_metrics(corners),
        "Four corners of two pairs",
        "Two images and their two texts are consistent if the images are as similar as the texts, "
        "and the two diagonals are equal (CyCLIP, figure 1). The two cycle terms of the loss make "
        "the gaps small; 0 is perfect.",
        plots=(
            Plot(
                "corners",
                "Couples of pairs: similarity of the two images against that of the two texts "
                "(left), and one diagonal against the other (right). The nearer to the line, the "
                "more consistent.",
                partial(plot_corners, corners=corners),
                (6.4, 3.0),
            ),
            Plot(
                "quadrilaterals",
                "Random couples on the plane that preserves their distances best; numbers are "
                "cosines. Solid coloured sides should be equal, and so should the dashed "
                "diagonals.",
                quadrilaterals,
                (6.4, 3.2),
            ),
        ),
    )
