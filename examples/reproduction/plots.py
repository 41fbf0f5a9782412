"""Plots of studies: lines with bands over seeds, differences with intervals, distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cyclip_ext._plotting import BLUE, VERMILION, line_style, plain
from cyclip_ext.training.report import mean_and_deviation

from .intervals import paired_difference
from .runs import Result
from .values import Value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Lines = Mapping[str, Mapping[float, Sequence[Result]]]  # name -> position -> runs over seeds


def plot_lines(
    figure: Figure,
    lines: Lines,
    values: Sequence[Value],
    xlabel: str,
    *,
    log: bool = False,
) -> None:
    """Draw one panel per value: means, bands of one sample deviation, seeds as points."""
    columns = min(2, len(values))
    panels = figure.subplots(-(-len(values) // columns), columns, squeeze=False).flat
    for axes, value in zip(panels, values, strict=False):
        for index, (name, points) in enumerate(lines.items()):
            _line(axes, {x: value.of_all(runs) for x, runs in points.items()}, name, index)
        axes.set(xlabel=xlabel, ylabel=value.heading + (" (%)" if value.percent else ""))
        positions = sorted({x for points in lines.values() for x in points})
        if log:
            axes.set_xscale("log")
            axes.minorticks_off()
        axes.set_xticks(positions, [f"{x:g}" for x in positions])
        plain(axes)
    for axes in list(panels):  # an odd number of panels leaves one position empty
        axes.set_visible(False)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=9)


def _line(axes: Axes, points: Mapping[float, list[float]], name: str, index: int) -> None:
    style = line_style(index)
    xs = list(points)
    summaries = [mean_and_deviation(seeds) for seeds in points.values()]
    means = [mean for mean, _ in summaries]
    axes.plot(xs, means, lw=1.6, label=name, **style)
    if all(len(seeds) > 1 for seeds in points.values()):
        low, high = ([m + sign * d for m, d in summaries] for sign in (-1, 1))
        axes.fill_between(xs, low, high, color=style["color"], alpha=0.15, lw=0)
    for x, seeds in points.items():
        axes.plot([x] * len(seeds), seeds, "o", ms=3, color=style["color"], alpha=0.6)


def plot_differences(
    figure: Figure,
    runs: Mapping[str, Sequence[Result]],
    baseline: str,
    values: Sequence[Value],
) -> None:
    """Draw differences to the baseline: each seed as a point, the mean with its 95% interval."""
    panels = figure.subplots(1, len(values), sharey=True, squeeze=False)[0]
    others = [name for name in runs if name != baseline]
    for axes, value in zip(panels, values, strict=True):
        for row, name in enumerate(others):
            a, b = value.of_all(runs[name]), value.of_all(runs[baseline])
            estimate = paired_difference(a, b)
            if estimate.interval is not None:
                axes.plot(estimate.interval, [row, row], color=BLUE, lw=2, alpha=0.5)
            axes.plot(
                [x - y for x, y in zip(a, b, strict=True)],
                [row] * len(a),
                "o",
                ms=3.5,
                color=VERMILION,
            )
            axes.plot(estimate.mean, row, "|", ms=12, mew=2, color=BLUE)
        axes.axvline(0, color="black", lw=0.8)
        axes.set_yticks(range(len(others)), others, fontsize=9)
        axes.set_xlabel(f"{value.heading},\ndifference" + (" (points)" if value.percent else ""))
        plain(axes)
    panels[0].invert_yaxis()


def plot_margin_shares(figure: Figure, runs: Mapping[str, Sequence[Result]], dataset: str) -> None:
    """Draw the share of pairs with a smaller margin, against the margin; means over seeds."""
    axes = figure.subplots()
    for index, (name, own) in enumerate(runs.items()):
        keys = sorted(key for key in own[0]["measures"][dataset] if "margin_quantile/" in key)
        quantiles = [sum(run["measures"][dataset][key] for run in own) / len(own) for key in keys]
        shares = [100 * i / (len(keys) - 1) for i in range(len(keys))]
        axes.plot(quantiles, shares, lw=1.5, label=name, **line_style(index))
    axes.axvline(0, color="black", lw=0.8)
    axes.set(xlabel="margin (cosine)", ylabel="pairs with a smaller margin (%)", ylim=(0, 100))
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    plain(axes)
