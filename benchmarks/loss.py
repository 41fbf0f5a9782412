"""`python -m benchmarks loss`: time, memory and error of the losses and their peers on the CPU.

It takes about 11 minutes on two cores, and less than one with `--quick`. Every family of losses is
timed in its own process, and each peak of memory is measured in its own process. If a peer is not
installed, cannot be compiled, fails or would take too long, its line contains the reason.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean

import torch

from cyclip_ext.libraries import has_operator

from . import report
from .family import Family, Peer
from .inputs import make_batch
from .machine import describe
from .measure import (
    Entrant,
    Errors,
    Outcome,
    Rounds,
    cpu_extra_bytes,
    errors,
    gradients,
    in_fresh_process,
    take_turns,
    times_faster,
)
from .peers import COMPILED, RECOMPUTE, cpu_families
from .rates import dtype_of_products, product_rates
from .results import COLUMNS, ERROR_COLUMNS, Line, read, written

FAMILIES = cpu_families()

D = 512
SCALE, BIAS = 50.0, -10.0  # of the timed batches: pairs with a cosine of 0.25, unit rows
ERROR_SCALES, ERROR_BIAS = (14.3, 100.0), -5.0
ERROR_KINDS = ("random", "aligned", "cone", "gap")
MEMORY_FAMILIES = ("clip", "cyclip")
SHOWN = ("rounds", "median_ms", "ratio", "floor_share", "extra_mb", *ERROR_COLUMNS)


@dataclass(frozen=True)
class Plan:
    sizes: dict[str, tuple[int, ...]]  # N of the timed batches, by family
    rounds: Rounds
    memory_sizes: tuple[int, ...]
    compiled_memory: tuple[int, ...]  # for compiled peers, which are compiled for each size
    large_memory: dict[int, tuple[str, ...]]  # further N, with the peers of CyCLIP that run there
    error_rows: int
    seeds: int
    compiles: bool


_POWERS = (128, 256, 512, 1024, 2048, 4096, 8192)
FULL = Plan(
    sizes={
        **dict.fromkeys(("clip", "cyclip", "siglip"), _POWERS),
        "cycle": (*_POWERS, 16384, 32768, 65536),
        **dict.fromkeys(("hinge", "ranks", "top-k"), (128, 1024, 8192)),
    },
    rounds=Rounds(least=5, most=300, seconds=2.0),
    memory_sizes=(2048, 4096, 8192),
    compiled_memory=(4096,),
    large_memory={16384: (RECOMPUTE,), 32768: (RECOMPUTE,), 65536: (RECOMPUTE,)},
    error_rows=512,
    seeds=8,
    compiles=True,
)
QUICK = Plan(
    sizes={**dict.fromkeys(("clip", "cyclip", "siglip"), (128, 1024)), "cycle": (1024, 2048)},
    rounds=Rounds(least=3, most=100, seconds=0.3),
    memory_sizes=(1024, 2048),
    compiled_memory=(),
    large_memory={},
    error_rows=256,
    seeds=4,
    compiles=False,
)


# ---------------------------------------------------------------- work of the child processes


def time_lines(family_name: str, plan: Plan) -> Iterator[Line]:
    family = FAMILIES[family_name]
    before = product_rates(D)
    for n in plan.sizes[family_name]:
        if plan.compiles and any(peer.compiled for peer in family.peers):
            torch.compiler.reset()
        batch = make_batch(n, D, SCALE, BIAS, unit_rows=True)
        entrants = []
        for peer in family.peers:
            entrant = Entrant(peer, peer.features(batch))
            entrant.status = _skipped(peer, n, plan) or "ok"
            entrants.append(entrant)
        take_turns(entrants, plan.rounds)
        after = product_rates(D)
        rates = {dtype: max(before[dtype], after[dtype]) for dtype in before}
        before = after
        compiled = next((one for one in entrants if one.peer.name == COMPILED), None)
        for entrant in entrants:
            line = _line("time", family, entrant.peer, n) | _times(entrant)
            line["ratio"] = _number(times_faster(entrant, entrants[0]))
            if compiled is not None:
                line["ratio_compiled"] = _number(times_faster(entrant, compiled))
            yield line | _share(family, entrant, n, rates)


def _skipped(peer: Peer, n: int, plan: Plan) -> str:
    if peer.compiled and not plan.compiles:
        return "skipped: not compiled with --quick"
    if peer.largest is not None and n > peer.largest:
        return f"skipped beyond N = {peer.largest}"
    return ""


def _times(entrant: Entrant) -> Line:
    low, middle, high = entrant.quartiles_ms() or (None, None, None)
    return {
        "status": entrant.status,
        "rounds": str(len(entrant.times_ms)),
        "median_ms": _number(middle),
        "lower_quartile_ms": _number(low),
        "upper_quartile_ms": _number(high),
    }


def _share(family: Family, entrant: Entrant, n: int, rates: dict[torch.dtype, float]) -> Line:
    """Return the share of the time that the unavoidable products need at the measured rate."""
    quartiles, flops = entrant.quartiles_ms(), family.flops(entrant.peer, n, D)
    rate = rates[dtype_of_products(entrant.peer.arithmetic)]
    share = flops / rate / quartiles[1] * 1e3 if quartiles and flops else None
    return {"product_gflops": _number(rate / 1e9), "floor_share": _number(share)}


def memory_lines(family_name: str, peer_name: str, n: int) -> Iterator[Line]:
    """Yield one line, whose time is that of a single call."""
    family = FAMILIES[family_name]
    peer = family.peer(peer_name)
    entrant = Entrant(peer, peer.features(make_batch(n, D, SCALE, BIAS, unit_rows=True)))
    measured = entrant.attempt(lambda: cpu_extra_bytes(peer, entrant.batch))
    line = _line("memory", family, peer, n)
    if measured is not None:
        extra, spent_ms = measured
        entrant.times_ms.append(spent_ms)
        line["extra_mb"] = _number(extra / 1e6)
    yield line | _times(entrant)


def error_lines(family_name: str, plan: Plan) -> Iterator[Line]:
    """Yield root mean squares over seeds, because a single number can be exact by chance."""
    family = FAMILIES[family_name]
    pairwise = family_name in ("clip", "cyclip", "siglip")  # the others have no scale
    retrieval = family_name in ("ranks", "top-k")  # other inputs have exact ties
    for kind in ("random",) if retrieval else ERROR_KINDS:
        for scale in ERROR_SCALES if pairwise else (1.0,):
            yield from _errors(family, kind, scale, plan)


def _errors(family: Family, kind: str, scale: float, plan: Plan) -> Iterator[Line]:
    found: dict[Peer, list[Errors]] = {peer: [] for peer in family.peers if peer.judged}
    status = dict.fromkeys(found, "ok")
    for seed in range(plan.seeds):
        batch = make_batch(plan.error_rows, D, scale, ERROR_BIAS, kind=kind, seed=seed)
        exact: dict[torch.dtype, Outcome] = {}
        for peer in found:
            entrant = Entrant(peer, peer.features(batch), status[peer])
            dtype = entrant.batch.image_features.dtype
            if dtype not in exact:
                exact[dtype] = gradients(family.truth, entrant.batch.in_float64())
            outcome = entrant.attempt(entrant.call_once)
            status[peer] = entrant.status
            if outcome is not None:
                found[peer].append(errors(outcome, exact[dtype]))
    for peer, of_seeds in found.items():
        line = _line("error", family, peer, plan.error_rows)
        line |= {"input": kind, "scale": f"{scale:g}", "status": status[peer]}
        if status[peer] == "ok":
            means = (_root_mean_square(values) for values in zip(*of_seeds, strict=True))
            line |= dict(zip(ERROR_COLUMNS, map(_number, means), strict=True))
        yield line


def _root_mean_square(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return math.sqrt(fmean(value * value for value in present)) if present else None


def _line(measure: str, family: Family, peer: Peer, n: int) -> Line:
    line = dict.fromkeys(COLUMNS, "")
    line |= {"measure": measure, "family": family.name, "peer": peer.name, "N": str(n)}
    ours = "yes" if peer.ours else "no"
    return line | {"ours": ours, "arithmetic": peer.arithmetic, "d": str(D), "note": peer.note}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


# ---------------------------------------------------------------- the program


def measure_all(plan: Plan) -> Iterator[Line]:
    for name, sizes in plan.sizes.items():
        baseline = FAMILIES[name].baseline
        for work, otherwise in (
            (time_lines, _line("time", FAMILIES[name], baseline, max(sizes))),
            (error_lines, _line("error", FAMILIES[name], baseline, plan.error_rows)),
        ):
            yield from _survived(in_fresh_process(work, name, plan), otherwise)
    for name, peer, n in _memory_jobs(plan):
        otherwise = _line("memory", FAMILIES[name], peer, n)
        yield from _survived(in_fresh_process(memory_lines, name, peer.name, n), otherwise)


def _memory_jobs(plan: Plan) -> Iterator[tuple[str, Peer, int]]:
    for family_name in MEMORY_FAMILIES:
        for peer in FAMILIES[family_name].peers:
            sizes = plan.compiled_memory if peer.compiled else plan.memory_sizes
            if peer.ours or peer.arithmetic == "float32":
                yield from ((family_name, peer, n) for n in sizes)
    for n, names in plan.large_memory.items():
        for name in names:
            yield "cyclip", FAMILIES["cyclip"].peer(name), n


def _survived(lines: Iterator[Line], otherwise: Line) -> Iterator[Line]:
    """Yield the lines, and one more if their process was killed, for example out of memory."""
    try:
        yield from lines
    except ChildProcessError as error:
        yield otherwise | {"status": f"failed: {error}"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks loss", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="few sizes, nothing compiled")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument(
        "--write-docs", action="store_true", help=f"write {report.CSV} and the page made from it"
    )
    options = parser.parse_args(arguments)
    if not has_operator("pair_statistics", "cpu"):
        parser.error("cyclip_ext has no CPU kernels here; run `python -m cyclip_ext.info`")
    if "CYCLIP_MEMORY_BUDGET" in os.environ:
        parser.error("unset CYCLIP_MEMORY_BUDGET: this program measures the default")

    begin = time.perf_counter()
    machine = describe(torch.device("cpu"))
    print(*(f"{name}: {value}" for name, value in machine.items()), sep="\n")
    lines = measure_all(QUICK if options.quick else FULL)
    path = report.CSV if options.write_docs else options.csv
    others = _of_other_machines(path, machine) if options.write_docs else []
    if path is not None:
        measured = (line | machine for line in lines)
        lines = written(chain(others, measured), [*COLUMNS, *machine], path)
    for line in lines:
        print(_in_words(line), flush=True)
    print(f"{time.perf_counter() - begin:.0f} s")
    if options.write_docs:
        report.write_page(path, report.PAGE)
    return 0


def _of_other_machines(path: Path, machine: Line) -> list[Line]:
    """Return the lines of a CSV that were measured on other processors."""
    lines = read(path) if path.exists() else []
    return [line for line in lines if report.processor(line) != report.processor(machine)]


def _in_words(line: Line) -> str:
    shown = [line[name] for name in ("measure", "family", "peer", "N", "input", "scale")]
    if line["status"] != "ok":
        return " | ".join([*filter(None, shown), line["status"]])
    shown += [f"{name} {line[name]}" for name in SHOWN if line[name]]
    return " | ".join(filter(None, shown))


if __name__ == "__main__":
    sys.exit(main())
