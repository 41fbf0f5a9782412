"""`python -m benchmarks report`: a page and its pictures from the CSV that `loss` wrote.

python -m benchmarks report [docs/benchmarks.csv] [--page docs/benchmarks.md]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from . import criteria, plots
from .results import COLUMNS, ERROR_COLUMNS, Line, Results, number, read

CSV = Path("docs/benchmarks.csv")
PAGE = Path("docs/benchmarks.md")

TITLES = {
    "clip": "Contrastive loss",
    "cyclip": "CyCLIP: contrastive loss and both cycle terms",
    "siglip": "Sigmoid loss (SigLIP)",
    "cycle": "Cycle terms alone",
    "hinge": "Hinge margin",
    "ranks": "Retrieval ranks, both directions, no gradient",
    "top-k": "The 10 most similar, no gradient",
}

TEXT = """# The losses on a CPU, beside their peers

Written by `python -m benchmarks report` from [{csv}]({csv}), which `python -m benchmarks loss`
measured: d = {d}, forward and backward of one call (retrieval: forward), float32 unless a line says
otherwise. One machine, one day; run it on yours:

{machine}

How it was measured:

- The peers of one family run in a process of their own. After a warm-up they take turns in every
  round, each round beginning with another one. Figures are medians over {rounds} rounds; a ratio is
  the median of the rounds' ratios to the first line of its table.
- Every peer gets raw features and normalizes them, and delivers the gradients of the raw features
  and of the scale. "unit rows" gets normalized ones and does nothing about their norms.
- `recompute` is `memory_budget=0`: no logits are kept between forward and backward. By default they
  are kept up to 256 MiB: up to N = 8,192 in float32.
- "bf16 products" are made of float32 features: `precision="bf16"`, or autocast. "bf16 features"
  come in bfloat16, and so do their gradients.
- Extra memory is the peak of a process during one call beyond what it held before, features
  included, less the gradients of the features, which everyone has to deliver. Every figure is that
  of a process of its own. MB = 10^6 bytes.
- The floor is the time of the matrix products that cannot be avoided, at the rate at which torch
  multiplies 4096 x {d} x 4096 in the same process, the best of six right before and after. They
  are 6 N^2 d flops where logits are kept, 8 N^2 d where they are recomputed, 2 N^2 d for the hinge
  and for retrieval. Those of the cycle terms are not counted. The rates were {rate}.
- Errors are against the formulas in float64 on the same numbers, root mean squares over seeds: of
  the loss and of the features' gradients (by norms, the larger one) relative; of the gradients of
  scale and bias relative to 1 where they are smaller than that.

## What is asked for

{criteria}

## Where cyclip_ext loses

Every case in which it is slower or needs more memory than a peer of the same arithmetic or of
float32, by however little, and every error beyond what is asked for.

{losses}

## Time

Median in ms, ± half the distance of the quartiles, and in brackets how many times faster than the
first line.

![Time against N](images/benchmark_time.svg)

{time}

## Share of the floor

{shares}

## Memory

Extra memory in MB.

![Extra memory against N](images/benchmark_memory.svg)

{memory}

## Error

Of the loss / of the features' gradients / of the scale's gradient, as far as there are such.

{errors}

## What was not measured

{missing}
"""


def page(results: Results, csv: str) -> str:
    return TEXT.format(
        csv=csv,
        d=results.lines[0]["d"],
        machine=_machine(results.lines[0]),
        rounds=_rounds(results),
        rate=_rate(results),
        criteria=criteria.table(results),
        losses=_losses(results),
        time=_sections(results, "time", _time_cell),
        shares=_sections(results, "time", _share_cell),
        memory=_sections(results, "memory", _memory_cell),
        errors=_errors(results),
        missing=_missing(results),
    )


def _machine(line: Line) -> str:
    facts = (f"{name} {value}" for name, value in line.items() if name not in COLUMNS and value)
    return "; ".join(facts) + "."


def _rounds(results: Results) -> str:
    counts = [int(line["rounds"]) for line in results.lines if line["floor_share"]]
    return f"{min(counts, default=0)} to {max(counts, default=0)}"


def _rate(results: Results) -> str:
    found = []
    for arithmetic, name in ("float32", "float32"), ("bf16 products", "bf16"):
        rates = [
            rate
            for line in results.lines
            if line["arithmetic"] == arithmetic and (rate := number(line, "product_gflops"))
        ]
        if rates:
            found.append(f"{min(rates):.0f} to {max(rates):.0f} GFLOP/s in {name}")
    return ", ".join(found)


# ---------------------------------------------------------------- tables with a column for every N


def _sections(results: Results, measure: str, cell: Callable[[Line], str]) -> str:
    parts = []
    for family, title in TITLES.items():
        rows = list(_grid(results, measure, family, cell))
        if len(rows) > 2:
            parts.append("\n".join([f"{title}:", "", *rows]))
    return "\n\n".join(parts)


def _grid(
    results: Results, measure: str, family: str, cell: Callable[[Line], str]
) -> Iterator[str]:
    """The peers that have something to show."""
    sizes = results.sizes(measure, family)
    yield "| N | " + " | ".join(f"{n:,}" for n in sizes) + " |"
    yield "| --- |" + " ---: |" * len(sizes)
    for peer in results.peers(measure, family):
        lines = {int(line["N"]): line for line in results.select(measure, family, peer)}
        cells = [cell(lines[n]) if n in lines else "" for n in sizes]
        if any(cells):
            yield f"| {peer} | " + " | ".join(cells) + " |"


def _time_cell(line: Line) -> str:
    median = number(line, "median_ms")
    low, high = number(line, "lower_quartile_ms"), number(line, "upper_quartile_ms")
    if median is None or low is None or high is None:
        return ""
    ratio = number(line, "ratio")
    faster = "" if ratio is None else f" ({ratio:.2f})"
    return f"{_digits(median)} ±{(high - low) / 2 / median:.0%}{faster}"


def _share_cell(line: Line) -> str:
    share = number(line, "floor_share")
    return "" if share is None else f"{share:.0%}"


def _memory_cell(line: Line) -> str:
    extra = number(line, "extra_mb")
    return "" if extra is None else _digits(extra)


def _digits(value: float) -> str:
    """Three of them."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


# ---------------------------------------------------------------- the rest


def _losses(results: Results) -> str:
    rows = [
        *_worse(results, "time", "median_ms", "ms"),
        *_worse(results, "memory", "extra_mb", "MB"),
        *_less_exact(results),
    ]
    if not rows:
        return "None."
    return "\n".join(
        ["| | N | what | cyclip_ext | the other |", "| --- | ---: | --- | ---: | ---: |", *rows]
    )


def _worse(results: Results, measure: str, column: str, unit: str) -> Iterator[str]:
    for ours in results.lines:
        value = number(ours, column)
        if ours["measure"] != measure or ours["ours"] != "yes" or value is None:
            continue
        for other in results.select(measure, ours["family"]):
            beside = other["N"] == ours["N"] and other["ours"] == "no"
            fair = other["arithmetic"] in (ours["arithmetic"], "float32")
            better = number(other, column)
            if beside and fair and better is not None and better < value:
                what = f"{TITLES[ours['family']]}, {ours['peer']}"
                cells = what, f"{int(ours['N']):,}", measure, f"{_digits(value)} {unit}"
                yield f"| {' | '.join(cells)} | {_digits(better)} {unit}, {other['peer']} |"


def _less_exact(results: Results) -> Iterator[str]:
    for error in criteria.errors(results):
        if error.excess > 1:
            where = f"{error.of}, {error.input}, s = {error.scale}"
            yield (
                f"| {TITLES[error.family]}, {error.peer} | | error of {where} | "
                f"{error.ours:.1e} | {error.dense:.1e} |"
            )


def _errors(results: Results) -> str:
    lines = [line for line in results.lines if line["measure"] == "error"]
    parts = []
    for family, title in TITLES.items():
        of_family = [line for line in lines if line["family"] == family]
        cases = list(dict.fromkeys((line["input"], line["scale"]) for line in of_family))
        if not cases:
            continue
        n = of_family[0]["N"]
        rows = [
            "| | " + " | ".join(f"{kind}, s = {scale}" for kind, scale in cases) + " |",
            "| --- |" + " ---: |" * len(cases),
        ]
        for peer in results.peers("error", family):
            by_case = {
                (line["input"], line["scale"]): line for line in of_family if line["peer"] == peer
            }
            cells = [_error_cell(by_case[case]) for case in cases]
            rows.append(f"| {peer} | " + " | ".join(cells) + " |")
        parts.append("\n".join([f"{title}, N = {n}:", "", *rows]))
    return "\n\n".join(parts)


def _error_cell(line: Line) -> str:
    return " / ".join(f"{float(line[name]):.0e}" for name in ERROR_COLUMNS if line[name])


def _missing(results: Results) -> str:
    missing: dict[tuple[str, str, str], list[str]] = {}
    for line in results.lines:
        if line["status"] != "ok":
            missing.setdefault((line["family"], line["peer"], line["status"]), []).append(line["N"])
    if not missing:
        return "Nothing was left out."
    return "\n".join(
        f"- {TITLES[family]}, {peer}, N = {', '.join(dict.fromkeys(sizes))}: {status}"
        for (family, peer, status), sizes in missing.items()
    )


def write_page(csv: Path, target: Path) -> None:
    results = Results(read(csv))
    list(plots.draw(results, target.parent / "images"))
    target.write_text(page(results, csv.name), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("csv", nargs="?", type=Path, default=CSV)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    write_page(options.csv, options.page)
    print(f"wrote {options.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
