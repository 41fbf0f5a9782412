"""Natural distribution shift: accuracy on shifted sets beside that on the base set.

Source: Taori et al. 2020 (Measuring Robustness to Natural Distribution Shifts in Image
Classification): effective robustness is accuracy beyond what a line, fitted to other models,
predicts from the accuracy on the base set.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING

from .._plotting import BLUE, VERMILION, shorten
from .text_files import read_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TICKS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.97, 0.99, 0.997, 0.999)


@dataclass(frozen=True)
class BaselineLine:
    """What baseline models lead to expect: logit(shifted) = slope logit(base) + intercept.

    points: the (base, shifted) accuracies it was fitted to. r_squared: share of the variance of
    the shifted logits that it explains, 1 for a perfect fit and for two models.
    """

    slope: float
    intercept: float
    r_squared: float
    points: tuple[tuple[float, float], ...]

    def predict(self, base: float) -> float:
        """Expected accuracy on the shifted set, for an accuracy on the base set strictly in 0..1.

        Raises: ValueError for 0 and 1, which have no logit; see `inside`.
        """
        return _expit(self.slope * _logit(base) + self.intercept)

    def effective_robustness(self, base: float, shifted: float) -> float:
        """rho = shifted - predict(base), between -1 and 1: above 0, better than the baselines.

        Source: Taori et al. 2020, rho(f) = acc_2(f) - beta(acc_1(f)).
        """
        _check_share(shifted)
        return shifted - self.predict(base)


def fit_baseline(points: Sequence[tuple[float, float]]) -> BaselineLine:
    """Least squares in the logits of both accuracies.

    points: (base, shifted) accuracies of baseline models, other checkpoints of one recipe for
    instance, shares strictly between 0 and 1: `inside` moves those of 0 and 1 there, which needs
    the number of pictures.

    Raises: ValueError for an accuracy outside of that and for fewer than two different base
    accuracies, which determine no line.
    """
    pairs = [(float(base), float(shifted)) for base, shifted in points]
    if len({base for base, _ in pairs}) < 2:
        raise ValueError(
            f"points must have at least 2 different base accuracies, got {pairs[:5]}; add other "
            "checkpoints or models"
        )
    xs, ys = [_logit(base) for base, _ in pairs], [_logit(shifted) for _, shifted in pairs]
    mean_x, mean_y = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    xx = math.fsum((x - mean_x) ** 2 for x in xs)
    xy = math.fsum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    slope = xy / xx
    intercept = mean_y - slope * mean_x
    left = math.fsum((y - slope * x - intercept) ** 2 for x, y in zip(xs, ys, strict=True))
    total = math.fsum((y - mean_y) ** 2 for y in ys)
    return BaselineLine(slope, intercept, 1 - left / total if total else 1.0, tuple(pairs))


def inside(accuracy: float, pictures: int) -> float:
    """The accuracy, moved by half a picture where it is 0 or 1 and so has no logit.

    pictures: how many the accuracy is a share of; without them nobody could say how far from 0
    or 1 the true accuracy may be.
    """
    _check_share(accuracy)
    _check_pictures(pictures)
    half = 0.5 / pictures
    return min(max(accuracy, half), 1 - half)


def shift_metrics(
    base: float,
    shifted: Mapping[str, float],
    lines: Mapping[str, BaselineLine] | None = None,
) -> dict[str, float]:
    """Accuracies on a base set and on shifted sets, by name of the set.

    acc1/base; acc1/<set>; acc1_drop/<set>, base minus shifted; effective_robustness/<set> for the
    sets that have a line; acc1_shifted, the mean over the shifted sets, each counted once.

    Raises: ValueError for accuracies outside 0 .. 1, for no shifted set, for one that is called
    "base", and for a line of a set that is not there.
    """
    lines = lines or {}
    if not shifted:
        raise ValueError("shifted is empty: name at least one shifted set")
    if "base" in shifted:
        raise ValueError('a shifted set must not be called "base", as the base set is: rename it')
    if unknown := sorted(set(lines) - set(shifted)):
        raise ValueError(f"lines for {unknown}, but the shifted sets are {sorted(shifted)}")
    metrics = {"acc1/base": _check_share(base)}
    for name, accuracy in shifted.items():
        metrics[f"acc1/{name}"] = _check_share(accuracy)
        metrics[f"acc1_drop/{name}"] = base - accuracy
        if name in lines:
            robustness = lines[name].effective_robustness(base, accuracy)
            metrics[f"effective_robustness/{name}"] = robustness
    metrics["acc1_shifted"] = math.fsum(shifted.values()) / len(shifted)
    return metrics


def read_baselines(path: str | Path) -> dict[str, tuple[tuple[float, float], ...]]:
    """Shifted set -> (base, shifted) accuracies of baseline models, for `fit_baseline`.

    path: a CSV file with a row per model, a column "base" and one per shifted set under its name;
    a column "model" is for readers. Accuracies are shares, not percent. An empty cell means: not
    measured.

    Raises: ValueError, naming the file and the line, for other columns or two of one name, for
    rows longer than the header and for cells that are no accuracy.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    rows = csv.DictReader(StringIO(read_text(Path(path))), skipinitialspace=True)
    header = list(rows.fieldnames or ())
    columns = [name for name in header if name not in ("base", "model")]
    if "base" not in header or not columns or len(set(header)) < len(header):
        raise ValueError(
            f'{path}, line 1: a column "base" and one per shifted set expected, each once and '
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


def wilson_interval(
    accuracy: float, pictures: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of the true accuracy, given the share of right pictures among so many.

    Wilson's score interval: it stays within 0 .. 1 and is not empty at 0 and 1.
    Source: Wilson 1927. It is about the choice of pictures, not of the training seed.
    """
    _check_share(accuracy)
    _check_pictures(pictures)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    scale = 1 + z**2 / pictures
    centre = (accuracy + z**2 / (2 * pictures)) / scale
    half = z / scale * math.sqrt(accuracy * (1 - accuracy) / pictures + (z / (2 * pictures)) ** 2)
    return max(0.0, centre - half), min(1.0, centre + half)


def plot_shift(
    figure: Figure,
    models: Mapping[str, tuple[float, float]],
    line: BaselineLine | None = None,
    *,
    base_name: str = "base set",
    shifted_name: str = "shifted set",
) -> None:
    """Accuracy on a shifted set against that on the base set, logit scales, with y = x.

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
            "by 100, and move 0 and 1 by `inside`, which needs the number of pictures"
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


def _check_pictures(pictures: int) -> None:
    if pictures < 1:
        raise ValueError(f"pictures must be 1 or more, got {pictures}")
