"""Tables and plots of a run, and its report.md."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .._files import write_atomic
from .._plotting import COLORS, plain, png
from .logging import MetricsLog

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 130

Results = Mapping[str, Mapping[str, float]]  # evaluation dataset -> metric -> share

# The columns of result tables and plots: (heading, evaluation dataset, metric).
COLUMNS = (
    ("shifted top-1", "shifted", "acc1"),
    ("shifted top-5", "shifted", "acc5"),
    ("all shifted top-1", "all_shifted", "acc1"),
    ("in-domain top-1", "in_domain", "acc1"),
    ("held-out concepts top-1", "heldout_shifted", "acc1"),
    ("shifted subgroups", "shifted", "subgroup_acc1"),
    ("shifted groups", "shifted", "group_acc1"),
    ("consistency with 1-NN", "shifted", "consistency@1"),
    ("text to image R@5", "validation", "image_retrieval_recall@5"),
    ("image to text R@5", "validation", "text_retrieval_recall@5"),
)

# The table printed at the end of a run: metric -> heading.
SUMMARY = {
    "acc1": "top-1",
    "acc5": "top-5",
    "subgroup_acc1": "subgroup",
    "group_acc1": "group",
    "consistency@1": "consistency",
    "image_retrieval_recall@5": "image R@5",
    "text_retrieval_recall@5": "text R@5",
}


def columns_of(results: Results) -> list[tuple[str, str, str]]:
    """Return the COLUMNS that these results have."""
    return [column for column in COLUMNS if column[2] in results.get(column[1], {})]


def summary_table(results: Results) -> str:
    """Return the metrics of SUMMARY in percent, narrow enough for a terminal."""
    metrics = [m for m in SUMMARY if any(m in row for row in results.values())]
    lines = [f"{'':<20}" + "".join(f"{SUMMARY[m]:>12}" for m in metrics)]
    for name, row in results.items():
        cells = (f"{100 * row[m]:12.1f}" if m in row else " " * 12 for m in metrics)
        lines.append(f"{name:<20}" + "".join(cells))
    return "\n".join(lines)


def result_table(results: Results) -> str:
    """Return datasets against metrics, in percent, as Markdown."""
    names = dict.fromkeys(name for row in results.values() for name in row)
    metrics = [name for name in names if "/" not in name]  # single domains are in metrics.jsonl
    rows = [
        [name, *(f"{100 * row[m]:.1f}" if m in row else "" for m in metrics)]
        for name, row in results.items()
    ]
    return _markdown(["dataset", *metrics], rows)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first column is text, and the others numbers."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], "| --- |" + " ---: |" * (len(header) - 1), *lines[1:]])


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation (n - 1); the deviation of one value is NaN."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def of_seeds(seeds: Sequence[object]) -> str:
    """Return what the numbers of a table are, as the beginning of a sentence."""
    if len(seeds) == 1:
        return f"One run each, seed {seeds[0]}"
    return f"Mean ± sample deviation over seeds {', '.join(map(str, seeds))}"


def comparison_table(runs: Mapping[str, Sequence[Results]]) -> str:
    """Return methods against COLUMNS as Markdown: percent, mean ± sample deviation over seeds."""
    columns = columns_of(next(iter(runs.values()))[0])
    rows = []
    for method, results in runs.items():
        rows.append([method, str(len(results))])
        for _, group, metric in columns:
            mean, deviation = mean_and_deviation([100 * r[group][metric] for r in results])
            rows[-1].append(
                f"{mean:.1f}" + ("" if math.isnan(deviation) else f" ± {deviation:.1f}")
            )
    return _markdown(["method", "seeds", *(heading for heading, _, _ in columns)], rows)


def plot_training(log: MetricsLog, path: Path, title: str) -> None:
    """Plot loss terms and temperature against the step."""
    records = log.read("train")
    steps = [record["step"] for record in records]

    def draw(figure: Figure) -> None:
        losses, scale = figure.subplots(1, 2)
        terms = [name for name in records[0] if name.endswith("_loss")] if records else []
        names = ["loss", *terms] if len(terms) > 1 else ["loss"]
        for name, color in zip(names, COLORS, strict=False):
            label = "total" if name == "loss" else name.removesuffix("_loss").replace("_", "-")
            values = [record[name] for record in records]
            losses.plot(steps, values, color=color, label=label, lw=1.3)
        losses.set(xlabel="step", ylabel="weighted loss", ylim=(0, None))
        losses.legend(frameon=False)
        scales = [record["logit_scale"] for record in records]
        scale.plot(steps, scales, color=COLORS[0], lw=1.3)
        scale.set(xlabel="step", ylabel="logit scale (1 / temperature)", ylim=(0, 105))
        for axes in (losses, scale):
            plain(axes)
        figure.suptitle(title)

    write_atomic(path, png(draw, (11, 4), DPI))


def plot_results(runs: Mapping[str, Sequence[Results]], path: Path, title: str) -> None:
    """Plot COLUMNS as bars, one colour per method, with one sample deviation over the seeds."""
    columns = columns_of(next(iter(runs.values()))[0])

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        width = 0.8 / len(runs)
        for index, (method, results) in enumerate(runs.items()):
            pairs = [
                mean_and_deviation([100 * r[group][metric] for r in results])
                for _, group, metric in columns
            ]
            positions = [i + (index - (len(runs) - 1) / 2) * width for i in range(len(columns))]
            deviations = [0.0 if math.isnan(deviation) else deviation for _, deviation in pairs]
            bars = axes.bar(
                positions,
                [mean for mean, _ in pairs],
                width * 0.92,
                yerr=deviations if any(deviations) else None,
                error_kw={"lw": 1},
                color=COLORS[index % len(COLORS)],
                label=method,
            )
            if len(runs) == 1:  # beside other bars there is no room; the table has the numbers
                axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
        headings = ["\n".join(textwrap.wrap(heading, 12)) for heading, _, _ in columns]
        axes.set_xticks(range(len(columns)), headings, fontsize=8)
        axes.set_ylabel("percent")
        axes.margins(x=0.02, y=0.12)
        plain(axes)
        if len(runs) > 1:
            figure.legend(loc="outside lower center", ncols=min(4, len(runs)), frameon=False)
        figure.suptitle(title)

    write_atomic(path, png(draw, (max(6.0, 1.25 * len(columns) + 1), 4.6), DPI))


def write_run_report(folder: Path, label: str, results: Results, facts: Mapping[str, str]) -> None:
    """Write report.md: facts about the run, its numbers and plots."""
    lines = [f"# {label}", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", "All metrics in percent.", "", result_table(results), ""]
    lines += ["![results](results.png)", "", "![training](training.png)", ""]
    write_atomic(folder / "report.md", "\n".join(lines))
