"""Which lines of the CUDA kernels could be lost without a test noticing?

Takes away, one at a time, each barrier, each wait for copies and each predicate of kernels/cuda,
and looks whether some test fails:

    python csrc/tests/mutations.py                    # all; an interrupted run goes on where it was
    python csrc/tests/mutations.py --only engine.cuh  # those whose name contains this
    python csrc/tests/mutations.py --list             # what would be tried

Fails where a mutant survives that mutation_survivors.txt does not explain, and where that file
explains one that does not survive. Needs g++ and what the tests in python_tests/kernels need.

A mutant is tried in up to three ways, the quick ones first:
    orders   emulated_operators_test.cpp: all orders of the threads, at small shapes
    races    the same under the thread sanitizer, for what keeps threads apart
    python   python_tests/kernels: values, layouts, panels, policies

Of a header that all kernels include only one kernel is compiled at first, and its object linked
first: that is the one whose templates the linker takes.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
KERNELS = Path("csrc/kernels/cuda")
SURVIVORS = Path(__file__).with_name("mutation_survivors.txt")
TEST = Path("csrc/tests/emulated_operators_test.cpp")

# Primitives have tests of their own; the host's choices of tiles and panels change no result.
NOT_MUTATED = {"primitives.cuh", "operators.h", "host.h"}

# Compiled first for a mutant of a header, if they include it: they use most of the engine.
WITNESSES = ["pair_statistics_forward.cu", "product.cu"]

FLAGS = [
    *("-x", "c++", "-std=c++20", "-O1", "-fPIC", "-DCYCLIP_EMULATE"),
    *("-ffp-contract=off", "-fno-strict-aliasing", "-w"),
]
TIMEOUT = 600  # seconds; a mutant may run forever


@dataclass(frozen=True)
class Mutant:
    """One changed line."""

    file: str  # in kernels/cuda
    line: int  # from 0
    before: str
    after: str
    number: int = 0  # among equal changes of the file

    @property
    def name(self) -> str:
        """Survives changes elsewhere in the file."""
        which = f" (number {self.number + 1})" if self.number else ""
        return f"{self.file}: {self.before.strip()} -> {self.after.strip() or 'nothing'}{which}"

    @property
    def is_about_order(self) -> bool:
        """Whether threads could get into each other's way without it."""
        return bool(re.search(r"block_barrier|copy_async|threadIdx|lane|place\.[gt] ", self.before))


# ---------------------------------------------------------------- what is changed


def changes(line: str) -> Iterator[str]:
    """The line without its barrier, its wait, its commit, or one of its predicates."""
    code = line.split("//")[0].rstrip()
    if re.search(r"static_assert|#|constexpr", code):
        return
    if "block_barrier();" in code:
        yield code.replace("block_barrier();", "")
    if pipeline := re.search(r"\bcopy_async_(?:wait<(.*)>|commit)\(\);", code):
        yield code.replace(pipeline[0], "")
        if pipeline[1]:
            yield code.replace(pipeline[0], f"copy_async_wait<{pipeline[1]} + 1>();")
    for condition, whole in _conditions(code):
        parts = _split(condition)
        for i in range(len(parts) if len(parts) > 2 else 0):
            kept = parts[:i] + parts[i + 2 :] if i < len(parts) - 1 else parts[: i - 1]
            if i % 2 == 0:
                yield code.replace(condition, "".join(kept), 1)
        if whole is not None:
            yield code.replace(whole, "", 1)
        elif len(parts) == 1:
            yield code.replace(condition, "true", 1)


def _conditions(code: str) -> Iterator[tuple[str, str | None]]:
    """What decides whether something is done, with the statement if that only leaves a line out."""
    zero = r"(?:0|\w+\{0?\}|typename [\w:]+\{\}|Pass::kNothing|entry|depth)"
    patterns = {
        "leave": r"\bif \((.+)\) (?:return|return kSuccess|continue);",
        "do": r"\bif \((.+?)\) (?:\{$|(?!return|continue)[\w*])",
        "flag": r"(?:\bconst bool \w+|, is_\w+) = ((?:(?!, is_)[^;])+)[,;]",
        "result": r"\breturn ([^?]+ (?:&&|\|\|) [^?]+);",
        "or zero": r"(?:[^=]= |return |\(|, )((?:[^=?,;]|[<>=!]=)*[^=?,; ]) \? [^?]+ : " + zero,
    }
    for kind, pattern in patterns.items():
        for found in re.finditer(pattern, code):
            condition = found[1]
            if kind == "or zero" and condition.count("(") > condition.count(")"):
                condition = condition[condition.rindex("(") + 1 :]
            if _split(condition) and not re.search(
                r"kSuccess|ElementType|kAlong|_grad$|return ", condition
            ):
                yield condition, found[0] if kind == "leave" else None


def _split(condition: str) -> list[str]:
    """Into operands and operators of the outermost && or ||; empty where brackets do not match."""
    parts, depth = [""], 0
    operator = None
    for token in re.split(r"( && | \|\| )", condition):
        outer = depth == 0 and token in (" && ", " || ") and operator in (None, token)
        depth += token.count("(") - token.count(")")
        if depth < 0:
            return []
        if outer:
            operator = token
            parts += [token, ""]
        else:
            parts[-1] += token
    return parts if depth == 0 else []


def mutants() -> list[Mutant]:
    found = []
    for path in sorted((ROOT / KERNELS).glob("*.cu*")):
        if path.name in NOT_MUTATED:
            continue
        seen: Counter[tuple[str, str]] = Counter()
        for number, line in enumerate(path.read_text().splitlines()):
            for after in dict.fromkeys(changes(line)):
                before = line.split("//")[0].rstrip()
                key = before.strip(), after.strip()
                found.append(Mutant(path.name, number, before, after, seen[key]))
                seen[key] += 1
    return found


def unchanged() -> Mutant:
    """All tests must pass."""
    first = (ROOT / KERNELS / "product.cu").read_text().splitlines()[0]
    return Mutant("product.cu", 0, first, first)


# ---------------------------------------------------------------- how it is tried


def includers(header: str) -> list[str]:
    """The .cu files that include it, directly or not."""
    texts = {path.name: path.read_text() for path in (ROOT / KERNELS).glob("*.cu*")}

    def includes(name: str, seen: set[str]) -> bool:
        if name == header:
            return True
        seen.add(name)
        inner = re.findall(r'#include "(\w+\.cuh)"', texts.get(name, ""))
        return any(includes(other, seen) for other in inner if other not in seen)

    return [name for name in sorted(texts) if name.endswith(".cu") and includes(name, set())]


class Builder:
    """Compiles and links; objects of unchanged sources are made once and kept in `work`."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.preparing = threading.Lock()
        self.kernels = sorted(path.name for path in (ROOT / KERNELS).glob("*.cu"))

    def prepare(self, jobs: int, sanitize: str = "") -> None:
        """The objects of all unchanged sources."""
        emulation = sorted((ROOT / "csrc/kernels/emulation").glob("*.cpp"))
        sources = [ROOT / KERNELS / name for name in self.kernels]
        sources += [s for s in emulation if not (sanitize and s.name == "module.cpp")]
        sources.append(ROOT / TEST)
        folder = self._objects(sanitize)
        with self.preparing, concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda source: self._compile(source, ROOT, folder, sanitize), sources))

    def test_program(self, tree: Path, changed: list[str], sanitize: str = "") -> Path:
        program = tree / f"test{sanitize}"
        self._link(program, tree, changed, sanitize, [f"{TEST.name}.o"], [])
        return program

    def module(self, tree: Path, changed: list[str]) -> Path:
        folder = tree / "module"
        folder.mkdir(exist_ok=True)
        name = f"cyclip_emulation{sysconfig.get_config_var('EXT_SUFFIX')}"
        self._link(folder / name, tree, changed, "", ["module.cpp.o"], ["-shared"])
        return folder

    def _objects(self, sanitize: str) -> Path:
        return self.work / f"objects{sanitize}"

    def _link(
        self,
        out: Path,
        tree: Path,
        changed: list[str],
        sanitize: str,
        last: list[str],
        flags: list[str],
    ) -> None:
        for name in changed:
            self._compile(tree / KERNELS / name, tree, tree / f"objects{sanitize}", sanitize)
        unchanged = self._objects(sanitize)
        objects = [tree / f"objects{sanitize}" / f"{name}.o" for name in changed]
        objects += [unchanged / f"{name}.o" for name in self.kernels if name not in changed]
        others = {f"{TEST.name}.o", "module.cpp.o"} | {f"{name}.o" for name in self.kernels}
        objects += [path for path in sorted(unchanged.glob("*.o")) if path.name not in others]
        objects += [unchanged / name for name in last]
        sanitizer = [f"-fsanitize={sanitize}"] if sanitize else []
        _run(["g++", *flags, *sanitizer, *objects, "-o", out])

    def _compile(self, source: Path, tree: Path, folder: Path, sanitize: str) -> None:
        target = folder / f"{source.name}.o"
        if target.exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        includes = ["-I", tree / "csrc"]
        if source.name == "module.cpp":
            import pybind11

            includes += ["-I", pybind11.get_include(), "-I", sysconfig.get_paths()["include"]]
        sanitizer = [f"-fsanitize={sanitize}", "-g1"] if sanitize else []
        part = target.with_suffix(".part")
        _run(["g++", *FLAGS, *sanitizer, *includes, "-c", source, "-o", part])
        part.rename(target)  # an interrupted run leaves no half of an object


def _run(command: list[object], **options: object) -> None:
    subprocess.run(
        [str(word) for word in command],
        check=True,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        **options,
    )


def _fails(command: list[object], environment: dict[str, str] | None = None) -> str | None:
    """What failed, in a few words; None if nothing did."""
    try:
        _run(command, env={**os.environ, **(environment or {})}, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return "runs forever"
    except subprocess.CalledProcessError as error:
        text = error.stdout + error.stderr
        telling = re.search(r"^(FAILED .*|SUMMARY.*|WARNING: Thread.*|.*what\(\).*)$", text, re.M)
        lines = [line for line in text.splitlines() if line.strip()]
        return (telling[0] if telling else lines[0] if lines else f"exit {error.returncode}")[:160]
    return None


def first_test(kernel: str) -> str:
    """The tests that are likeliest to kill a mutant of this file."""
    subjects = {
        "cycle": "cycle",
        "sigmoid": "sigmoid",
        "retrieval": "retrieval",
        "similarity": "retrieval",
    }
    subject = subjects.get(kernel.partition("_")[0], "pair_statistics")
    return f"python_tests/kernels/test_{subject}.py"


def attempt(mutant: Mutant, builder: Builder, jobs: int) -> str | None:
    """What kills it; None if it survives."""
    affected = includers(mutant.file) if mutant.file.endswith(".cuh") else [mutant.file]
    witnesses = [name for name in WITNESSES if name in affected] or affected[:1]
    with tempfile.TemporaryDirectory(dir=builder.work) as folder:
        tree = Path(folder)
        shutil.copytree(ROOT / "csrc/kernels", tree / "csrc/kernels")
        path = tree / KERNELS / mutant.file
        lines = path.read_text().splitlines()
        lines[mutant.line] = mutant.after
        path.write_text("\n".join(lines) + "\n")
        try:
            for changed in dict.fromkeys(map(tuple, (witnesses[:1], witnesses, affected))):
                program = builder.test_program(tree, list(changed))
                if failure := _fails([program, "stop"]):
                    return f"orders: {failure}"
            if mutant.is_about_order:
                builder.prepare(jobs, "thread")
                program = builder.test_program(tree, affected, "thread")
                if failure := _fails([program, "stop"]):
                    return f"races: {failure}"
            module = builder.module(tree, affected)
            tests = ["-m", "pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider"]
            tests += ["--ignore", "python_tests/kernels/test_accuracy.py"]  # judges rounding
            tests += ["-k", "not tf32 and not float16 and not 513"]  # the orders had all precisions
            tests += [first_test(mutant.file), "python_tests/kernels"]
            environment = {"CYCLIP_EMULATION_DIR": str(module), "OMP_NUM_THREADS": "1"}
            if failure := _fails([sys.executable, *tests], environment):
                return f"python: {failure}"
        except subprocess.CalledProcessError as error:
            first = next((s for s in error.stderr.splitlines() if "error" in s), "")
            return f"does not compile: {first[-120:]}"
    return None


# ---------------------------------------------------------------- the report


def explained() -> dict[str, str]:
    """Name and explanation of each entry: a line, and the indented ones below it."""
    entries: dict[str, str] = {}
    name = ""
    for line in SURVIVORS.read_text().splitlines():
        if line.startswith("#") or not line.strip():
            continue
        if line[0].isspace():
            entries[name] += line.strip() + " "
        else:
            name = line.strip()
            entries[name] = ""
    return entries


def fingerprint() -> str:
    """Of all that decides what a mutant does."""
    folders = [ROOT / "csrc/kernels", ROOT / "csrc/tests", ROOT / "python_tests/kernels"]
    digest = hashlib.sha256()
    for path in sorted(p for folder in folders for p in folder.rglob("*.*") if p != SURVIVORS):
        if path.suffix in {".cu", ".cuh", ".h", ".cpp", ".py"}:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(description="Mutation check of the CUDA kernels.")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--only", default="", help="try those whose name contains this")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "mutations")
    arguments = parser.parse_args()

    chosen = [mutant for mutant in mutants() if arguments.only in mutant.name]
    if arguments.list:
        print(*(mutant.name for mutant in chosen), sep="\n")
        return 0
    work = arguments.work.resolve() / fingerprint()
    work.mkdir(parents=True, exist_ok=True)
    builder = Builder(work)
    print(f"{len(chosen)} mutants; results and objects in {work}")
    builder.prepare(arguments.jobs)
    results_path = work / "results.json"
    results: dict[str, str | None] = {}
    if results_path.exists():
        results = json.loads(results_path.read_text())

    if not results and (failure := attempt(unchanged(), builder, arguments.jobs)):
        print(f"the tests fail without any mutation: {failure}")
        return 1
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        waiting = [mutant for mutant in chosen if mutant.name not in results]
        running = {pool.submit(attempt, m, builder, arguments.jobs): m for m in waiting}
        for done in concurrent.futures.as_completed(running):
            name, killer = running[done].name, done.result()
            results[name] = killer
            results_path.write_text(json.dumps(results, indent=1))
            print(
                f"{'killed  ' if killer else 'SURVIVED'} {name}\n         {killer or ''}",
                flush=True,
            )

    known = explained()
    survivors = [mutant.name for mutant in chosen if results[mutant.name] is None]
    unexplained = [name for name in survivors if name not in known]
    outdated = [name for name in known if arguments.only in name and name not in survivors]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} killed, {len(survivors)} survive")
    for name in survivors:
        print(f"  {name}\n      {known.get(name, 'NOT EXPLAINED')}")
    for name in outdated:
        print(f"  explained, but does not survive: {name}")
    return 1 if unexplained or outdated else 0


if __name__ == "__main__":
    sys.exit(main())
