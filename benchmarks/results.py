"""The CSV of `loss`: writing, reading and selecting its lines."""

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
    """Yield each line once it is written to the file, so that an interrupted run loses no lines."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for line in lines:
            writer.writerow(line)
            file.flush()
            yield line


class Results:
    """Lines of one or several runs."""

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
        """Return the peers in the order of their lines."""
        return list(dict.fromkeys(line["peer"] for line in self.select(measure, family)))

    def sizes(self, measure: str, family: str) -> list[int]:
        return sorted({int(line["N"]) for line in self.select(measure, family)})

    def curve(self, measure: str, family: str, peer: str, column: str) -> list[tuple[int, float]]:
        """Return the measured pairs (N, value), sorted by N."""
        points = [
            (int(line["N"]), value)
            for line in self.select(measure, family, peer)
            if (value := number(line, column)) is not None
        ]
        return sorted(points)


def number(line: Line, column: str) -> float | None:
    return float(line[column]) if line.get(column) else None


def exponent(curve: Sequence[tuple[int, float]]) -> float | None:
    """Return p of value ~ N^p by least squares of the logarithms; it takes three points."""
    positive = [(math.log(n), math.log(value)) for n, value in curve if value > 0]
    if len(positive) < 3:
        return None
    xs, ys = zip(*positive, strict=True)
    return linear_regression(xs, ys).slope
