"""Compiles a .cu file for one architecture and reads the compiler's output.

There are three sources, because none of them is complete: the PTX (launch bounds, dynamic shared
memory), the messages of ptxas (registers, stack, spills), and the machine code (instructions).
"""

from __future__ import annotations

import importlib.util
import math
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "csrc"))  # as setup.py does

from build_support.plan import COMMON_FLAGS, NVCC_FLAGS  # noqa: E402
from build_support.toolchain import CudaToolkit  # noqa: E402

from . import async_order  # noqa: E402
from .control_flow import epilogue_instructions  # noqa: E402

_REQUEST = re.compile(r"USETMAXREG\.\w+\.CTAPOOL .*(0x\w+)")  # of registers, by one role


@dataclass(frozen=True)
class Kernel:
    """One kernel compiled for one architecture. Sizes are in bytes."""

    name: str  # demangled, without namespaces and parameters
    arch: str  # "80", "90a"
    threads: int | None  # per block, from the launch bounds
    registers: int
    stack: int
    spilled: int  # stores and loads
    static_shared: int
    dynamic_shared: int | None  # None: used, but the size is unknown
    opcodes: Counter[str]
    epilogue: int | None  # instructions on the shortest path after the product (control_flow.py)
    role_registers: tuple[int, ...]  # of each role of a kernel that changes them
    serialized: bool  # whether ptxas reported that it serializes wgmma or ignores setmaxnreg
    async_findings: tuple[str, ...]  # of async_order.py, for compute capability 9.0a

    def count(self, pattern: str) -> int:
        """Count the instructions whose opcode with modifiers begins with a regular expression."""
        matches = re.compile(pattern).match
        return sum(count for opcode, count in self.opcodes.items() if matches(opcode))


def find_disassembler(toolkit: CudaToolkit) -> Path:
    """Return the nvdisasm of PATH, of the toolkit, or of the PyPI package.

    Raises: RuntimeError with the remedy if there is none.
    """
    on_path = shutil.which("nvdisasm")
    candidates = [Path(on_path)] if on_path else []
    candidates.append(toolkit.home / "bin" / "nvdisasm")
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        candidates += sorted(Path(folder).glob("*/bin/nvdisasm"))
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise RuntimeError(
        f"nvdisasm is neither on PATH nor in {toolkit.home}; run `pip install nvidia-cuda-nvdisasm`"
    )


def compile_kernels(
    source: Path, arch: str, toolkit: CudaToolkit, disassembler: Path
) -> list[Kernel]:
    """Return the kernels of one file for one architecture ("80"), in the order of the PTX.

    Raises: RuntimeError with the compiler's messages if it does not compile.
    """
    with tempfile.TemporaryDirectory(prefix="cyclip-sass-") as scratch:
        cubin = Path(scratch) / "kernels.cubin"
        messages = _run(
            str(toolkit.home / "bin" / "nvcc"),
            *COMMON_FLAGS,
            *NVCC_FLAGS,
            f"-I{ROOT / 'csrc'}",
            f"-gencode=arch=compute_{arch},code=sm_{arch}",
            "-Xptxas=-v",
            *("-keep", "-keep-dir", scratch),  # the PTX
            *("-cubin", "-o", str(cubin), str(source)),
        )
        ptx = (Path(scratch) / f"{source.stem}.ptx").read_text(encoding="utf-8")
        sections = _sections(_run(str(disassembler), "-c", str(cubin)))
    resources = _resources(messages)
    entries = list(_entries(ptx))
    names = _demangle([mangled for mangled, _ in entries])
    unsized = re.findall(r"^\.extern \.shared .*?([\w$]+)\[\];", ptx, flags=re.MULTILINE)
    return [
        _kernel(
            *(names[mangled], arch, body, unsized, resources[mangled], sections[mangled]),
            serialized="(C75" in messages,
        )
        for mangled, body in entries
    ]


def _run(*command: str) -> str:
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise RuntimeError(f"`{' '.join(command)}` failed:\n{done.stdout}")
    return done.stdout


def _kernel(
    name: str,
    arch: str,
    ptx: str,
    unsized: list[str],  # arrays in shared memory whose size is set by the launch
    resources: dict[str, int],
    disassembly: str,
    serialized: bool,
) -> Kernel:
    bounds = re.search(r"^\.maxntid (\d+(?:, \d+)*)", ptx, flags=re.MULTILINE)
    # primitives.cuh writes this comment in kernels that use dynamic shared memory.
    stated = [int(size) for size in re.findall(r"// dynamic_shared_bytes (\d+)", ptx)]
    used = any(array in ptx for array in unsized)
    return Kernel(
        name=name,
        arch=arch,
        threads=math.prod(map(int, bounds[1].split(", "))) if bounds else None,
        dynamic_shared=max(stated) if stated else (None if used else 0),
        opcodes=_opcodes(disassembly),
        epilogue=epilogue_instructions(disassembly),
        role_registers=tuple(
            int(count, 16)
            for count in re.findall(r"USETMAXREG\.\w+\.CTAPOOL .*(0x\w+)", disassembly)
        ),
        serialized=serialized,
        async_findings=tuple(async_order.findings(ptx, unsized)) if arch == "90a" else (),
        **resources,
    )


def _entries(ptx: str) -> Iterator[tuple[str, str]]:
    """Yield the mangled name and the text of each kernel."""
    pieces = re.split(r"^(?:\.visible )?\.(entry|func)\b", ptx, flags=re.MULTILINE)
    for kind, text in zip(pieces[1::2], pieces[2::2], strict=True):
        if kind == "entry":
            mangled = re.match(r"\s*([\w$]+)", text)
            assert mangled is not None
            yield mangled[1], text


def _resources(messages: str) -> dict[str, dict[str, int]]:
    """Read the messages of `ptxas -v`, by mangled name."""
    found = {}
    pieces = re.split(r"Compiling entry function '([^']+)'", messages)
    for mangled, text in zip(pieces[1::2], pieces[2::2], strict=True):
        own = text.split(f"Function properties for {mangled}\n", 1)[1]
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", own)
        registers = re.search(r"Used (\d+) registers", own)
        assert frame is not None
        assert registers is not None
        shared = re.search(r"(\d+) bytes smem", own)
        found[mangled] = {
            "registers": int(registers[1]),
            "stack": int(frame[1]),
            "spilled": int(frame[2]) + int(frame[3]),
            "static_shared": int(shared[1]) if shared else 0,
        }
    return found


def _sections(disassembly: str) -> dict[str, str]:
    """Return the text of each kernel with its subroutines, by mangled name."""
    pieces = re.split(r"^\.text\.([\w$]+):", disassembly, flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def _opcodes(disassembly: str) -> Counter[str]:
    address, predicate = r"^\s*/\*[0-9a-f]{4,}\*/\s+", r"(?:@!?U?P\w+\s+)?"
    opcode = re.compile(rf"{address}(?:\{{\s*)?{predicate}([A-Z][\w.]*)", flags=re.MULTILINE)
    return Counter(opcode.findall(disassembly))


def _demangle(names: list[str]) -> dict[str, str]:
    """Return short names by mangled name; without c++filt, the mangled names."""
    if not names or shutil.which("c++filt") is None:
        return {name: name for name in names}
    return dict(zip(names, map(_shorten, _run("c++filt", *names).splitlines()), strict=True))


def _shorten(signature: str) -> str:
    """Remove return type, namespaces and parameters."""
    name = re.sub(r"\(anonymous namespace\)::|cyclip::cuda::", "", signature)
    name = name.removeprefix("void ").replace("> >", ">>")
    depth = 0
    for position, character in enumerate(name):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            return name[:position]
    return name
