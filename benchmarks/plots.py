"""Plots of a run of `loss`: time and memory against N, on logarithmic axes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from .peers import OTHER_FUNCTION, OURS, OURS_BF16, OURS_BF16_FEATURES, RECOMPUTE
from .results import Results, exponent

FITTED_FROM = 1024  # below it, the overhead of calls dominates
COLORS = {OURS: "C3", RECOMPUTE: "C1", OURS_BF16: "C4", OURS_BF16_FEATURES: "C6"}
# Peers in the tables alone: other functions, and losses without normalization or of rows only.
UNDRAWN = rf"{OTHER_FUNCTION}|, unit rows$|^sentence_transformers"
OTHER_COLORS = ("black", "C0", "C2", "C5", "C7", "C8", "C9")


@dataclass(frozen=True)
class Panel:
    title: str
    measure: str
    family: str
    column: str
    label: str


PLOTS = {
    "benchmark_time": [
        Panel("Contrastive loss", "time", "clip", "median_ms", "time, ms"),
        Panel("CyCLIP", "time", "cyclip", "median_ms", "time, ms"),
        Panel("Cycle terms alone", "time", "cycle", "median_ms", "time, ms"),
    ],
    "benchmark_memory": [
        Panel("Contrastive loss", "memory", "clip", "extra_mb", "extra memory, MB"),
        Panel("CyCLIP", "memory", "cyclip", "extra_mb", "extra memory, MB"),
    ],
}


def draw(results: Results, folder: Path) -> Iterator[Path]:
    """Write the plots and yield their paths."""
    import matplotlib

    matplotlib.use("Agg")
    # Text as text, and the same file from the same CSV.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "cyclip_ext"})
    folder.mkdir(parents=True, exist_ok=True)
    for name, panels in PLOTS.items():
        path = folder / f"{name}.svg"
        _draw(results, panels, path)
        yield path


def _draw(results: Results, panels: list[Panel], path: Path) -> None:
    from matplotlib import pyplot

    figure, all_axes = pyplot.subplots(
        1, len(panels), figsize=(5.6 * len(panels), 5.2), squeeze=False, layout="constrained"
    )
    for axes, panel in zip(all_axes[0], panels, strict=True):
        others = cycle(OTHER_COLORS)
        for peer in results.peers(panel.measure, panel.family):
            curve = results.curve(panel.measure, panel.family, peer, panel.column)
            if not curve or re.search(UNDRAWN, peer):
                continue
            fitted = exponent([point for point in curve if point[0] >= FITTED_FROM])
            power = "" if fitted is None else f"  N^{fitted:.2f}"
            ours = peer in COLORS
            axes.plot(
                [n for n, _ in curve],
                [value for _, value in curve],
                color=COLORS[peer] if ours else next(others),
                marker="o" if ours else ".",
                linestyle="-" if ours else "--",
                linewidth=1.8 if ours else 1.0,
                markersize=4,
                label=f"{peer}{power}",
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_title(panel.title)
        axes.set_xlabel("N, pairs in the batch")
        axes.set_ylabel(panel.label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
