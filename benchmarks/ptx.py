"""Reads the PTX of one kernel: its control flow, and the values of its registers if they are known.

Registers are evaluated for each thread of a block if they follow from the thread's number,
constants and addresses of shared memory. All others, and those that change in a loop, are unknown.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.int64]  # one for each thread of a block
Threads = npt.NDArray[np.bool_]

SHARED_BASE = 1024  # the address at which dynamic shared memory is assumed to begin

_STATEMENT = re.compile(
    r"\s*(?:(?P<brace>[{}])|(?P<label>[\w$]+):(?!:)|\.(?:loc|file|section)\b[^\n]*"
    r"|(?P<statement>[^{};](?:[^;{}]|\{[^{}]*\})*);)"
)
_INSTRUCTION = re.compile(
    r"(?:@(?P<not>!?)(?P<guard>[%\w]+)\s+)?(?P<opcode>[a-z][\w.:]*)\s*(?P<rest>.*)", re.S
)
_NAME = re.compile(r"[%$\w][\w$.]*")
_OPERAND = re.compile(r"\{[^{}]*\}|\[[^\[\]]*\]|[^,]+")

# Instructions whose first operand is not their result.
_WITHOUT_RESULT = re.compile(
    r"(st|red|bra|bar|barrier\.cta\.(sync|arrive)|mbarrier\.init|fence|wgmma|cp|prefetch|setmaxnreg"
    r"|ret|exit|trap|membar|discard)\b"
)


@dataclass(frozen=True)
class Instruction:
    opcode: str  # with modifiers
    operands: tuple[str, ...]
    line: int  # in the text, from 1
    guard: str | None = None  # the predicate under which it is executed
    is_negated: bool = False  # whether it is executed if the predicate is false

    def __str__(self) -> str:
        return f"{self.opcode} in line {self.line}"

    @property
    def names(self) -> frozenset[str]:
        """The registers and symbols among the operands."""
        return frozenset(_NAME.findall(" ".join(self.operands)))

    @property
    def addresses(self) -> list[str]:
        """The operands in brackets, without them."""
        return [operand[1:-1].strip() for operand in self.operands if operand.startswith("[")]


@dataclass
class Program:
    """The instructions of a kernel, and the target of each branch."""

    threads: int  # of a block
    instructions: list[Instruction] = field(default_factory=list)
    targets: dict[int, int] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)  # assumed addresses of arrays

    def successors(self, place: int) -> list[int]:
        """Return the instructions that may follow one, in any thread."""
        return [following for following, _ in self._edges(place)]

    def _edges(self, place: int) -> Iterator[tuple[int, Threads]]:
        """Yield each possible successor and the threads that may continue there."""
        instruction = self.instructions[place]
        reached = self.reached[place]
        kind = instruction.opcode.partition(".")[0]
        others = reached
        if kind in ("bra", "ret", "exit", "trap"):
            taken, others = self._split(instruction, reached)
            if kind == "bra" and taken.any():
                yield self.targets[place], taken
        if others.any() and place + 1 < len(self.instructions):
            yield place + 1, others

    def _split(self, instruction: Instruction, threads: Threads) -> tuple[Threads, Threads]:
        """Return the threads for which the guard may hold, and those for which it may not."""
        if instruction.guard is None:
            return threads, np.zeros_like(threads)
        guard = self.value(instruction.guard)
        if guard is None:
            return threads, threads
        holds = (guard != 0) != instruction.is_negated
        return threads & holds, threads & ~holds

    @cached_property
    def reached(self) -> list[Threads]:
        """The threads that may reach each instruction."""
        reached = [np.zeros(self.threads, dtype=bool) for _ in self.instructions]
        self.__dict__["reached"] = reached  # used by _edges
        reached[0][:] = True
        queue = [0]
        while queue:
            for following, threads in list(self._edges(queue.pop())):
                if (threads & ~reached[following]).any():
                    reached[following] |= threads
                    queue.append(following)
        return reached

    def executing(self, place: int) -> Threads:
        """Return the threads that may execute an instruction."""
        return self._split(self.instructions[place], self.reached[place])[0]

    def addresses(self, place: int, which: int = 0) -> Values | None:
        """Return the addresses in an operand of an instruction, of all threads that execute it.

        `which` counts the operands in brackets. Returns None if the addresses are unknown.
        """
        register, _, offset = self.instructions[place].addresses[which].partition("+")
        value = self.value(register.strip())
        return None if value is None else value[self.executing(place)] + int(offset or 0)

    def value(self, operand: str) -> Values | None:
        """Return an operand's value in each thread, or None if it is unknown."""
        if operand not in self._known:
            self._known[operand] = None  # while it is evaluated: a loop is unknown
            self._known[operand] = self._evaluate(operand)
        return self._known[operand]

    @cached_property
    def _known(self) -> dict[str, Values | None]:
        return {"%tid.x": np.arange(self.threads), "%tid.y": np.zeros(self.threads, dtype=np.int64)}

    @cached_property
    def _definitions(self) -> dict[str, list[Instruction]]:
        found: dict[str, list[Instruction]] = {}
        for instruction in self.instructions:
            if not instruction.operands or _WITHOUT_RESULT.match(instruction.opcode):
                continue
            for name in _NAME.findall(instruction.operands[0]):
                found.setdefault(name, []).append(instruction)
        return found

    def _evaluate(self, operand: str) -> Values | None:
        if re.fullmatch(r"-?(0x[0-9A-Fa-f]+|\d+)U?", operand):
            return np.full(self.threads, int(operand.rstrip("U"), 0))
        if operand in self.shared:
            return np.full(self.threads, self.shared[operand])
        definitions = self._definitions.get(operand, [])
        if len(definitions) != 1 or definitions[0].guard is not None:
            return None
        return self._result(definitions[0])

    def _result(self, instruction: Instruction) -> Values | None:
        name, *modifiers = instruction.opcode.split(".")
        compute = _OPERATIONS.get(name)
        values = [self.value(operand) for operand in instruction.operands[1:]]
        known = [value for value in values if value is not None]
        if compute is None or len(known) < len(values) or not _UNSUPPORTED.isdisjoint(modifiers):
            return None
        sign, bits = (
            ("b", 1) if modifiers[-1] == "pred" else (modifiers[-1][0], int(modifiers[-1][1:]))
        )
        result = compute(modifiers, *(_wrapped(value, sign, bits) for value in known))
        is_whole = "wide" in modifiers or name in ("setp", "cvt")
        return result if is_whole else _wrapped(result, sign, bits)


def _wrapped(values: Values, sign: str, bits: int) -> Values:
    """Return the values of the lower bits. 64-bit values are treated as signed."""
    if bits >= 64:
        return values
    lower = values & ((1 << bits) - 1)
    return np.where(lower >> (bits - 1), lower - (1 << bits), lower) if sign == "s" else lower


Operation = Callable[..., Values]


def _of_all(compute: Callable[..., Any]) -> Operation:
    return lambda _, *values: compute(*values)


def _compared(modifiers: list[str], left: Values, right: Values) -> Values:
    names = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
    compare = getattr(operator, names.get(modifiers[0], modifiers[0]))
    return np.asarray(compare(left, right)).astype(np.int64)


def _divided(_: list[str], left: Values, right: Values) -> Values:
    safe = np.where(right == 0, 1, right)
    return np.sign(left) * np.sign(safe) * (abs(left) // abs(safe))


def _converted(modifiers: list[str], value: Values) -> Values:
    target = modifiers[-2]
    return _wrapped(value, target[0], int(target[1:]))


def _inserted(_: list[str], value: Values, into: Values, at: Values, size: Values) -> Values:
    mask = (1 << size) - 1
    return into & ~(mask << at) | (value & mask) << at


def _of_lane(_: list[str], value: Values, lane: Values, *__: Values) -> Values:
    threads = np.arange(len(value))
    source: Values = value[np.minimum(threads // 32 * 32 + lane % 32, threads[-1])]
    return source


_UNSUPPORTED = {"hi", "up", "down", "bfly", "f16", "f32", "f64", "sat"}

_OPERATIONS: dict[str, Operation] = {
    "mov": _of_all(lambda a: a),
    "cvta": _of_all(lambda a: a),
    "cvt": _converted,
    "add": _of_all(operator.add),
    "sub": _of_all(operator.sub),
    "mul": _of_all(operator.mul),
    "mad": _of_all(lambda a, b, c: a * b + c),
    "neg": _of_all(operator.neg),
    "not": _of_all(operator.invert),
    "and": _of_all(operator.and_),
    "or": _of_all(operator.or_),
    "xor": _of_all(operator.xor),
    "shl": _of_all(lambda a, b: np.where(b < 64, a << np.minimum(b, 63), 0)),
    "shr": _of_all(lambda a, b: a >> np.minimum(b, 63)),
    "bfi": _inserted,
    "min": _of_all(np.minimum),
    "max": _of_all(np.maximum),
    "div": _divided,
    "rem": lambda _, a, b: a - _divided(_, a, b) * b,
    "setp": _compared,
    "shfl": _of_lane,
    "selp": _of_all(lambda a, b, p: np.where(p != 0, a, b)),
}


def parse(text: str, shared: dict[str, int]) -> Program:
    """Return the program of one kernel, from `.entry` on.

    `shared` contains the assumed addresses of the arrays in shared memory.

    Raises: ValueError for control flow that is not followed: calls and indirect branches.
    """
    bounds = re.search(r"^\.maxntid (\d+), 1, 1", text, flags=re.MULTILINE)
    if bounds is None:
        raise ValueError("the kernel has no launch bounds along x alone")
    program = Program(int(bounds[1]), shared=shared)
    text = re.sub(r"//[^\n]*", "", text)
    labels: dict[tuple[int, str], int] = {}
    branches: list[tuple[int, str, tuple[int, ...]]] = []
    scopes, renamed = [0], [dict[str, str]()]
    position, blocks = text.index("{", bounds.end()) + 1, 0
    line, counted = 1, 0
    while position < len(text) and scopes:
        found = _STATEMENT.match(text, position)
        if found is None:
            break
        position = found.end()
        if found["brace"] == "{":
            blocks += 1
            scopes.append(blocks)
            renamed.append({})
        elif found["brace"] == "}":
            scopes.pop()
            renamed.pop()
        elif found["label"]:
            labels[scopes[-1], found["label"]] = len(program.instructions)
        elif found["statement"]:
            statement = found["statement"].strip()
            if statement.startswith(".reg"):
                if len(scopes) > 1:
                    names = _NAME.findall(statement.split(None, 2)[2])
                    renamed[-1].update({name: f"{name}.{scopes[-1]}" for name in names})
            elif not statement.startswith("."):
                line += text.count("\n", counted, found.start("statement"))
                counted = found.start("statement")
                place = len(program.instructions)
                instruction = _instruction(statement, line, renamed)
                kind = instruction.opcode.partition(".")[0]
                if kind in ("call", "brx"):
                    raise ValueError(f"{instruction} is not followed")
                program.instructions.append(instruction)
                if kind == "bra":
                    branches.append((place, instruction.operands[0], tuple(scopes)))
    for place, label, inside in branches:
        scope = next(scope for scope in reversed(inside) if (scope, label) in labels)
        program.targets[place] = labels[scope, label]
    return program


def _instruction(statement: str, line: int, renamed: list[dict[str, str]]) -> Instruction:
    found = _INSTRUCTION.match(statement)
    if found is None:
        raise ValueError(f"{statement!r} is not an instruction")
    names = {name: new for scope in renamed for name, new in scope.items()}

    def rename(operands: str) -> str:
        return _NAME.sub(lambda name: names.get(name[0], name[0]), operands)

    return Instruction(
        found["opcode"],
        tuple(operand.strip() for operand in _OPERAND.findall(rename(found["rest"]))),
        line,
        names.get(found["guard"], found["guard"]),
        bool(found["not"]),
    )
