"""Intervals over seeds."""

from __future__ import annotations

import sys

import pytest
from reproduction.intervals import mean_interval, paired_difference

stats = pytest.importorskip("scipy.stats")

FIRST = [0.512, 0.498, 0.530, 0.521]
SECOND = [0.480, 0.491, 0.502, 0.497]


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_paired_interval_equals_scipy(n: int, confidence: float) -> None:
    test = stats.ttest_rel(FIRST[:n], SECOND[:n])
    expected = test.confidence_interval(confidence)
    result = paired_difference(FIRST[:n], SECOND[:n], confidence)
    assert result.interval == pytest.approx((expected.low, expected.high))
    assert result.mean == pytest.approx(sum(FIRST[:n]) / n - sum(SECOND[:n]) / n)


def test_mean_interval_by_hand() -> None:
    result = mean_interval([1.0, 3.0])
    assert (result.count, result.mean) == (2, 2)
    assert result.deviation == pytest.approx(2**0.5)
    assert result.interval == pytest.approx((2 - 12.7062, 2 + 12.7062), abs=1e-4)


def test_interval_of_one_seed_and_of_equal_differences() -> None:
    one = paired_difference([0.5], [0.25])
    assert (one.mean, one.deviation, one.interval) == (0.25, None, None)
    equal = paired_difference([2.0, 3.0, 4.0], [1.0, 2.0, 3.0])
    assert (equal.mean, equal.deviation, equal.interval) == (1, 0, (1, 1))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="values is empty"):
        mean_interval([])
    with pytest.raises(ValueError, match="must be finite"):
        mean_interval([0.1, float("nan")])
    with pytest.raises(ValueError, match="got 2 and 1"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\).*got 95"):
        mean_interval([1.0, 2.0], 95)


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ImportError, match=r"cyclip_ext\[eval\]"):
        mean_interval([1.0, 2.0])
    assert mean_interval([1.0]).mean == 1  # needs none
