"""Accuracy on a base set and on shifted sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ..._plotting import BLUE, VERMILION, shorten
from ..outcome import Cell, Outcome, Plot, Table
from ..shift import (
    BaselineLine,
    fit_baseline,
    inside,
    plot_shift,
    shift_metrics,
    wilson_interval,
)
from ..zero_shot import Classified

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASK = "distribution_shift"

READING = (
    "Top-1 accuracy on the base set and on sets of the same classes from elsewhere; the smaller "
    "the drop, the more robust the model."
)
ROBUSTNESS = (
    " Effective robustness is what remains after the drop that baseline models of the same base "
    "accuracy have: above 0 is better than they do."
)

Baselines = Mapping[str, Sequence[tuple[float, float]]]

# Name, pictures, accuracy, drop, effective robustness.
_Row = tuple[str, int, float, float | None, float | None]


def shift(
    dataset: str,
    base: tuple[str, Classified],
    shifted: Mapping[str, Classified],
    baselines: Baselines | None = None,
    *,
    note: str = "",
) -> Outcome:
    """acc1 of the base and of every shifted set, by name; see shift_metrics.

    baselines: shifted set -> (base, shifted) accuracies of other models, `read_baselines`. note:
    what the sets have in common.
    Raises ValueError where they name a set that is not there, or determine no line.
    """
    base_name, base_result = base
    pictures = {name: len(result) for name, result in shifted.items()}
    base_accuracy = _accuracy(base_result)
    accuracies = {name: _accuracy(result) for name, result in shifted.items()}
    lines = {name: _line(points, pictures, name) for name, points in (baselines or {}).items()}
    metrics = shift_metrics(base_accuracy, accuracies)
    movable_base = inside(base_accuracy, len(base_result))  # a line needs one that has a logit
    for name, line in lines.items():
        metrics[f"effective_robustness/{name}"] = line.effective_robustness(
            movable_base, accuracies[name]
        )
    rows: list[_Row] = [(base_name, len(base_result), base_accuracy, None, None)]
    for name, accuracy in accuracies.items():
        robustness = metrics.get(f"effective_robustness/{name}")
        rows.append((name, pictures[name], accuracy, base_accuracy - accuracy, robustness))
    return Outcome(
        dataset,
        TASK,
        metrics,
        "Natural distribution shift",
        READING + ROBUSTNESS if lines else READING,
        (_table(rows, bool(lines), note),),
        (
            Plot(
                "accuracies",
                f"Top-1 accuracy on {base_name} (blue) and on the shifted sets; whiskers are 95% "
                "intervals (Wilson), of the choice of pictures alone. The line marks the base.",
                partial(_draw_bars, base_name=base_name, rows=[row[:3] for row in rows]),
                (6.4, 1.4 + 0.38 * len(rows)),
            ),
            *(
                Plot(
                    f"baselines_{name}",
                    f"Accuracy on {name} against that on {base_name}, with baseline models (blue) "
                    "and their line. The height of this model above the line is its effective "
                    "robustness.",
                    partial(
                        plot_shift,
                        models={
                            "this model": (movable_base, inside(accuracies[name], pictures[name]))
                        },
                        line=line,
                        base_name=base_name,
                        shifted_name=name,
                    ),
                )
                for name, line in lines.items()
            ),
        ),
    )


def _line(
    points: Sequence[tuple[float, float]], pictures: Mapping[str, int], name: str
) -> BaselineLine:
    if name not in pictures:
        raise ValueError(
            f"baselines are for {name!r}, but the shifted sets are {', '.join(pictures)}"
        )
    return fit_baseline(points)


def _accuracy(classified: Classified) -> float:
    return classified.metrics((1,))["acc1"]


def _table(rows: Sequence[_Row], lines: bool, note: str) -> Table:
    cells: list[tuple[Cell, ...]] = []
    for name, pictures, accuracy, drop, robustness in rows:
        low, high = wilson_interval(accuracy, pictures)
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
        row: list[Cell] = [
            name,
            pictures,
            100 * accuracy,
            interval,
            None if drop is None else 100 * drop,
        ]
        if lines:
            row.append(None if robustness is None else 100 * robustness)
        cells.append(tuple(row))
    header = ("set", "pictures", "top-1 (%)", "95% interval (%)", "drop (points)")
    return Table(
        "Base set first",
        (*header, "effective robustness (points)") if lines else header,
        tuple(cells),
        note,
    )


def _draw_bars(figure: Figure, base_name: str, rows: Sequence[tuple[str, int, float]]) -> None:
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    for index, (name, pictures, accuracy) in enumerate(rows):
        low, high = wilson_interval(accuracy, pictures)
        axes.barh(
            index,
            100 * accuracy,
            xerr=[[100 * (accuracy - low)], [100 * (high - accuracy)]],
            color=BLUE if name == base_name else VERMILION,
            error_kw={"elinewidth": 1, "capsize": 3},
        )
    axes.axvline(100 * rows[0][2], color="0.4", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(rows)), [f"{shorten(name)} ({n:,})" for name, n, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, None)
    axes.set_xlabel("top-1 accuracy (%); in brackets: pictures")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
