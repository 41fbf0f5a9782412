"""What cyclip_ext must reach on a CPU, and whether a run of `loss` has reached it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from .peers import COMPILED, OURS, OURS_BF16, RECOMPUTE
from .results import ERROR_COLUMNS, Results, exponent, number

ROUNDING = {"float32": 2.0**-23, "bf16 products": 2.0**-23, "bf16 features": 2.0**-8}
RESULTS = dict(zip(ERROR_COLUMNS, ("loss", "gradients", "scale's gradient"), strict=True))
LARGE = 65536


@dataclass(frozen=True)
class Criterion:
    what: str
    bound: str
    measured: str = "not measured"
    met: bool | None = None


def check(results: Results) -> Iterator[Criterion]:
    """One by one; those without a measurement are neither met nor missed."""
    yield from _speed(results)
    yield from _shares(results)
    yield from _memory(results)
    yield _cycle_exponent(results)
    yield _errors(results)


def table(results: Results) -> str:
    rows = ["| | bound | measured | |", "| --- | --- | --- | --- |"]
    words = {True: "met", False: "**not met**", None: ""}
    for one in check(results):
        rows.append(f"| {one.what} | {one.bound} | {one.measured} | {words[one.met]} |")
    return "\n".join(rows)


def _at_least(
    what: str, least: float, value: float | None, form: str = "{:.3g} times"
) -> Criterion:
    bound = "at least " + form.format(least)
    if value is None:
        return Criterion(what, bound)
    return Criterion(what, bound, form.format(value), value >= least)


def _at_most(what: str, most: float, value: float | None, form: str = "{:.3g}") -> Criterion:
    bound = "at most " + form.format(most)
    if value is None:
        return Criterion(what, bound)
    return Criterion(what, bound, form.format(value), value <= most)


def _speed(results: Results) -> Iterator[Criterion]:
    of_clip = next(iter(results.peers("time", "clip")), "dense")
    against = {
        "cyclip": "CyCLIP against its authors' formulation",
        "clip": f"CLIP against {of_clip}",
    }
    for family, peer, n, least in (
        ("cyclip", OURS, 8192, 5.0),
        ("cyclip", RECOMPUTE, 8192, 4.0),
        ("cyclip", OURS, 1024, 2.2),
        ("cyclip", OURS, 128, 1.0),
        ("cyclip", OURS_BF16, 8192, 8.0),
        ("clip", OURS, 8192, 2.5),
        ("clip", OURS, 1024, 1.5),
        ("clip", OURS, 128, 1.0),
    ):
        variant = peer.removeprefix(OURS)
        ratio = results.value("time", family, peer, n, "ratio")
        yield _at_least(f"{against[family]}, N = {n:,}{variant}: faster", least, ratio)
    ratio = results.value("time", "cyclip", OURS, 8192, "ratio_compiled")
    yield _at_least(f"CyCLIP against {COMPILED}, N = 8,192: faster", 3.0, ratio)
    curve = results.curve("time", "clip", OURS, "ratio_compiled")
    worst = min((value for _, value in curve), default=None)
    yield _at_least(f"CLIP against {COMPILED}, the worst N: faster", 1.0, worst)


def _shares(results: Results) -> Iterator[Criterion]:
    for family, title in ("clip", "CLIP"), ("cyclip", "CyCLIP"):
        for peer in OURS, RECOMPUTE:
            share = results.value("time", family, peer, 8192, "floor_share")
            what = f"{title}, N = 8,192{peer.removeprefix(OURS)}: share of the floor"
            yield _at_least(what, 0.8, share, "{:.0%}")


def _memory(results: Results) -> Iterator[Criterion]:
    extra = results.value("memory", "cyclip", RECOMPUTE, 8192, "extra_mb")
    yield _at_most("CyCLIP, N = 8,192, recompute: extra memory", 64, extra, "{:.0f} MB")
    curve = results.curve("memory", "cyclip", RECOMPUTE, "extra_mb", least=4096)
    yield _at_most(
        f"its growth from N = 4,096 to {LARGE:,}: exponent",
        1.1,
        exponent(curve) if curve and curve[-1][0] == LARGE else None,
    )
    time_ms = results.value("memory", "cyclip", RECOMPUTE, LARGE, "median_ms")
    what = f"CyCLIP, N = {LARGE:,}, forward and backward"
    if time_ms is None:
        yield Criterion(what, "finishes")
    else:
        yield Criterion(what, "finishes", f"{time_ms / 1e3:.0f} s", True)


def _cycle_exponent(results: Results) -> Criterion:
    curve = results.curve("time", "cycle", OURS, "median_ms", least=4096)
    value = exponent(curve) if curve and curve[-1][0] == LARGE else None
    return _at_most(
        f"Time of the cycle terms, N = 4,096 to {LARGE:,}: exponent", 1.15, value, "{:.2f}"
    )


@dataclass(frozen=True)
class Error:
    """One of cyclip_ext's errors beside that of dense code of the same arithmetic."""

    family: str
    peer: str
    input: str
    scale: str
    of: str  # one of RESULTS
    ours: float
    dense: float
    rounding: float  # of the result to its dtype, granted to everyone

    @property
    def excess(self) -> float:
        """Above 1: more than twice the dense error and one rounding."""
        if math.isnan(self.ours):
            return math.inf
        if math.isnan(self.dense):
            return 0.0
        return self.ours / (2 * self.dense + self.rounding)


def errors(results: Results) -> Iterator[Error]:
    lines = [line for line in results.lines if line["measure"] == "error"]
    for line in lines:
        if line["ours"] != "yes":
            continue
        keys = ("family", "arithmetic", "input", "scale")
        beside = next(
            (
                other
                for other in lines
                if other["ours"] == "no" and all(other[key] == line[key] for key in keys)
            ),
            None,
        )
        for column in ERROR_COLUMNS:
            ours = number(line, column)
            dense = None if beside is None else number(beside, column)
            if ours is not None and dense is not None:
                where = line["family"], line["peer"], line["input"], line["scale"]
                rounding = ROUNDING[line["arithmetic"] if column == "grad_error" else "float32"]
                yield Error(*where, RESULTS[column], ours, dense, rounding)


def _errors(results: Results) -> Criterion:
    what = "Errors of loss and gradients, all inputs, scales and precisions, the worst"
    bound = "at most twice dense PyTorch's and one rounding"
    worst = max(errors(results), key=lambda error: error.excess, default=None)
    if worst is None:
        return Criterion(what, bound)
    measured = (
        f"{2 * worst.excess:.2g} times ({worst.family}, {worst.peer}, {worst.of}, {worst.input}, "
        f"s = {worst.scale})"
    )
    return Criterion(what, bound, measured, worst.excess <= 1)
