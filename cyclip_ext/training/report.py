"""What a run leaves behind for a reader: tables, plots, report.md."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .._plotting import COLORS
from .tracking import MetricsLog

Results = Mapping[str, Mapping[str, float]]  # evaluation set -> metric -> share

# What the result tables and plots show: (heading, evaluation set, metric).
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

# What a run prints at its end: metric -> heading.
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
    """The COLUMNS that these results have."""
    return [column for column in COLUMNS if column[2] in results.get(column[1], {})]


def summary_table(results: Results) -> str:
    """The metrics of SUMMARY, narrow enough for a terminal, in percent."""
    metrics = [m for m in SUMMARY if any(m in row for row in results.values())]
    lines = [f"{'':<20}" + "".join(f"{SUMMARY[m]:>12}" for m in metrics)]
    for name, row in results.items():
        cells = (f"{100 * row[m]:12.1f}" if m in row else " " * 12 for m in metrics)
        lines.append(f"{name:<20}" + "".join(cells))
    return "\n".join(lines)


def result_table(results: Results) -> str:
    """Evaluation sets against metrics, in percent, as Markdown."""
    names = dict.fromkeys(name for row in results.values() for name in row)
    metrics = [name for name in names if "/" not in name]  # those of single domains: metrics.jsonl
    lines = [
        "| set | " + " | ".join(metrics) + " |",
        "| --- |" + " ---: |" * len(metrics),
    ]
    for name, row in results.items():
        cells = (f"{100 * row[m]:.1f}" if m in row else "" for m in metrics)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1); the deviation of one value is nan."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def comparison_table(runs: Mapping[str, Sequence[Results]]) -> str:
    """Methods against COLUMNS, in percent, mean +- sample deviation over seeds, as Markdown."""
    columns = columns_of(next(iter(runs.values()))[0])
    lines = [
        "| method | seeds | " + " | ".join(heading for heading, _, _ in columns) + " |",
        "| --- | ---: |" + " ---: |" * len(columns),
    ]
    for method, results in runs.items():
        cells = []
        for _, group, metric in columns:
            mean, deviation = mean_and_deviation([100 * r[group][metric] for r in results])
            cells.append(f"{mean:.1f}" + ("" if math.isnan(deviation) else f" ± {deviation:.1f}"))
        lines.append(f"| {method} | {len(results)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot_training(log: MetricsLog, path: Path, title: str) -> bool:
    """Loss terms and temperature against the step. False, and no file, without matplotlib."""
    records = log.read("train")
    pyplot = _pyplot()
    if pyplot is None or not records:
        return False
    figure, (losses, scale) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    steps = [record["step"] for record in records]
    terms = [name for name in records[0] if name.endswith("_loss")]
    names = ["loss", *terms] if len(terms) > 1 else ["loss"]
    for name, color in zip(names, COLORS, strict=False):
        label = "total" if name == "loss" else name.removesuffix("_loss").replace("_", "-")
        losses.plot(steps, [record[name] for record in records], color=color, label=label, lw=1.3)
    losses.set(xlabel="step", ylabel="weighted loss", ylim=(0, None))
    losses.legend(frameon=False)
    scale.plot(steps, [record["logit_scale"] for record in records], color=COLORS[0], lw=1.3)
    scale.set(xlabel="step", ylabel="logit scale (1 / temperature)", ylim=(0, 105))
    figure.suptitle(title)
    _finish(figure, path)
    return True


def plot_results(runs: Mapping[str, Sequence[Results]], path: Path, title: str) -> bool:
    """COLUMNS as bars, one colour per method, whiskers of one sample deviation over the seeds."""
    pyplot = _pyplot()
    if pyplot is None:
        return False
    columns = columns_of(next(iter(runs.values()))[0])
    if not columns:
        return False
    figure, axes = pyplot.subplots(
        figsize=(max(6.0, 1.25 * len(columns) + 1), 4.6), layout="constrained"
    )
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
    headings = [_wrapped(heading) for heading, _, _ in columns]
    axes.set_xticks(range(len(columns)), headings, fontsize=8)
    axes.set_ylabel("percent")
    axes.margins(x=0.02, y=0.12)
    if len(runs) > 1:
        figure.legend(loc="outside lower center", ncols=min(4, len(runs)), frameon=False)
    figure.suptitle(title)
    _finish(figure, path)
    return True


def write_run_report(
    folder: Path, label: str, results: Results, facts: Mapping[str, str], plots: bool
) -> None:
    """report.md: what was run, the numbers, the pictures."""
    lines = [f"# {label}", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", "All metrics in percent.", "", result_table(results), ""]
    if plots:
        lines += ["![results](results.png)", "", "![training](training.png)", ""]
    (folder / "report.md").write_text("\n".join(lines))


def _wrapped(heading: str) -> str:
    return "\n".join(textwrap.wrap(heading, 12))


def _finish(figure: Any, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    figure.savefig(path, dpi=130)
    _pyplot().close(figure)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:  # extra `train`
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
