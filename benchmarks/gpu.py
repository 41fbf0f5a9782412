"""`python -m benchmarks gpu`: correctness, then time and memory of the losses beside their peers.

For whoever has a GPU. Checks every operator against the float64 formulas, and stops where one is
wrong. Then times forward and backward of one call, for each dtype and size, in one process, and
writes a CSV whose every line describes the machine. A peer that is not installed, runs out of
memory or fails is a line that says so.

`--device cpu` is for trying the program itself: its times say nothing about the GPU kernels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from cyclip_ext.functional import Backend
from cyclip_ext.ops import has_operator

from .correctness import check
from .family import Family, Peer
from .inputs import Batch, make_batch
from .machine import describe
from .measure import (
    Entrant,
    Errors,
    Rounds,
    errors,
    gpu_peak_bytes,
    gradients,
    take_turns,
)
from .peers import gpu_families
from .results import written

SCALE, BIAS = 50.0, -10.0


@dataclass(frozen=True)
class Precision:
    name: str
    dtype: torch.dtype
    matmul: str = "highest"  # torch.set_float32_matmul_precision


PRECISIONS = (
    Precision("bf16", torch.bfloat16),
    Precision("fp16", torch.float16),
    Precision("float32 highest", torch.float32),
    Precision("float32 high", torch.float32, "high"),
)


@dataclass(frozen=True)
class Plan:
    sizes: tuple[int, ...]
    widths: tuple[int, ...]
    rounds: int
    slice_rows: int  # of which errors are measured, in float64
    precisions: tuple[Precision, ...] = PRECISIONS


FULL = Plan(
    sizes=(4096, 16384, 32768, 65536, 131072), widths=(512, 1024), rounds=21, slice_rows=512
)
QUICK = Plan(sizes=(4096, 16384), widths=(512,), rounds=5, slice_rows=256)
TRIAL = Plan((256,), (64,), rounds=2, slice_rows=64, precisions=PRECISIONS[:1])  # --device cpu

COLUMNS = (
    *("family", "loss", "precision", "N", "d", "status", "median_ms", "lower_quartile_ms"),
    *(
        "upper_quartile_ms",
        "rounds",
        "peak_mib",
        "loss_error",
        "grad_error",
        "scalar_grad_error",
        "note",
    ),
)


def rows(
    plan: Plan, device: torch.device, backend: Backend, machine: dict[str, str]
) -> Iterator[dict[str, object]]:
    """Lines of the CSV, batch by batch."""
    for precision in plan.precisions:
        torch.set_float32_matmul_precision(precision.matmul)
        for d in plan.widths:
            for n in plan.sizes:
                torch._dynamo.reset()
                batch = make_batch(n, d, SCALE, BIAS, precision.dtype, device)
                for family in gpu_families(backend):
                    for row in _family_rows(family, batch, plan):
                        yield dict(zip(COLUMNS, _cells(row, precision), strict=True)) | machine


@dataclass
class Row:
    family: Family
    entrant: Entrant
    peak_bytes: int | None = None
    errors: Errors | None = None


def _family_rows(family: Family, batch: Batch, plan: Plan) -> list[Row]:
    rows = [Row(family, Entrant(peer, batch)) for peer in family.peers]
    for row in rows:
        peer = row.entrant.peer
        row.errors = row.entrant.attempt(partial(_errors, family, peer, batch, plan.slice_rows))
    take_turns([row.entrant for row in rows], Rounds(least=plan.rounds, most=plan.rounds))
    if batch.image_features.is_cuda:
        for row in rows:
            if (loss := row.entrant.loss) is not None:
                row.peak_bytes = row.entrant.attempt(partial(gpu_peak_bytes, loss, batch))
    return rows


def _errors(family: Family, peer: Peer, batch: Batch, slice_rows: int) -> Errors:
    small = batch.first(slice_rows)
    exact = gradients(family.truth, small.in_float64())
    return errors(gradients(peer.make(small), small), exact)


def _cells(row: Row, precision: Precision) -> tuple[object, ...]:
    entrant = row.entrant
    n, d = entrant.batch.image_features.shape
    low, median, high = entrant.quartiles_ms() or (None, None, None)
    peak_mib = None if row.peak_bytes is None else row.peak_bytes / 2**20
    return (
        *(row.family.name, entrant.peer.name, precision.name, n, d, entrant.status),
        *(_rounded(value, 4) for value in (median, low, high)),
        *(len(entrant.times_ms), _rounded(peak_mib, 4)),
        *(_rounded(value, 2) for value in row.errors or (None, None, None)),
        entrant.peer.note,
    )


def _rounded(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="two sizes, few rounds")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ...; cpu for a trial")
    options = parser.parse_args(arguments)

    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU; does nvidia-smi? `--device cpu` tries the program alone")
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    native = has_operator("pair_statistics", device.type)
    if not native and device.type == "cuda":
        parser.error("cyclip_ext has no CUDA kernels here; `python -m cyclip_ext.info` says why")

    machine = describe(device)
    print(*(f"{name}: {value}" for name, value in machine.items()), sep="\n")
    if native:
        wrong = list(check(device))
        print(*wrong, sep="\n", end="\n" if wrong else "")
        if wrong:
            print("not timed: results are wrong", file=sys.stderr)
            return 1
        print("all operators agree with the float64 formulas")

    plan = TRIAL if device.type == "cpu" else QUICK if options.quick else FULL
    lines = rows(plan, device, "native" if native else "auto", machine)
    if options.csv is not None:
        lines = written(lines, [*COLUMNS, *machine], options.csv)
    print(*COLUMNS, sep=" | ")
    for line in lines:
        print(*(line[name] for name in COLUMNS), sep=" | ", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
