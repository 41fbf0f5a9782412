"""`python -m benchmarks.roofline`: flops, bytes and lower bounds of the CUDA operators.

Arithmetic on the schedule of csrc/kernels/cuda and on the vendor's data sheets; nothing here was
measured. docs/cuda.md holds the output and explains the columns:

    floor     the larger of flops over peak rate and compulsory bytes over peak bandwidth
    expected  the floor's share of an estimated time, under the assumptions named below; a range
              from "tiles and epilogues one after the other" to "hidden behind each other", and
              what takes most of that time

`python -m benchmarks.roofline --check docs/cuda.md` fails where the page holds other numbers.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Arithmetic = Literal["bf16", "tf32", "f32", "f64"]
ELEMENT_BYTES: dict[Arithmetic, int] = {"bf16": 2, "tf32": 4, "f32": 4, "f64": 8}


@dataclass(frozen=True)
class Machine:
    """Data-sheet rates, dense, in units per second; and what is assumed of them."""

    name: str
    flops: dict[Arithmetic, float]  # of the tensor cores; f32 without them
    memory: float  # bytes
    l2_bandwidth: float  # bytes: 5,120 per clock
    l2_capacity: int
    issue: float  # instructions of single lanes: multiprocessors x 128 x clock
    resident_tiles: int  # tiles of 128 x 128 in work at a time: one per multiprocessor
    product_share: float  # ASSUMED: of the peak that a main loop of mma.sync reaches


H100 = Machine(
    name="H100 SXM",
    flops={"bf16": 989e12, "tf32": 495e12, "f32": 67e12, "f64": 67e12},
    memory=3.35e12,
    l2_bandwidth=5120 * 1.83e9,
    l2_capacity=50 << 20,
    issue=132 * 128 * 1.83e9,
    resident_tiles=132,
    product_share=0.60,  # the other 40 % need wgmma
)
A100 = Machine(
    name="A100 80 GB",
    flops={"bf16": 312e12, "tf32": 156e12, "f32": 19.5e12, "f64": 19.5e12},
    memory=2.04e12,
    l2_bandwidth=5120 * 1.41e9,
    l2_capacity=40 << 20,
    issue=108 * 128 * 1.41e9,
    resident_tiles=108,
    product_share=0.80,
)

L2_SHARE = 0.7  # ASSUMED: of the L2 cache's peak bandwidth
MEMORY_SHARE = 0.85  # ASSUMED: of the device memory's
ISSUE_SHARE = 0.6  # ASSUMED: of the issue slots, in epilogues

# Instructions per entry of S outside the main loop: counted in the machine code of the bf16 kernels
# for sm_90, tiles of 128 x 128 (top-k: 64 x 64), from the main loop to the end, where a tile
# lies inside the matrix and off its diagonal; over the 64 (32) entries of a thread.
EPILOGUE = {
    "contrastive forward": 30,
    "contrastive backward": 27,
    "sigmoid forward": 26,
    "sigmoid backward": 28,
    "cycle direct forward": 10,  # ASSUMED, as the next: kernels of their own, over W
    "cycle direct backward": 10,
    "ranks": 40,  # both passes
    "top-k": 19,
}

TILE = 128  # rows and columns of a tile
SMALL_TILE = 64  # in float64, and for top-k
MOST_REGIONS = 32  # along each side: partial results per row and column (regions.cuh)
PARTIAL_BYTES = 20  # shift, sum, hardest, its index
PANEL_BYTES = 256 << 20  # operators.h


@dataclass(frozen=True)
class Work:
    """What one call of an operator does."""

    operator: str
    n: int
    d: int
    arithmetic: Arithmetic
    flops: float
    bytes: float  # from and to device memory, where each datum moves once per pass over it
    tile_bytes: float  # from the L2 cache into shared memory
    epilogue: float  # instructions of single lanes


def _tiles(flops: float, arithmetic: Arithmetic, tile: int = TILE) -> float:
    """Each flop of a tile needs 1 / tile of an element of either operand."""
    return flops * ELEMENT_BYTES[arithmetic] / tile


def _partials(n: int, bytes_per_line: int, most: int = MOST_REGIONS) -> float:
    """Of one side: written and read once."""
    return 2 * min(most, -(-n // TILE)) * n * bytes_per_line


def _features(n: int, d: int, arithmetic: Arithmetic) -> float:
    """Both towers, read for their norms and for S."""
    return 2 * 2 * n * d * ELEMENT_BYTES[arithmetic]


def contrastive_forward(n: int, d: int, arithmetic: Arithmetic = "bf16") -> Work:
    """S once; statistics of its tiles, merged."""
    flops = 2 * n * n * d
    return Work(
        "contrastive forward",
        n,
        d,
        arithmetic,
        flops,
        _features(n, d, arithmetic) + 2 * _partials(n, PARTIAL_BYTES) + 7 * 8 * n,  # the outputs
        _tiles(flops, arithmetic),
        EPILOGUE["contrastive forward"] * n * n,
    )


def _depth_parts(rows: int, cols: int, depth: int) -> int:
    """As product.cuh splits the depth of a product."""
    tiles = -(-rows // TILE) * -(-cols // TILE)
    return max(1, min(256 // tiles, depth // 1024, 16))


def _panel_size(n: int, element: int) -> tuple[int, int]:
    """Rows and columns of a panel of an n x n matrix, as gradients.cuh chooses them."""
    elements = PANEL_BYTES // element
    whole = -(-n // TILE) * TILE

    def whole_tiles(size: int) -> int:
        return max(size // TILE * TILE, TILE)

    cols = min(whole, whole_tiles(elements // min(whole, whole_tiles(math.isqrt(elements)))))
    return min(whole, whole_tiles(elements // cols)), cols


def _panel_backward(operator: str, n: int, d: int, arithmetic: Arithmetic) -> Work:
    """S again, H written panel by panel, and both products of each panel: 2 + 4 N^2 d flops."""
    flops = 6 * n * n * d
    element = ELEMENT_BYTES[arithmetic]
    rows, cols = _panel_size(n, element)
    down, across = -(-n // rows), -(-n // cols)
    tower = n * d * element
    sums = n * d * 4  # in float32
    total = (
        3 * n * n * element  # H: written once, read twice
        + 2 * tower  # for the norms
        + 2 * across * tower  # images, per column of panels: for S and for H'X
        + 2 * down * tower  # texts, per row of panels: for S and for H Y
        + 2 * across * _depth_parts(rows, d, cols) * sums  # images: read and written per panel
        + 2 * down * _depth_parts(cols, d, rows) * sums  # texts: the same
        + 6 * tower  # the projections: own and partner's features, results
    )
    return Work(
        operator,
        n,
        d,
        arithmetic,
        flops,
        total,
        _tiles(flops, arithmetic),
        EPILOGUE[operator] * n * n,
    )


def contrastive_backward(n: int, d: int, arithmetic: Arithmetic = "bf16") -> Work:
    """Softmax gradient panels and their two products."""
    return _panel_backward("contrastive backward", n, d, arithmetic)


def sigmoid_forward(n: int, d: int, arithmetic: Arithmetic = "bf16") -> Work:
    """S once; a sum per row."""
    flops = 2 * n * n * d
    return Work(
        "sigmoid forward",
        n,
        d,
        arithmetic,
        flops,
        _features(n, d, arithmetic) + _partials(n, 8) + 8 * n,
        _tiles(flops, arithmetic),
        EPILOGUE["sigmoid forward"] * n * n,
    )


def sigmoid_backward(n: int, d: int, arithmetic: Arithmetic = "bf16") -> Work:
    """As the contrastive one, with another formula for H."""
    return _panel_backward("sigmoid backward", n, d, arithmetic)


def _towers(n: int, d: int, element: int) -> float:
    """Features read (bf16), P and M written and read."""
    return 2 * n * d * 2 + 2 * 2 * n * d * element


def cycle_grams_forward(n: int, d: int) -> Work:
    """A, B and K whole: 6 N d^2 flops. (A and B are symmetric; skipping a half would save 2.)"""
    flops = 6 * n * d * d
    total = _towers(n, d, 8) + 3 * d * d * 8
    return Work(
        "cycle grams forward", n, d, "f64", flops, total, _tiles(flops, "f64", SMALL_TILE), 0
    )


def cycle_grams_backward(n: int, d: int) -> Work:
    """P B, M A, M K and P K', which equal weights do without (half of the flops)."""
    flops = 8 * n * d * d
    total = _towers(n, d, 8) + 3 * d * d * 8 + 2 * 2 * n * d * 8 + 2 * n * d * 2
    return Work(
        "cycle grams backward", n, d, "f64", flops, total, _tiles(flops, "f64", SMALL_TILE), 0
    )


def cycle_direct_forward(n: int, d: int) -> Work:
    """W = P M' once; its sums of squares take both of W and W'."""
    flops = 2 * n * n * d
    return Work(
        "cycle direct forward",
        n,
        d,
        "f32",
        flops,
        _towers(n, d, 4) + 2 * n * n * 4,  # W: written, read
        _tiles(flops, "f32"),
        EPILOGUE["cycle direct forward"] * n * n,
    )


def cycle_direct_backward(n: int, d: int) -> Work:
    """W again, and dL/dW times M and transposed times P."""
    flops = 6 * n * n * d
    total = _towers(n, d, 4) + 5 * n * n * 4 + 2 * 2 * n * d * 4 + 2 * n * d * 2
    return Work(
        "cycle direct backward",
        n,
        d,
        "f32",
        flops,
        total,
        _tiles(flops, "f32"),
        EPILOGUE["cycle direct backward"] * n * n,
    )


def ranks(n: int, d: int, arithmetic: Arithmetic = "bf16") -> Work:
    """S twice: the best of each line's own, then how many others reach it."""
    flops = 4 * n * n * d
    return Work(
        "ranks",
        n,
        d,
        arithmetic,
        flops,
        1.5 * _features(n, d, arithmetic) + 4 * _partials(n, 4),
        _tiles(flops, arithmetic),
        EPILOGUE["ranks"] * n * n,
    )


def top_k(n: int, d: int, arithmetic: Arithmetic = "bf16", k: int = 10) -> Work:
    """S once; a list of k per row and part of the columns, merged."""
    flops = 2 * n * n * d
    return Work(
        "top-k",
        n,
        d,
        arithmetic,
        flops,
        _features(n, d, arithmetic) + _partials(n, 8 * k, most=8) + 16 * k * n,
        _tiles(flops, arithmetic, SMALL_TILE),
        EPILOGUE["top-k"] * n * n,
    )


def floor(work: Work, machine: Machine) -> tuple[float, str]:
    """Seconds that no implementation of this schedule goes below, and what they are spent on."""
    arithmetic = work.flops / machine.flops[work.arithmetic]
    memory = work.bytes / machine.memory
    return max((arithmetic, "flops"), (memory, "bytes"))


def _reread(work: Work, machine: Machine) -> float:
    """Bytes of the texts that come from device memory once more per strip of rows in work.

    Blocks of a strip go through the columns together. Where the texts fit the L2 cache, beside as
    much again of other data, only the first strip fetches them.
    """
    if work.operator.startswith("cycle"):
        return 0
    tower = work.n * work.d * ELEMENT_BYTES[work.arithmetic]
    if 2 * tower <= machine.l2_capacity:
        return 0
    strips = work.n / TILE / max(1, machine.resident_tiles / MOST_REGIONS)
    passes = work.flops / (2 * work.n * work.n * work.d)
    return (strips - 1) * tower * min(passes, 2)


def expected(work: Work, machine: Machine) -> tuple[float, float, str]:
    """The floor over the estimated time, serial and overlapped, and what takes most of it."""
    product, reason = max(
        (work.flops / (machine.flops[work.arithmetic] * machine.product_share), "flops"),
        (work.tile_bytes / (machine.l2_bandwidth * L2_SHARE), "L2"),
        ((work.bytes + _reread(work, machine)) / (machine.memory * MEMORY_SHARE), "bytes"),
    )
    epilogue = work.epilogue / (machine.issue * ISSUE_SHARE)
    _, reason = max((product, reason), (epilogue, "epilogue"))
    lowest, _ = floor(work, machine)
    return lowest / (product + epilogue), lowest / max(product, epilogue), reason


SIZES = (4096, 32768, 131072)
WIDTHS = (512, 1024)
OPERATORS: tuple[Callable[[int, int], Work], ...] = (
    contrastive_forward,
    contrastive_backward,
    sigmoid_forward,
    sigmoid_backward,
    cycle_grams_forward,
    cycle_grams_backward,
    ranks,
    top_k,
)


def _header(cells: Sequence[str], left: int) -> Iterator[str]:
    yield "| " + " | ".join(cells) + " |"
    rules = ["---"] * left + ["---:"] * (len(cells) - left)
    yield "| " + " | ".join(rules) + " |"


def _number(value: float) -> str:
    """Three digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _cells(work: Work) -> list[str]:
    cells = [_number(work.flops / 1e12), _number(work.bytes / 1e9)]
    for machine in H100, A100:
        seconds, bound = floor(work, machine)
        low, high, reason = expected(work, machine)
        share = f"{high:.0%}" if f"{low:.0%}" == f"{high:.0%}" else f"{low:.0%} to {high:.0%}"
        cells += [f"{_number(seconds * 1e3)} ms, {bound}", f"{share}, {reason}"]
    return cells


_MACHINES = [
    f"{machine.name.split()[0]} {column}"
    for machine in (H100, A100)
    for column in ("floor", "expected")
]


def tables() -> str:
    """The tables of docs/cuda.md."""
    lines = list(_header(["operator", "N", "d", "Tflop", "GB", *_MACHINES], left=1))
    for operator in OPERATORS:
        for n in SIZES:
            for d in WIDTHS:
                work = operator(n, d)
                lines.append(f"| {work.operator} | {n:,} | {d:,} | {' | '.join(_cells(work))} |")
    lines += ["", "The direct route of the cycle terms, where it is taken (N < 2 d):", ""]
    lines += _header(["operator", "N", "d", "Tflop", "GB", *_MACHINES], left=1)
    for operator in cycle_direct_forward, cycle_direct_backward:
        for n, d in ((512, 512), (1024, 1024)):
            work = operator(n, d)
            lines.append(f"| {work.operator} | {n:,} | {d:,} | {' | '.join(_cells(work))} |")
    lines += ["", "Other dtypes, N = 32,768 and d = 512:", ""]
    lines += _header(["operator", "arithmetic", "Tflop", "GB", *_MACHINES], left=2)
    for with_arithmetic in contrastive_forward, contrastive_backward:
        for arithmetic in ELEMENT_BYTES:
            if arithmetic == "f64":
                continue
            work = with_arithmetic(32768, 512, arithmetic)
            lines.append(f"| {work.operator} | {arithmetic} | {' | '.join(_cells(work))} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", type=Path, metavar="PAGE", help="compare with this page")
    options = parser.parse_args(arguments)
    if options.check is None:
        print(tables())
        return 0
    if tables() in options.check.read_text(encoding="utf-8"):
        return 0
    print(f"{options.check} holds other tables than `python -m benchmarks.roofline` prints")
    return 1


if __name__ == "__main__":
    sys.exit(main())
