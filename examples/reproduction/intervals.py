"""Mean, deviation and t interval of values per seed, and of their paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean over `count` values. A single value has neither deviation nor interval."""

    count: int
    mean: float
    deviation: float | None  # of the sample, n - 1
    interval: tuple[float, float] | None  # two-sided t interval of the mean


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Estimate the mean of independent values, one per seed, taken as normally distributed.

    Raises ValueError for no values, values that are not finite, or a confidence outside of (0, 1);
    ImportError if scipy is not installed.
    """
    if not values:
        raise ValueError("values is empty: a mean needs at least one")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"values must be finite, got {list(values)}; omit failed seeds")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), such as 0.95, got {confidence}")
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(count, mean, None, None)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = _t_quantile((1 + confidence) / 2, count - 1) * deviation / math.sqrt(count)
    return Estimate(count, mean, deviation, (mean - half, mean + half))


def paired_difference(
    first: Sequence[float], second: Sequence[float], confidence: float = 0.95
) -> Estimate:
    """Estimate first - second for each seed, so that effects of the seed (data, order) cancel.

    Raises the errors of `mean_interval`, and ValueError if the lengths differ.
    """
    if len(first) != len(second):
        raise ValueError(
            f"first and second must have one value per seed, got {len(first)} and {len(second)}"
        )
    return mean_interval([a - b for a, b in zip(first, second, strict=True)], confidence)


def _t_quantile(probability: float, degrees: int) -> float:
    try:
        from scipy.stats import t
    except ImportError as error:
        raise ImportError(
            "t intervals need scipy: pip install 'cyclip_ext[eval]'; "
            f"importing it failed with: {error}"
        ) from error
    return float(t.ppf(probability, degrees))
