"""`python -m benchmarks sass_report`: figures of each CUDA kernel as compiled. Needs no GPU.

Compiles csrc/kernels/cuda/*.cu with the flags of setup.py and prints one line per kernel, with the
figures of the architectures side by side. The exit status is 1 if a kernel
    - spills registers, has a stack frame, or loads or stores local memory
    - has a TileShape for tensor-core arithmetic but no tensor-core instruction
    - does not fit on a multiprocessor, if the size of its shared memory is known
    - spends more instructions on an entry than EPILOGUE_LIMITS allows
    - is for compute capability 9.0a, but lacks wgmma or bulk copies, or ptxas serializes them, or
      accesses memory in an order that async_order.py does not allow

hopper_*.cu are compiled for sm_90a if sm_90 is among the architectures, and for no other one.

`--check` prints only such kernels.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, product
from pathlib import Path

from .cubin import ROOT, Kernel, compile_kernels, find_disassembler
from .occupancy import WARP_SIZE, occupancy, resident_blocks

from build_support.plan import HOPPER_SOURCES  # isort: skip  (cubin.py makes it importable)
from build_support.toolchain import CudaToolkit, find_cuda  # isort: skip

KERNELS = ROOT / "csrc" / "kernels" / "cuda"

# The tensor-core instructions of each kind of arithmetic in tile.cuh.
TENSOR_CORES = {
    "Bf16": r"HMMA\.16816.*BF16",
    "F16": r"HMMA\.16816\.F32(?!\.BF16)",
    "Tf32": r"HMMA\.1688.*TF32",
    "F64": r"DMMA",
}

# Limits of the instructions per entry after the product, for large tiles in bfloat16.
EPILOGUE_LIMITS = {
    r"pair_statistics_forward_kernel<(TilePair<)?TileShape<Bf16, 128.*>, false, NoLabels>": 15.0,
    r"pair_statistics_forward_kernel<(TilePair<)?TileShape<Bf16, 128.*>, true, NoLabels>": 20.0,
    r"pair_statistics_forward_kernel<TileShape<Bf16, 128, 128.*>, false, Labels>": 16.5,
    r"fill_panel_backward_kernel<TileShape<Bf16, 128, 128.*>, Softmax<float, NoLabels>>": 20.0,
    r"fill_panel_backward_kernel<TilePair<TileShape<Bf16.*>>, Softmax<float, NoLabels>>": 21.5,
    r"fill_panel_backward_kernel<TileShape<Bf16, 128, 128.*>, Softmax<float, Labels>>": 22.0,
    r"sigmoid_rows_forward_kernel<(TilePair<)?TileShape<Bf16, 128.*>, NoLabels>": 18.5,
    r"fill_panel_backward_kernel<TileShape<Bf16, 128, 128.*>, Sigmoid<float, NoLabels>>": 25.0,
    r"fill_panel_backward_kernel<TilePair<TileShape<Bf16.*>>, Sigmoid<float, NoLabels>>": 26.0,
    r"pair_statistics_hopper_forward_kernel<HopperTile<Bf16.*>, false, NoLabels>": 15.0,
    r"pair_statistics_hopper_forward_kernel<HopperTile<Bf16.*>, true, (No|Same)Labels>": 24.5,
    r"sigmoid_rows_hopper_forward_kernel<HopperTile<Bf16.*>(, NoLabels)?>": 13.5,
    r"fill_panel_hopper_backward_kernel<HopperTile<Bf16.*>, Softmax<float, NoLabels>>": 15.5,
    r"fill_panel_hopper_backward_kernel<HopperTile<Bf16.*>, Sigmoid<float, NoLabels>>": 22.0,
}

INSTRUCTIONS = {  # column: opcodes
    "HMMA": r"HMMA",
    "DMMA": r"DMMA",
    "FFMA": r"FFMA",
    "ldmatrix": r"LDSM",
    "cp.async 16 B": r"LDGSTS.*\.128",
    "global load 16 B": r"LDG\..*\.128",
    "local": r"LDL|STL",
}

HOPPER_ENTRIES = 128  # of a thread, of a tile of 128 x 128 or 64 x 256 in one warpgroup
HOPPER_INSTRUCTIONS = {"wgmma": r"HGMMA", "bulk copies": r"UTMALDG"}

PAGE = """# The CUDA kernels as compiled

Written by `python -m benchmarks.sass_report --markdown docs/kernels.md` with nvcc {nvcc}: figures
of the compiler and counts in its machine code. Nothing here was measured on a GPU.

If the architectures differ, the figures are those of {architectures}.

Shared memory is static + dynamic, in bytes. "Blocks" is the number of blocks that fit on one
multiprocessor, and occupancy is their share of its warps. Instructions are counted in the code, not
as they are executed, so a main loop counts once. The exception is "after the product", which counts
executed instructions: those of a thread after the product, per entry of the tile that the thread
holds, on the shortest path, which a tile inside the matrix, off its diagonal and without equal
labels takes. Of a pair of tiles one is counted; moving the second one takes another half
instruction per entry.
`cp.async 16 B` and `global load 16 B` are the accesses of that width. "local" are loads and stores
of local memory; they must be 0, and so must stack and spills.

{table}

## Compute capability 9.0a

The kernels of `hopper_*.cu` (docs/cuda.md). Registers are those of a thread of each role, which the
compiler does not report. "After the product" counts the instructions of a consumer from its last
product of a tile to the first one of its next tile.

{hopper_table}
"""


def findings(kernel: Kernel) -> list[str]:
    """Return descriptions of the problems of a kernel."""
    found = []
    if kernel.spilled:
        found.append(f"spills {kernel.spilled} bytes of registers")
    if kernel.stack:
        found.append(f"has a stack frame of {kernel.stack} bytes")
    local = kernel.count(INSTRUCTIONS["local"])
    if local:
        found.append(f"accesses local memory in {local} instructions")
    for arithmetic, pattern in TENSOR_CORES.items():
        if f"TileShape<{arithmetic}," in kernel.name and not kernel.count(pattern):
            found.append(f"computes in {arithmetic} without an instruction like {pattern}")
    if "HopperTile<" in kernel.name:
        missing = [
            name for name, pattern in HOPPER_INSTRUCTIONS.items() if not kernel.count(pattern)
        ]
        found += [f"lacks {name}" for name in missing]
        if kernel.serialized:
            found.append("has wgmma that ptxas serializes, or setmaxnreg that it ignores")
    found += kernel.async_findings[:3]  # one cause often has many
    if _blocks(kernel) == 0:
        found.append("does not fit on a multiprocessor")
    per_entry = _after_product(kernel)
    for pattern, limit in EPILOGUE_LIMITS.items():
        if per_entry is not None and per_entry > limit and re.fullmatch(pattern, kernel.name):
            found.append(f"spends {per_entry:.1f} instructions on an entry, more than {limit}")
    return found


def _blocks(kernel: Kernel) -> int | None:
    if kernel.threads is None or kernel.dynamic_shared is None:
        return None
    shared = kernel.static_shared + kernel.dynamic_shared
    return resident_blocks(kernel.arch, kernel.threads, kernel.registers, shared)


def row(kernels: Sequence[Kernel]) -> dict[str, str]:
    """Return the line of one kernel; figures that differ by architecture are side by side."""
    columns = [figures(kernel) for kernel in kernels]
    merged = {"kernel": f"`{kernels[0].name}`"}
    for name in columns[0]:
        values = [column[name] for column in columns]
        merged[name] = values[0] if len(set(values)) == 1 else " / ".join(values)
    return merged


def figures(kernel: Kernel) -> dict[str, str]:
    blocks = _blocks(kernel)
    share = "?"
    after_product = _after_product(kernel)
    if blocks is not None and kernel.threads is not None:
        share = f"{occupancy(kernel.arch, kernel.threads, blocks):.0%}"
    return {
        "threads": _or_unknown(kernel.threads),
        "registers": str(kernel.registers),
        "shared": f"{kernel.static_shared} + {_or_unknown(kernel.dynamic_shared)}",
        "blocks": _or_unknown(blocks),
        "occupancy": share,
        "stack + spills": f"{kernel.stack} + {kernel.spilled}",
        "instructions": str(kernel.opcodes.total()),
        "after the product": "-" if after_product is None else f"{after_product:.1f}",
        **{name: str(kernel.count(pattern)) for name, pattern in INSTRUCTIONS.items()},
    }


def hopper_figures(kernel: Kernel) -> dict[str, str]:
    """Return the line of one kernel for compute capability 9.0a."""
    after_product = _after_product(kernel)
    return {
        "kernel": f"`{kernel.name}`",
        "threads": _or_unknown(kernel.threads),
        "registers of the roles": " / ".join(map(str, kernel.role_registers)),
        "shared": f"{kernel.static_shared} + {_or_unknown(kernel.dynamic_shared)}",
        "stack + spills": f"{kernel.stack} + {kernel.spilled}",
        "instructions": str(kernel.opcodes.total()),
        "after the product": "-" if after_product is None else f"{after_product:.1f}",
        **{name: str(kernel.count(p)) for name, p in HOPPER_INSTRUCTIONS.items()},
        "local": str(kernel.count(INSTRUCTIONS["local"])),
    }


def _after_product(kernel: Kernel) -> float | None:
    """Return the instructions after the product for each entry of a tile that a thread holds."""
    if "HopperTile<" in kernel.name and kernel.epilogue is not None:
        return kernel.epilogue / HOPPER_ENTRIES
    shape = re.search(r"TileShape<\w+, (\d+), (\d+), (\d+), (\d+)", kernel.name)
    if shape is None or kernel.epilogue is None:
        return None
    rows, cols, warps_down, warps_across = map(int, shape.groups())
    entries = rows * cols // (warps_down * warps_across * WARP_SIZE)
    return kernel.epilogue / entries


def _or_unknown(value: int | None) -> str:
    return "?" if value is None else str(value)


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """Return a table with the first column aligned left and the numbers aligned right."""
    if not rows:
        return ""
    columns = list(rows[0])
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in columns]

    def line(cells: Iterable[str]) -> str:
        padded = [
            cell.ljust(width) if position == 0 else cell.rjust(width)
            for position, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(columns), line(rule), *(line(row.values()) for row in rows)])


def compile_all(
    sources: Sequence[Path], architectures: Sequence[str], toolkit: CudaToolkit, jobs: int
) -> list[Kernel]:
    """Return every kernel for every architecture, sorted by name."""
    disassembler = find_disassembler(toolkit)
    with ThreadPoolExecutor(jobs) as pool:
        hopper = [source for source in sources if source.match(Path(HOPPER_SOURCES).name)]
        jobs_of_all = [job for job in product(sources, architectures) if job[0] not in hopper]
        if "90" in architectures:
            jobs_of_all += [(source, "90a") for source in hopper]
        compiled = pool.map(
            lambda job: compile_kernels(job[0], job[1], toolkit, disassembler), jobs_of_all
        )
        return sorted(
            (kernel for batch in compiled for kernel in batch), key=lambda kernel: kernel.name
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sass_report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = (
        "%(prog)s [FILE.cu ...] [--arch 80 90 100 120] [--check] [--markdown FILE] [--jobs N]"
    )
    parser.add_argument("sources", nargs="*", type=Path, metavar="FILE.cu", help="default: all")
    parser.add_argument(
        "--arch", nargs="+", choices=("80", "90", "100", "120"), default=["80", "90", "100", "120"]
    )
    parser.add_argument("--check", action="store_true", help="print only problems")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write docs/kernels.md there")
    parser.add_argument("--jobs", type=int, default=int(os.environ.get("MAX_JOBS", "2")))
    options = parser.parse_args(arguments)

    toolkit = find_cuda()
    if toolkit is None:
        parser.error("no nvcc on PATH or in /usr/local/cuda; set CUDA_HOME to a CUDA toolkit")
    sources = options.sources or sorted(KERNELS.glob("*.cu"))
    try:
        kernels = compile_all(sources, options.arch, toolkit, options.jobs)
    except RuntimeError as error:
        parser.exit(1, f"{error}\n")
    if kernels and not options.check:
        portable = [kernel for kernel in kernels if kernel.arch != "90a"]
        by_name = groupby(portable, key=lambda kernel: kernel.name)
        table = markdown([row(list(group)) for _, group in by_name])
        hopper_table = markdown([hopper_figures(k) for k in kernels if k.arch == "90a"])
        print(table, hopper_table, sep="\n\n")
        if options.markdown:
            page = PAGE.format(
                nvcc=toolkit.version,
                architectures=" / ".join(f"sm_{arch}" for arch in options.arch),
                table=table,
                hopper_table=hopper_table,
            )
            options.markdown.write_text(page, encoding="utf-8")
    problems = [
        f"{kernel.name} (sm_{kernel.arch}) {', '.join(found)}"
        for kernel in kernels
        if (found := findings(kernel))
    ]
    print(*problems, sep="\n", file=sys.stderr, end="\n" if problems else "")
    print(f"{len(kernels)} kernels, nvcc {toolkit.version}: {len(problems)} with problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
