"""`python -m benchmarks report`: a page and its plots from the CSV that `loss` wrote.

python -m benchmarks report [docs/benchmarks.csv] [--page docs/benchmarks.md]
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import plots
from .dense import BLOCK_ROWS
from .peers import OTHER_FUNCTION
from .results import COLUMNS, ERROR_COLUMNS, Line, Results, number, read

CSV = Path("docs/benchmarks.csv")
PAGE = Path("docs/benchmarks.md")

ROUNDING = {"float32": 2.0**-23, "bf16 products": 2.0**-23, "bf16 features": 2.0**-8}
RESULTS = dict(zip(ERROR_COLUMNS, ("loss", "gradients", "scale's gradient"), strict=True))

TITLES = {
    "clip": "Contrastive loss",
    "cyclip": "CyCLIP: contrastive loss and both cycle terms",
    "siglip": "Sigmoid loss (SigLIP)",
    "cycle": "Cycle terms alone",
    "hinge": "Hinge margin",
    "ranks": "Retrieval ranks, both directions, no gradient",
    "top-k": "The 10 most similar texts, no gradient",
}

TEXT = """# The losses on a CPU, compared with other implementations

Written by `python -m benchmarks report` from [{csv}]({csv}), which `python -m benchmarks loss`
measured with d = {d}: forward and backward of one call (retrieval: forward), in float32 unless a
line says otherwise. Every table names its processor and the instruction sets that were in use:

{machines}

How it was measured:

- The peers of one family run in a process of their own. After a warm-up they take turns in every
  round, in a random order. Times are medians over {rounds} rounds. A ratio is the median over the
  rounds of the ratio to the first line of its table.
- Every peer receives raw features, normalizes them, and returns the gradients of the raw features
  and of the scale. "unit rows" receives normalized features. "sentence_transformers" is
  `MultipleNegativesRankingLoss`, which computes the rows' half of the loss and no gradient of the
  scale; "cached" is its form in blocks of {block} rows. "chunks" and "dense in blocks" have blocks
  of the same size.
- "image tower locked" computes no gradient of the image features. "labels" are other losses: two
  rows share each label, and are not each other's negatives ("mask") or are positives ("positive").
- `recompute` is `memory_budget=0`: no logits are stored between forward and backward. By default
  up to 256 MiB of them are stored, which is N = 8,192 in float32.
- "bf16 products" round float32 features (`precision="bf16"`, or autocast). "bf16 features" are
  bfloat16 tensors, and so are their gradients.
- Extra memory is the peak of a process during one call beyond its memory before the call, which
  includes the features, minus the gradients of the features, which every peer must return. Each
  figure is measured in a process of its own. MB = 10^6 bytes.
- The floor is the time of the unavoidable matrix products at the rate at which torch multiplies
  4096 x {d} x 4096 in the same process, the best of six measurements right before and after. The
  products take 6 N^2 d flops if logits are stored, 8 N^2 d if they are recomputed, and 2 N^2 d for
  the hinge and for retrieval. Products of the cycle terms are not counted. The rates were {rate}.
- Errors are root mean squares over seeds, relative to the formulas in float64 on the same numbers.
  The error of the features' gradients is the norm of the difference relative to the norm of the
  gradient, for the tower in which it is larger. Errors of the gradients of scale and bias are
  relative to 1 if the gradient is smaller than 1.

{unseen}The dates above identify the version of the code that was measured.

## Where cyclip_ext loses

The table lists every case in which cyclip_ext is slower or needs more memory than a peer in the
same arithmetic or in float32. Losses with labels or a locked tower are not compared, because the
peers compute another function. The table also lists every error that exceeds twice the error of the
dense peer in the same arithmetic plus one rounding of the result.

{losses}

## Time

Each entry is the median in ms, ± half the distance of the quartiles, and in brackets the speed
relative to the first line.

![Time against N](images/benchmark_time.svg)

{time}

## Share of the floor

{shares}

## Memory

Extra memory in MB.

![Extra memory against N](images/benchmark_memory.svg)

{memory}

## Error

Each entry is the error of the loss / of the features' gradients / of the scale's gradient, if these
exist.

{errors}

## Not measured

{missing}
"""


UNSEEN = """Not measured: bfloat16 products on AMX tiles (Intel Xeon since 2023), which are tested
against a model of the instruction, and processors of other architectures. """


def page(results: Results, csv: str) -> str:
    machines = list(_by_processor(results))
    return TEXT.format(
        csv=csv,
        d=results.lines[0]["d"],
        machines="\n".join(f"- {_machine(one.lines[0])}" for _, one in machines),
        block=f"{BLOCK_ROWS:,}",
        unseen="" if any("cyclip_ext amx" in line["isa"] for line in results.lines) else UNSEEN,
        rounds=_rounds(results),
        rate=_rate(results),
        losses=_losses(results),
        time=_sections(machines, "time", _time_cell),
        shares=_sections(machines, "time", _share_cell),
        memory=_sections(machines, "memory", _memory_cell),
        errors="\n\n".join(filter(None, (_errors(one, name) for name, one in machines))),
        missing=_missing(results),
    )


def processor(line: Line) -> str:
    """Return the processor and the instruction sets of a measurement."""
    return f"{line['device']}, {line['isa']}"


def _by_processor(results: Results) -> Iterator[tuple[str, Results]]:
    for name in dict.fromkeys(map(processor, results.lines)):
        yield name, Results([line for line in results.lines if processor(line) == name])


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


def _sections(
    machines: Sequence[tuple[str, Results]], measure: str, cell: Callable[[Line], str]
) -> str:
    parts = []
    for family, title in TITLES.items():
        for name, results in machines:
            rows = list(_grid(results, measure, family, cell))
            if len(rows) > 2:
                parts.append("\n".join([f"{title} ({name}):", "", *rows]))
    return "\n\n".join(parts)


def _grid(
    results: Results, measure: str, family: str, cell: Callable[[Line], str]
) -> Iterator[str]:
    """Yield a table of the peers that have a value."""
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
    """Format with three significant digits."""
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
        ["| | N | quantity | cyclip_ext | other |", "| --- | ---: | --- | ---: | ---: |", *rows]
    )


def _worse(results: Results, measure: str, column: str, unit: str) -> Iterator[str]:
    for ours in results.lines:
        value = number(ours, column)
        if ours["measure"] != measure or ours["ours"] != "yes" or value is None:
            continue
        if re.search(OTHER_FUNCTION, ours["peer"]):
            continue
        for other in results.select(measure, ours["family"]):
            beside = other["N"] == ours["N"] and other["ours"] == "no"
            beside = beside and processor(other) == processor(ours)
            fair = other["arithmetic"] in (ours["arithmetic"], "float32")
            better = number(other, column)
            if beside and fair and better is not None and better < value:
                what = f"{TITLES[ours['family']]}, {ours['peer']}"
                cells = what, f"{int(ours['N']):,}", measure, f"{_digits(value)} {unit}"
                yield f"| {' | '.join(cells)} | {_digits(better)} {unit}, {other['peer']} |"


def _less_exact(results: Results) -> Iterator[str]:
    for error in errors(results):
        if error.excess > 1:
            where = f"{error.of}, {error.input}, s = {error.scale}"
            yield (
                f"| {TITLES[error.family]}, {error.peer} | | error of {where} | "
                f"{error.ours:.1e} | {error.dense:.1e} |"
            )


@dataclass(frozen=True)
class Error:
    """An error of cyclip_ext and that of the dense peer in the same arithmetic."""

    family: str
    peer: str
    input: str
    scale: str
    of: str  # one of RESULTS
    ours: float
    dense: float
    rounding: float  # of the result to its dtype

    @property
    def excess(self) -> float:
        """The error relative to its bound: twice the dense error plus one rounding."""
        if math.isnan(self.ours):
            return math.inf
        if math.isnan(self.dense):
            return 0.0
        return self.ours / (2 * self.dense + self.rounding)


def errors(results: Results) -> Iterator[Error]:
    """Yield the errors of cyclip_ext that have a dense counterpart."""
    lines = [line for line in results.lines if line["measure"] == "error"]
    for line in lines:
        if line["ours"] != "yes":
            continue
        keys = ("family", "arithmetic", "input", "scale", "device", "isa")
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


def _errors(results: Results, name: str) -> str:
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
        parts.append("\n".join([f"{title}, N = {n} ({name}):", "", *rows]))
    return "\n\n".join(parts)


def _error_cell(line: Line) -> str:
    return " / ".join(f"{float(line[name]):.0e}" for name in ERROR_COLUMNS if line[name])


def _missing(results: Results) -> str:
    missing: dict[tuple[str, str, str], list[str]] = {}
    for line in results.lines:
        if line["status"] != "ok":
            missing.setdefault((line["family"], line["peer"], line["status"]), []).append(line["N"])
    if not missing:
        return "Nothing was skipped."
    return "\n".join(
        f"- {TITLES[family]}, {peer}, N = {', '.join(dict.fromkeys(sizes))}: {status}"
        for (family, peer, status), sizes in missing.items()
    )


def write_page(csv: Path, target: Path) -> None:
    results = Results(read(csv))
    list(plots.draw(next(iter(_by_processor(results)))[1], target.parent / "images"))
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
