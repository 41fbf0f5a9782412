"""`python -m benchmarks gpu`: correctness, times and peers on a GPU, in ten minutes.

Runs up to seven stages, each in a process of its own, so that an error of the device ends one stage
only:

    facts    the device, the software, and the architectures that were built
    right    every operator against the float64 formulas, with small and large tiles and pairs
    same     whether bits are the same twice, on another stream, in a graph, on a second device
    time     every operator and direction, with torch's own product of the same shape
    engines  the 16-bit operators on both engines of Hopper GPUs: time and error
    kernels  the time of each kernel of one step, by torch.profiler
    peers    the losses and those of other packages: time, memory and error

Each result is printed and written to the CSV at once, with a description of the machine.
`--device cpu` tests the program itself: its times are unrelated to the GPU kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from threading import Timer

import torch

from cyclip_ext.libraries import has_operator, why_not_on_gpu

from . import gpu_checks, gpu_timings
from .gpu_plan import COLUMNS, FAMILIES, PRECISIONS, Line, Plan, line_of
from .machine import describe
from .results import written

STAGES: dict[str, Callable[[Plan], Iterator[Line]]] = {
    "facts": gpu_checks.facts,
    "right": gpu_checks.right,
    "same": gpu_checks.same,
    "time": gpu_timings.time,
    "engines": gpu_timings.engines,
    "kernels": gpu_timings.kernels,
    "peers": gpu_timings.peers,
}
# The share of the remaining time that a stage may take, relative to the stages after it.
SHARES = {"facts": 1, "right": 8, "same": 3, "time": 12, "engines": 8, "kernels": 2, "peers": 20}

_GRACE_SECONDS = 30.0  # for the call that is running when a stage's time is over


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    names = tuple(precision.name for precision in PRECISIONS)
    parser.add_argument("--stages", nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument("--minutes", type=float, default=10.0, help="budget of all stages together")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ...; cpu tests the program")
    parser.add_argument("--precisions", nargs="+", choices=names, default=list(names))
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--peers", nargs="+", metavar="NAME", help="default: all of a family")
    parser.add_argument("--sizes", nargs="+", type=int, metavar="N", help="batch sizes")
    parser.add_argument("--widths", nargs="+", type=int, metavar="D", help="feature widths")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if torch.device(options.device).type == "cuda":
        if not torch.cuda.is_available():
            parser.error("torch sees no GPU; `--device cpu` tests the program itself")
        if not has_operator("pair_statistics", "cuda"):
            parser.error(
                "cyclip_ext has no CUDA kernels here; `python -m cyclip_ext.info` prints the reason"
            )
        if reason := why_not_on_gpu(torch.device(options.device).index or 0):
            parser.error(reason)
    return options


def plan_of(options: argparse.Namespace) -> Plan:
    is_trial = torch.device(options.device).type == "cpu"
    return Plan(
        device=options.device,
        precisions=tuple(p for p in PRECISIONS if p.name in options.precisions),
        families=tuple(options.families),
        peers=None if options.peers is None else frozenset(options.peers),
        sizes=tuple(options.sizes or ((256,) if is_trial else (4096, 16384, 32768))),
        widths=tuple(options.widths or ((64,) if is_trial else (512,))),
        rounds=2 if is_trial else 11,
        error_rows=64 if is_trial else 1664,
        large_shapes=() if is_trial else ((1601, 72), (1700, 520), (4100, 72)),
        deadline=time.time() + 60 * options.minutes,
    )


def in_child(
    stage: str, arguments: Sequence[str], seconds: float, **environment: str
) -> Iterator[Line]:
    """Yield the lines of a stage that runs in a process of its own for at most `seconds`.

    `environment` adds variables to that of this process.
    """
    command = [sys.executable, "-m", "benchmarks", "gpu", *arguments]
    command += ["--child", "--stages", stage, "--minutes", str(seconds / 60)]
    begin = time.monotonic()
    variables = os.environ | environment
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as child:
        timer = Timer(seconds + _GRACE_SECONDS, child.kill)
        timer.start()
        assert child.stdout is not None
        for text in child.stdout:
            if text.startswith("{"):
                yield json.loads(text)
            else:
                print(text, end="", file=sys.stderr)
        code = child.wait()
        timer.cancel()
    if code:
        took = time.monotonic() - begin
        reason = "killed: out of time" if took > seconds + _GRACE_SECONDS else f"ended with {code}"
        yield line_of(stage, "process", status=reason)


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(arguments)
    if options.child:
        device = torch.device(options.device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # that of streams, events and graphs
        for line in STAGES[options.stages[0]](plan_of(options)):
            print(json.dumps(line), flush=True)
        return 0

    device = torch.device(options.device)
    machine = describe(device)
    print(*(f"{name}: {value}" for name, value in machine.items()), sep="\n")
    lines = run(options, arguments, machine)
    if options.csv is not None:
        lines = written(lines, [*COLUMNS, *machine], options.csv)
    failed = False
    for line in lines:
        shown = (str(line[name]) for name in COLUMNS)
        print(" | ".join(text for text in shown if text), flush=True)
        bad = str(line["status"]).startswith(("wrong", "failed", "ended with"))
        failed |= bad and line["stage"] in ("right", "same")
    return 1 if failed else 0


def run(
    options: argparse.Namespace, arguments: Sequence[str], machine: dict[str, str]
) -> Iterator[Line]:
    deadline = time.monotonic() + 60 * options.minutes
    stages = [stage for stage in SHARES if stage in options.stages]
    for place, stage in enumerate(stages):
        share = SHARES[stage] / sum(SHARES[later] for later in stages[place:])
        seconds = share * max(0.0, deadline - time.monotonic())
        of_stage = both_engines if stage == "engines" else partial(in_child, stage)
        for line in of_stage(arguments, seconds):
            yield line | machine


def both_engines(arguments: Sequence[str], seconds: float) -> Iterator[Line]:
    """Yield the lines of the stage `engines` for each engine, then the ratios of their times."""
    lines: list[Line] = []
    for engine in gpu_timings.ENGINES:
        for line in in_child("engines", arguments, seconds / 2, CYCLIP_CUDA_ENGINE=engine):
            lines.append(line)
            yield line
        if not any(line["status"] == "ok" for line in lines):
            return  # this device has one engine only
    yield from gpu_timings.engine_ratios(lines)


if __name__ == "__main__":
    sys.exit(main())
