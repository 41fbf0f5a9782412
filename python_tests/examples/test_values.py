"""Cells and verdicts, by hand."""

from __future__ import annotations

import pytest
from reproduction.values import Value, difference_cells, verdict


def runs(*values: float) -> list[dict]:
    return [
        {"metrics": {"a": {"acc1": v}}, "measures": {"a": {"gap": v}}, "scale": v} for v in values
    ]


def test_cells() -> None:
    assert Value("", "a", "acc1").cell(runs(0.1, 0.3)) == "20.0 ± 14.1"
    assert Value("", "a", "acc1").cell(runs(0.25)) == "25.0"
    assert Value("", "a", "gap", percent=False).cell(runs(0.1, 0.3)) == "0.200 ± 0.141"
    assert Value("", "", "scale", percent=False).cell(runs(33.0, 35.0)) == "34.0 ± 1.4"
    assert not Value("", "b", "acc1").has(runs(1.0)[0])
    assert Value("", "", "scale").has(runs(1.0)[0])


def test_differences_are_of_the_same_seed() -> None:
    cells = difference_cells(Value("", "a", "acc1"), runs(0.3, 0.1), runs(0.1, 0.2))
    assert cells == ["+20.0", "-10.0", "+5.0 (-185.6 to +195.6)"]  # 12.706 * 15
    assert difference_cells(Value("", "a", "acc1"), runs(0.3), runs(0.1)) == ["+20.0", "+20.0"]


@pytest.mark.parametrize(
    ("differences", "direction", "expected"),
    [
        ([3.0, 3.1, 2.9], 1, "shown"),
        ([3.0, 3.1, 2.9], -1, "opposite"),
        ([-3.0, -3.1, -2.9], -1, "shown"),
        ([0.1, 3.0, 1.0], 1, "every seed"),
        ([-0.1, 3.0, 1.0], 1, "not shown"),
        ([-0.1, -3.0, -1.0], 1, "not shown"),
        ([0.0, 0.0, 0.0], 1, "not shown"),
        ([5.0], 1, "not shown"),
    ],
)
def test_verdicts(differences: list[float], direction: int, expected: str) -> None:
    assert verdict(differences, direction) == expected
