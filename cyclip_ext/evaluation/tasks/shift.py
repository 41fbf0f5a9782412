"""Natural distribution shift: accuracy on shifted datasets compared with that on the base.

Source: Taori et al. 2020 (Measuring Robustness to Natural Distribution Shifts in Image
Classification): effective robustness is the accuracy minus the prediction, from the accuracy on the
base dataset, of a line that is fitted to other models.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..._files import read_text
from ..._optional import require
from ..._plotting import BLUE, VERMILION, shorten
from ..embeddings import Embeddings
from .base import Cell, Metric, Plot, Table, TaskOptions, TaskResult, Unit
from .zero_shot import Classified, classify

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASK = "distribution_shift"

TICKS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.97, 0.99, 0.997, 0.999)

Points = Sequence[tuple[float, float]]  # (base, shifted) accuracies, a pair per model


# -------------------------------------------------------------------------- baselines, intervals


@dataclass(frozen=True)
class BaselineLine:
    """The line of baseline models: logit(shifted) = slope logit(base) + intercept.

    points: the (base, shifted) accuracies it was fitted to. r_squared: share of the variance of
    the shifted logits that it explains, 1 for a perfect fit and for two models.
    """

    slope: float
    intercept: float
    r_squared: float
    points: Points

    def predict(self, base: float) -> float:
        """Return the expected accuracy on the shifted dataset; base is strictly in 0 .. 1."""
        return _expit(self.slope * _logit(base) + self.intercept)


def fit_baseline(points: Points) -> BaselineLine:
    """Fit a line to the logits of both accuracies by least squares (scipy).

    Raises ValueError for accuracies of 0 and 1, which have no logit, and for fewer than two
    different base accuracies, which do not determine a line; ImportError without scipy.
    """
    if len({base for base, _ in points}) < 2:
        raise ValueError(
            f"points must have at least 2 different base accuracies, got {[*points[:5]]}; add "
            "other checkpoints or models"
        )
    xs, ys = _logits(points)
    fit = _scipy_stats().linregress(xs, ys)
    constant = len(set(ys)) == 1  # without variance, a correlation is undefined
    r_squared = 1.0 if constant else float(fit.rvalue) ** 2
    return BaselineLine(float(fit.slope), float(fit.intercept), r_squared, points)


def read_baselines(path: str | Path) -> dict[str, Points]:
    """Read the (base, shifted) accuracies of baseline models for each shifted dataset.

    path: a CSV file with a row per model, a column "base" and one per shifted dataset under its
    name; a column "model" is ignored. Accuracies are shares, not percent. An empty cell means
    not measured.

    Raises ValueError, naming the file and the line, for other columns or two of one name, rows
    longer than the header, cells of several lines, and cells that are not an accuracy.
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
        if any("\n" in cell for cell in row.values() if cell):
            raise ValueError(
                f"{path}, line {rows.line_num}: a cell has several lines; close its quote"
            )
        for name in filter(row.get, columns):
            try:
                pair = _share(row["base"]), _share(row[name])
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {rows.line_num}: {error}") from error
            points.setdefault(name, []).append(pair)
    if not points:
        raise ValueError(f"{path} has no accuracies; add a row for each model")
    return {name: tuple(pairs) for name, pairs in points.items()}


def _share(cell: str) -> float:
    accuracy = float(cell)
    if not 0 <= accuracy <= 1:  # NaN included
        raise ValueError(
            f"accuracies must be shares between 0 and 1, got {accuracy}; divide percent by 100"
        )
    return accuracy


def inside(accuracy: float, images: int) -> float:
    """Return the accuracy, moved by half an image if it is 0 or 1, which have no logit."""
    half = 0.5 / images
    return min(max(accuracy, half), 1 - half)


def wilson_interval(hits: int, images: int) -> tuple[float, float]:
    """Return the 95% interval of the true accuracy, given the number of right images (scipy).

    Wilson's score interval stays within 0 .. 1 and is not empty at 0 and 1. It covers the choice of
    images, not that of the training seed. Source: Wilson 1927. Raises ImportError without scipy.
    """
    interval = _scipy_stats().binomtest(hits, images).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _scipy_stats() -> Any:
    purpose = "intervals and lines of the distribution shift need scipy"
    return require("scipy.stats", purpose, "eval")


def _logits(points: Points) -> tuple[list[float], list[float]]:
    return [_logit(base) for base, _ in points], [_logit(shifted) for _, shifted in points]


def _logit(accuracy: float) -> float:
    if not 0 < accuracy < 1:  # NaN included
        raise ValueError(
            "accuracies of baselines must be shares strictly between 0 and 1, got "
            f"{accuracy}; divide percent by 100, and move 0 and 1 by half an image"
        )
    return math.log(accuracy) - math.log1p(-accuracy)


def _expit(logit: float) -> float:
    if logit < 0:
        return math.exp(logit) / (1 + math.exp(logit))
    return 1 / (1 + math.exp(-logit))


# ------------------------------------------------------------------------------ table and plots


class Scored(NamedTuple):
    """Accuracy on one dataset, with the 95% interval."""

    name: str
    images: int
    accuracy: float
    low: float
    high: float


def _scored(name: str, classified: Classified) -> Scored:
    interval = wilson_interval(int((classified.ranks < 1).sum()), len(classified))
    return Scored(name, len(classified), classified.accuracy(), *interval)


def _table(scored: Sequence[Scored], robustness: dict[str, float], note: str) -> Table:
    base, *_ = scored
    rows: list[tuple[Cell, ...]] = []
    for each in scored:
        interval = f"{100 * each.low:.1f} to {100 * each.high:.1f}"
        drop = None if each is base else 100 * (base.accuracy - each.accuracy)
        rows.append((each.name, each.images, 100 * each.accuracy, interval, drop))
        if robustness:
            beyond = None if each is base else robustness.get(each.name)
            rows[-1] += (None if beyond is None else 100 * beyond,)
    header = ("dataset", "images", "top-1 (%)", "95% interval (%)", "drop (points)")
    return Table(
        "Base dataset first",
        (*header, "effective robustness (points)") if robustness else header,
        tuple(rows),
        note,
    )


def plot_accuracies(figure: Figure, scored: Sequence[Scored]) -> None:
    """Plot the accuracies as bars with their intervals, the base dataset first."""
    axes = figure.subplots()
    for index, (_, _, accuracy, low, high) in enumerate(scored):
        whiskers = [100 * max(0.0, accuracy - low)], [100 * max(0.0, high - accuracy)]
        axes.barh(
            index,
            100 * accuracy,
            xerr=whiskers,
            color=VERMILION if index else BLUE,
            error_kw={"elinewidth": 1, "capsize": 3},
        )
    axes.axvline(100 * scored[0].accuracy, color="0.4", linestyle=":", linewidth=1)
    labels = [f"{shorten(each.name)} ({each.images:,})" for each in scored]
    axes.set_yticks(range(len(scored)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, None)
    axes.set_xlabel("top-1 accuracy (%); in brackets: images")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)


def plot_baselines(
    figure: Figure, line: BaselineLine, model: tuple[float, float], names: tuple[str, str]
) -> None:
    """Plot the accuracy on a shifted dataset against that on the base, on logit scales.

    model: (base, shifted) accuracies, strictly between 0 and 1, see `inside`. names: of the two
    datasets.
    """
    axes = figure.subplots()
    xs, ys = _logits([*line.points, model])
    low, high = min(xs + ys) - 0.3, max(xs + ys) + 0.3
    axes.plot([low, high], [low, high], ":", color="0.5", label="no drop: y = x")
    ends = [line.slope * end + line.intercept for end in (low, high)]
    axes.plot([low, high], ends, color=BLUE, label=f"baselines, R² = {line.r_squared:.2f}")
    axes.scatter(xs[:-1], ys[:-1], s=18, color=BLUE)
    axes.scatter(xs[-1:], ys[-1:], s=40, color=VERMILION, marker="D", zorder=3)
    axes.annotate(
        "this model", (xs[-1], ys[-1]), xytext=(5, -9), textcoords="offset points", fontsize=8
    )
    axes.set(xlim=(low, high), ylim=(low, high))
    ticks = [share for share in TICKS if low <= _logit(share) <= high]
    for name, set_ticks, set_label in (
        (names[0], axes.set_xticks, axes.set_xlabel),
        (names[1], axes.set_yticks, axes.set_ylabel),
    ):
        set_ticks([_logit(share) for share in ticks], [f"{100 * share:g}" for share in ticks])
        set_label(f"top-1 accuracy on {shorten(name)} (%, logit scale)")
    axes.grid(color="0.9")
    axes.legend(fontsize=8, loc="upper left")


# --------------------------------------------------------------------------------------- task


def run(embeddings: Embeddings, options: TaskOptions) -> TaskResult | None:
    """Compare top-1 accuracy on this dataset, the base, with that on options.shifted.

    A shifted dataset with domains and the classes of the base counts as one dataset per domain.
    The values are acc1/base; acc1/<name> and acc1_drop/<name>, base minus shifted; acc1_shifted,
    the mean over the shifted datasets, each counted once; effective_robustness/<name>, acc1/<name>
    minus the accuracy that the line of the baselines predicts (Taori et al. 2020).

    Raises ValueError for a shifted dataset that is called "base", and for baselines of another
    dataset, or ones that do not determine a line.
    """
    found = embeddings.classification()
    parts = _parts(embeddings, options.shifted)
    if found is None or not parts:
        return None
    if "base" in parts:
        raise ValueError('a shifted dataset must not be called "base", like the base: rename it')
    base, *shifted = scored = [
        _scored(embeddings.name, classify(*found)),
        *(_scored(name, part) for name, part in parts.items()),
    ]
    measured = {Metric("acc1/base", "top-1, base", Unit.SHARE): base.accuracy}
    for name, _, accuracy, *_ in shifted:
        measured[Metric(f"acc1/{name}", f"top-1, {name}", Unit.SHARE)] = accuracy
        drop = Metric(f"acc1_drop/{name}", f"drop, {name}", Unit.SHARE)
        measured[drop] = base.accuracy - accuracy
    mean = Metric("acc1_shifted", "top-1, mean of the shifted datasets", Unit.SHARE)
    measured[mean] = math.fsum(each.accuracy for each in shifted) / len(shifted)

    plots = [
        Plot(
            "accuracies",
            f"Top-1 accuracy on {embeddings.name} (blue) and on the shifted datasets; whiskers are "
            "95% intervals (Wilson), of the choice of images alone. The line marks the base.",
            partial(plot_accuracies, scored=scored),
            (6.4, 1.4 + 0.38 * len(scored)),
        )
    ]
    explanation = (
        "Top-1 accuracy on the base dataset and on datasets of the same classes from elsewhere; "
        "the smaller the drop, the more robust the model."
    )
    if options.baselines:
        explanation += (
            " Effective robustness is the accuracy minus that of baseline models with the same "
            "accuracy on the base dataset: above 0 the model is more robust than they are."
        )
    robustness, lines = _against_baselines(base, shifted, options.baselines or {})
    for name, value in robustness.items():
        metric = Metric(f"effective_robustness/{name}", f"effective robustness, {name}", Unit.SHARE)
        measured[metric] = value
    return TaskResult(
        embeddings.name,
        TASK,
        measured,
        "Natural distribution shift",
        explanation,
        (_table(scored, robustness, _note(embeddings, options.shifted)),),
        (*plots, *lines),
        options.shifted,
    )


def _against_baselines(
    base: Scored, shifted: Sequence[Scored], baselines: Mapping[str, Points]
) -> tuple[dict[str, float], list[Plot]]:
    """Return the effective robustness on each dataset that has baselines, and its plot."""
    base_inside = inside(base.accuracy, base.images)
    of_name = {each.name: each for each in shifted}
    robustness: dict[str, float] = {}
    plots = []
    for name, points in baselines.items():
        if name not in of_name:
            raise ValueError(
                f"baselines are for {name!r}, but the shifted datasets are "
                f"{', '.join(of_name)}; use their names in the baselines"
            )
        line, own = fit_baseline(points), of_name[name]
        robustness[name] = own.accuracy - line.predict(base_inside)
        model = base_inside, inside(own.accuracy, own.images)
        plots.append(
            Plot(
                f"baselines_{name}",
                f"Accuracy on {name} against that on {base.name}, with baseline models (blue) and "
                "their line. The height of this model above the line is its effective robustness.",
                partial(plot_baselines, line=line, model=model, names=(base.name, name)),
            )
        )
    return robustness, plots


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
