"""Numbers of runs by their position in the results, and the table cells of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cyclip_ext.training.report import mean_and_deviation

from .intervals import mean_interval, paired_difference
from .runs import Result


@dataclass(frozen=True)
class Value:
    """A number that every run of a study has.

    heading: its name in tables. dataset: the evaluation dataset, "" for a number of the run itself.
    name: of the metric (result.json) or measure (`measure`). percent: whether it is a share.
    """

    heading: str
    dataset: str
    name: str
    percent: bool = True

    @property
    def unit(self) -> str:
        """The unit of differences."""
        return "points" if self.percent else ""

    def of(self, run: Result) -> float:
        """Return the number of one run, shares in percent."""
        if not self.dataset:
            value: float = run[self.name]
        else:
            own = run["metrics"].get(self.dataset, {}) | run["measures"].get(self.dataset, {})
            value = own[self.name]
        return 100 * value if self.percent else value

    def has(self, run: Result) -> bool:
        """Return whether a run has this value; file datasets have no classes."""
        own = run["metrics"].get(self.dataset, {}) | run["measures"].get(self.dataset, {})
        return self.name in (own if self.dataset else run)

    def of_all(self, runs: Sequence[Result]) -> list[float]:
        """Return one number per run."""
        return [self.of(run) for run in runs]

    def cell(self, runs: Sequence[Result]) -> str:
        """Return mean and sample deviation over the runs."""
        mean, deviation = mean_and_deviation(self.of_all(runs))
        digits = 1 if self.percent else _digits(mean)
        if len(runs) == 1:
            return f"{mean:.{digits}f}"
        return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def difference_cells(value: Value, first: Sequence[Result], second: Sequence[Result]) -> list[str]:
    """Return the cells of first - second: one per seed, then the mean with its 95% t interval."""
    a, b = value.of_all(first), value.of_all(second)
    each = [x - y for x, y in zip(a, b, strict=True)]
    digits = 1 if value.percent else _digits(max(map(abs, a + b)))
    estimate = paired_difference(a, b)
    shown = f"{estimate.mean:+.{digits}f}"
    if estimate.interval is not None:
        low, high = estimate.interval
        shown += f" ({low:+.{digits}f} to {high:+.{digits}f})"
    return [*(f"{difference:+.{digits}f}" for difference in each), shown]


def verdict(differences: Sequence[float], direction: int) -> str:
    """Judge the claim that differences per seed have a sign, `direction`, +1 or -1.

    "shown": the 95% t interval is on the claimed side of zero. "every seed": all have the sign, and
    the interval contains zero. "opposite": the interval is on the other side. "not shown": neither.
    A single seed is "not shown".
    """
    signed = [direction * difference for difference in differences]
    interval = mean_interval(signed).interval
    if interval is None:
        return "not shown"
    if interval[0] > 0:
        return "shown"
    if interval[1] < 0:
        return "opposite"
    return "every seed" if min(signed) > 0 else "not shown"


def _digits(magnitude: float) -> int:
    return 1 if abs(magnitude) >= 10 else 3
