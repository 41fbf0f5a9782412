"""Lines of a CSV: writing them, those that `loss` measures, and questions about them."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import linear_regression
from typing import TypeVar

Line = dict[str, str]  # a column without a value is empty
L = TypeVar("L", bound=Mapping[str, object])

ERROR_COLUMNS = ("loss_error", "grad_error", "scalar_grad_error")
COLUMNS = (
    *("measure", "family", "peer", "ours", "arithmetic", "N", "d", "input", "scale", "status"),
    *("rounds", "median_ms", "lower_quartile_ms", "upper_quartile_ms"),
    *("ratio", "ratio_compiled", "product_gflops", "floor_share", "extra_mb"),
    *(*ERROR_COLUMNS, "note"),
)


def read(path: Path) -> list[Line]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def written(lines: Iterable[L], columns: Sequence[str], path: Path) -> Iterator[L]:
    """Passes each line on once it is in the file, so that nothing is lost."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for line in lines:
            writer.writerow(line)
            file.flush()
            yield line


class Results:
    """Lines of one run."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = lines

    def select(self, measure: str, family: str, peer: str | None = None) -> list[Line]:
        return [
            line
            for line in self.lines
            if line["measure"] == measure
            and line["family"] == family
            and (peer is None or line["peer"] == peer)
        ]

    def peers(self, measure: str, family: str) -> list[str]:
        """In the order of their lines."""
        return list(dict.fromkeys(line["peer"] for line in self.select(measure, family)))

    def sizes(self, measure: str, family: str) -> list[int]:
        return sorted({int(line["N"]) for line in self.select(measure, family)})

    def value(self, measure: str, family: str, peer: str, n: int, column: str) -> float | None:
        for line in self.select(measure, family, peer):
            if int(line["N"]) == n:
                return number(line, column)
        return None

    def curve(
        self, measure: str, family: str, peer: str, column: str, least: int = 0
    ) -> list[tuple[int, float]]:
        """(N, value) of what was measured, from N = `least` on, by N."""
        points = [
            (int(line["N"]), value)
            for line in self.select(measure, family, peer)
            if int(line["N"]) >= least and (value := number(line, column)) is not None
        ]
        return sorted(points)


def number(line: Line, column: str) -> float | None:
    return float(line[column]) if line.get(column) else None


def exponent(curve: Sequence[tuple[int, float]]) -> float | None:
    """p of value ~ N^p by least squares of the logarithms; None for less than three points."""
    positive = [(math.log(n), math.log(value)) for n, value in curve if value > 0]
    if len(positive) < 3:
        return None
    xs, ys = zip(*positive, strict=True)
    return linear_regression(xs, ys).slope
