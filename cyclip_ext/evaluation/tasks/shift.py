"""Natural distribution shift: accuracy on shifted datasets beside that on the base dataset.

Source: Taori et al. 2020 (Measuring Robustness to Natural Distribution Shifts in Image
Classification): effective robustness is accuracy beyond what a line, fitted to other models,
predicts from the accuracy on the base dataset.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..._files import read_text
from ..._plotting import BLUE, VERMILION, shorten
from ..embeddings import Embeddings
from .base import Cell, Metric, Plot, Table, TaskOptions, TaskResult, Unit
from .zero_shot import Classified, classify

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TASK = "distribution_shift"

TICKS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.97, 0.99, 0.997, 0.999)


# ------------------------------------------------------------------------------------ metrics


@dataclass(frozen=True)
class BaselineLine:
    """The line of baseline models: logit(shifted) = slope logit(base) + intercept.

    points: the (base, shifted) accuracies it was fitted to. r_squared: share of the variance of
    the shifted logits that it explains, 1 for a perfect fit and for two models.
    """

    slope: float
    intercept: float
    r_squared: float
    points: tuple[tuple[float, float], ...]

    def predict(self, base: float) -> float:
        """Return the expected accuracy on the shifted dataset; base is strictly in 0 .. 1.

        Raises ValueError for 0 and 1, which have no logit; see `inside`.
        """
        return _expit(self.slope * _logit(base) + self.intercept)

    def effective_robustness(self, base: float, shifted: float) -> float:
        """Return shifted - predict(base), in -1 .. 1: above 0 is better than the baselines.

        Source: Taori et al. 2020, rho(f) = acc_2(f) - beta(acc_1(f)).
        """
        _check_share(shifted)
        return shifted - self.predict(base)


def fit_baseline(points: Sequence[tuple[float, float]]) -> BaselineLine:
    """Fit a line to the logits of both accuracies by least squares (scipy).

    points: (base, shifted) accuracies of baseline models, for example other checkpoints of one
    recipe, shares strictly between 0 and 1. `inside` moves 0 and 1 there.

    Raises ValueError for other accuracies and for fewer than two different base accuracies, which
    do not determine a line; ImportError without scipy.
    """
    pairs = [(float(base), float(shifted)) for base, shifted in points]
    if len({base for base, _ in pairs}) < 2:
        raise ValueError(
            f"points must have at least 2 different base accuracies, got {pairs[:5]}; add other "
            "checkpoints or models"
        )
    xs, ys = _columns(pairs)
    fit = _scipy_stats().linregress(xs, ys)
    constant = len(set(ys)) == 1  # without variance, a correlation is undefined
    r_squared = 1.0 if constant else float(fit.rvalue) ** 2
    return BaselineLine(float(fit.slope), float(fit.intercept), r_squared, tuple(pairs))


def inside(accuracy: float, images: int) -> float:
    """Return the accuracy, moved by half an image if it is 0 or 1 and so has no logit.

    images: the number of images that the accuracy is a share of.
    """
    _check_share(accuracy)
    if images < 1:
        raise ValueError(f"images must be 1 or more, got {images}")
    half = 0.5 / images
    return min(max(accuracy, half), 1 - half)


def shift_metrics(
    base: float,
    shifted: Mapping[str, float],
) -> dict[str, float]:
    """Compare accuracies on shifted datasets, by name, with that on the base dataset.

    acc1/base; acc1/<name>; acc1_drop/<name>, base minus shifted; acc1_shifted, the mean over the
    shifted datasets, each counted once.

    Raises ValueError for accuracies outside 0 .. 1, without a shifted dataset, and for one that is
    called "base".
    """
    if not shifted:
        raise ValueError("shifted is empty: name at least one shifted dataset")
    if "base" in shifted:
        raise ValueError('a shifted dataset must not be called "base", like the base: rename it')
    metrics = {"acc1/base": _check_share(base)}
    for name, accuracy in shifted.items():
        metrics[f"acc1/{name}"] = _check_share(accuracy)
        metrics[f"acc1_drop/{name}"] = base - accuracy
    metrics["acc1_shifted"] = math.fsum(shifted.values()) / len(shifted)
    return metrics


def read_baselines(path: str | Path) -> dict[str, tuple[tuple[float, float], ...]]:
    """Read the (base, shifted) accuracies of baseline models for each shifted dataset.

    path: a CSV file with a row per model, a column "base" and one per shifted dataset under its
    name; a column "model" is for readers. Accuracies are shares, not percent. An empty cell means
    not measured.

    Raises ValueError, naming the file and the line, for other columns or two of one name, rows
    longer than the header, and cells that are not an accuracy.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    rows = csv.DictReader(StringIO(read_text(Path(path))), skipinitialspace=True)
    header = list(rows.fieldnames or ())
    columns = [name for name in header if name not in ("base", "model")]
    if "base" not in header or not columns or len(set(header)) < len(header):
        raise ValueError(
            f'{path}, line 1: a column "base" and one per shifted dataset expected, each once and '
            f"with commas between them, got {header}"
        )
    for row in rows:
        if None in row:
            raise ValueError(f"{path}, line {rows.line_num}: more cells than columns ({row[None]})")
        for name in columns:
            if not row[name]:
                continue
            try:
                pair = _check_share(float(row["base"])), _check_share(float(row[name]))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {rows.line_num}: {error}") from error
            points.setdefault(name, []).append(pair)
    if not points:
        raise ValueError(f"{path} has no accuracies")
    return {name: tuple(pairs) for name, pairs in points.items()}


def wilson_interval(hits: int, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of the true accuracy, given the number of right images (scipy).

    Wilson's score interval stays within 0 .. 1 and is not empty at 0 and 1. It covers the choice of
    images, not that of the training seed. Source: Wilson 1927.

    Raises ValueError for hits outside 0 .. images; ImportError without scipy.
    """
    if not 0 <= hits <= images or images < 1:
        raise ValueError(f"hits must be in 0 .. images and images above 0, got {hits} and {images}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    test = _scipy_stats().binomtest(hits, images)
    interval = test.proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def _scipy_stats() -> Any:
    """Import scipy.stats. Raises ImportError if that fails."""
    try:
        import scipy.stats
    except Exception as error:
        raise ImportError(
            "intervals and lines of the distribution shift need scipy, which scikit-learn brings: "
            f"pip install 'cyclip_ext[eval]'; importing it failed with: {error}"
        ) from error
    return scipy.stats


# --------------------------------------------------------------------------------------- plot


def plot_shift(
    figure: Figure,
    models: Mapping[str, tuple[float, float]],
    line: BaselineLine | None = None,
    *,
    base_name: str = "base dataset",
    shifted_name: str = "shifted dataset",
) -> None:
    """Plot the accuracy on a shifted dataset against that on the base, on logit scales.

    models: name -> (base, shifted) accuracies, strictly between 0 and 1, see `inside`. line: the
    baselines with their points; the height of a model above it, read off the axis, is its effective
    robustness.
    """
    points = [*models.values(), *(line.points if line else ())]
    if not points:
        raise ValueError("models is empty: nothing to plot")
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    logits = [_logit(accuracy) for point in points for accuracy in point]
    low, high = min(logits) - 0.3, max(logits) + 0.3
    axes.plot([low, high], [low, high], ":", color="0.5", label="no drop: y = x")
    if line is not None:
        ends = [line.slope * end + line.intercept for end in (low, high)]
        axes.plot([low, high], ends, color=BLUE, label=f"baselines, R² = {line.r_squared:.2f}")
        axes.scatter(*_columns(line.points), s=18, color=BLUE)
    axes.scatter(*_columns(list(models.values())), s=40, color=VERMILION, marker="D", zorder=3)
    for name, (base, shifted) in models.items():
        axes.annotate(
            shorten(name),
            (_logit(base), _logit(shifted)),
            xytext=(5, -9),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set(xlim=(low, high), ylim=(low, high))
    _percent_ticks(axes, low, high)
    axes.set_xlabel(f"top-1 accuracy on {shorten(base_name)} (%, logit scale)")
    axes.set_ylabel(f"top-1 accuracy on {shorten(shifted_name)} (%, logit scale)")
    axes.grid(color="0.9")
    axes.legend(fontsize=8, loc="upper left")


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [_logit(base) for base, _ in points], [_logit(shifted) for _, shifted in points]


def _percent_ticks(axes: Axes, low: float, high: float) -> None:
    shown = [share for share in TICKS if low <= _logit(share) <= high]
    places, labels = [_logit(share) for share in shown], [f"{100 * share:g}" for share in shown]
    axes.set_xticks(places, labels)
    axes.set_yticks(places, labels)


def _logit(accuracy: float) -> float:
    if not 0 < accuracy < 1:  # NaN included
        raise ValueError(
            f"accuracies must be shares strictly between 0 and 1, got {accuracy}; divide percent "
            "by 100, and move 0 and 1 by `inside`, which needs the number of images"
        )
    return math.log(accuracy) - math.log1p(-accuracy)


def _expit(logit: float) -> float:
    if logit < 0:
        return math.exp(logit) / (1 + math.exp(logit))
    return 1 / (1 + math.exp(-logit))


def _check_share(accuracy: float) -> float:
    if not 0 <= accuracy <= 1:  # NaN included
        raise ValueError(
            f"accuracies must be shares between 0 and 1, got {accuracy}; divide percent by 100"
        )
    return accuracy


# --------------------------------------------------------------------------------------- task


def run(embeddings: Embeddings, options: TaskOptions) -> TaskResult | None:
    """Compare top-1 accuracy on this dataset, the base, with that on options.shifted.

    A shifted dataset with domains and the classes of the base counts as one dataset per domain.
    Raises ValueError for baselines of another dataset, or ones that do not determine a line.
    """
    found = embeddings.classification()
    parts = _parts(embeddings, options.shifted)
    if found is None or not parts:
        return None
    base = classify(*found)
    base_accuracy = _accuracy(base)
    accuracies = {name: _accuracy(part) for name, part in parts.items()}
    values = shift_metrics(base_accuracy, accuracies)
    metrics = [Metric("acc1/base", "top-1, base", Unit.SHARE)]
    for name in parts:
        metrics.append(Metric(f"acc1/{name}", f"top-1, {name}", Unit.SHARE))
        metrics.append(Metric(f"acc1_drop/{name}", f"drop, {name}", Unit.SHARE))
    metrics.append(Metric("acc1_shifted", "top-1, mean of the shifted datasets", Unit.SHARE))
    movable_base = inside(base_accuracy, len(base))  # a line needs one that has a logit
    lines = {}
    for name, points in (options.baselines or {}).items():
        if name not in parts:
            raise ValueError(
                f"baselines are for {name!r}, but the shifted datasets are {', '.join(parts)}"
            )
        lines[name] = fit_baseline(points)
        key = f"effective_robustness/{name}"
        values[key] = lines[name].effective_robustness(movable_base, accuracies[name])
        metrics.append(Metric(key, f"effective robustness, {name}", Unit.SHARE))
    explanation = (
        "Top-1 accuracy on the base dataset and on datasets of the same classes from elsewhere; "
        "the smaller the drop, the more robust the model."
    )
    if lines:
        explanation += (
            " Effective robustness is what remains after the drop of baseline models with the same "
            "base accuracy: above 0 is better than they do."
        )
    rows = [_row(embeddings.name, base)] + [_row(name, part) for name, part in parts.items()]
    plots = [
        Plot(
            "accuracies",
            f"Top-1 accuracy on {embeddings.name} (blue) and on the shifted datasets; whiskers are "
            "95% intervals (Wilson), of the choice of images alone. The line marks the base.",
            partial(_plot_bars, rows=rows),
            (6.4, 1.4 + 0.38 * len(rows)),
        )
    ]
    for name, line in lines.items():
        model = movable_base, inside(accuracies[name], len(parts[name]))
        plots.append(
            Plot(
                f"baselines_{name}",
                f"Accuracy on {name} against that on {embeddings.name}, with baseline models "
                "(blue) and their line. The height of this model above the line is its effective "
                "robustness.",
                partial(
                    plot_shift,
                    models={"this model": model},
                    line=line,
                    base_name=embeddings.name,
                    shifted_name=name,
                ),
            )
        )
    return TaskResult(
        embeddings.name,
        TASK,
        values,
        tuple(metrics),
        "Natural distribution shift",
        explanation,
        (_table(rows, values, _note(embeddings, options.shifted)),) if options.details else (),
        tuple(plots) if options.details else (),
        options.shifted,
    )


def _parts(base: Embeddings, shifted: Sequence[Embeddings]) -> dict[str, Classified]:
    """Classify every shifted dataset, or each of its domains, on the classes of the base."""
    parts: dict[str, Classified] = {}
    for other in shifted:
        found = other.classification()
        if found is None:
            continue
        classified = classify(*found)
        if not _by_domain(base, other):
            parts[other.name] = classified
            continue
        assert other.domains is not None
        assert base.labels is not None
        comparable = torch.isin(classified.labels, base.labels)
        for index, domain in enumerate(other.domain_names):
            rows = comparable & (other.domains == index)
            if bool(rows.any()):
                name = f"{other.name}, {domain}" if domain in parts else domain
                parts[name] = classified.subset(rows)
    return parts


def _by_domain(base: Embeddings, other: Embeddings) -> bool:
    same = base.labels is not None and other.class_names == base.class_names
    return same and other.domains is not None


def _note(base: Embeddings, shifted: Sequence[Embeddings]) -> str:
    if base.labels is None or not any(_by_domain(base, other) for other in shifted):
        return ""
    return (
        f"Only images of the {len(base.labels.unique()):,} classes of which {base.name} has "
        "images, so that the domains differ in style alone."
    )


def _accuracy(classified: Classified) -> float:
    return classified.metrics((1,))["acc1"]


@dataclass(frozen=True)
class _Row:
    """One dataset of the table and of the bars: its accuracy with the 95% interval."""

    name: str
    images: int
    accuracy: float
    low: float
    high: float


def _row(name: str, classified: Classified) -> _Row:
    hits = int((classified.ranks < 1).sum())
    interval = wilson_interval(hits, len(classified))
    return _Row(name, len(classified), _accuracy(classified), *interval)


def _table(rows: Sequence[_Row], values: Mapping[str, float], note: str) -> Table:
    robustness = any(key.startswith("effective_robustness/") for key in values)
    cells: list[tuple[Cell, ...]] = []
    for row in rows:
        further = []
        for key in ("acc1_drop", "effective_robustness")[: 2 if robustness else 1]:
            value = values.get(f"{key}/{row.name}") if row is not rows[0] else None
            further.append(None if value is None else 100 * value)
        interval = f"{100 * row.low:.1f} to {100 * row.high:.1f}"
        cells.append((row.name, row.images, 100 * row.accuracy, interval, *further))
    header = ("dataset", "images", "top-1 (%)", "95% interval (%)", "drop (points)")
    return Table(
        "Base dataset first",
        (*header, "effective robustness (points)") if robustness else header,
        tuple(cells),
        note,
    )


def _plot_bars(figure: Figure, rows: Sequence[_Row]) -> None:
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    for index, row in enumerate(rows):
        axes.barh(
            index,
            100 * row.accuracy,
            xerr=[
                [100 * max(0.0, row.accuracy - row.low)],
                [100 * max(0.0, row.high - row.accuracy)],
            ],
            color=VERMILION if index else BLUE,
            error_kw={"elinewidth": 1, "capsize": 3},
        )
    axes.axvline(100 * rows[0].accuracy, color="0.4", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(rows)), [f"{shorten(row.name)} ({row.images:,})" for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, None)
    axes.set_xlabel("top-1 accuracy (%); in brackets: images")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
