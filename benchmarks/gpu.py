"""`python -m benchmarks.gpu`: correctness, then time and memory of the losses beside their peers.

For whoever has a GPU. Checks every operator against the float64 formulas, and stops where one is
wrong. Then times forward and backward of one call, for each dtype and size, in one process, and
writes a CSV whose every line describes the machine. A peer that is not installed, runs out of
memory or fails is a line that says so.

`--device cpu` is for trying the program itself: its times say nothing about the GPU kernels.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cyclip_ext import reference
from cyclip_ext.functional import Backend
from cyclip_ext.ops import has_operator

from .correctness import check, make_batch
from .machine import describe
from .measure import Result, measure
from .peers import Batch, Loss, Peer, peers

TRUTH: dict[str, Loss] = {
    "clip": lambda b: reference.contrastive_loss(*b.leaves[:3]),
    "cyclip": lambda b: reference.cyclip_loss(*b.leaves[:3]),
    "siglip": lambda b: reference.sigmoid_loss(*b.leaves),
}

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
    *("upper_quartile_ms", "rounds", "peak_mib", "loss_error", "grad_error", "note"),
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
                results = measure(
                    peers(backend), batch, TRUTH, rounds=plan.rounds, slice_rows=plan.slice_rows
                )
                for peer, result in results.items():
                    yield _row(peer, result, precision, batch) | machine


def _row(peer: Peer, result: Result, precision: Precision, batch: Batch) -> dict[str, object]:
    n, d = batch.image_features.shape
    low, median, high = result.quartiles_ms() or (None, None, None)
    values = (
        *(peer.family, peer.name, precision.name, n, d, result.status),
        *(_rounded(value, 4) for value in (median, low, high)),
        *(len(result.times_ms), _rounded(result.peak_mib, 4)),
        *(_rounded(result.loss_error, 2), _rounded(result.grad_error, 2), peer.note),
    )
    return dict(zip(COLUMNS, values, strict=True))


def _rounded(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
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
    _write(rows(plan, device, "native" if native else "auto", machine), machine, options.csv)
    return 0


def _write(lines: Iterator[dict[str, object]], machine: dict[str, str], path: Path | None) -> None:
    """Prints each line as it comes and appends it to the file, so that nothing is lost."""
    print(*COLUMNS, sep=" | ")
    if path is None:
        for line in lines:
            _show(line)
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *machine])
        writer.writeheader()
        for line in lines:
            _show(line)
            writer.writerow(line)
            file.flush()


def _show(line: dict[str, object]) -> None:
    print(*(line[name] for name in COLUMNS), sep=" | ", flush=True)


if __name__ == "__main__":
    sys.exit(main())
