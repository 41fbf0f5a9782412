"""Counts the instructions that a kernel spends on a tile after its product, from the disassembly.

The count is the length of the shortest path from the end of the product's loop to the next tile, or
to the end of the kernel. A thread with nothing to write takes this path for a tile inside the
matrix and off its diagonal. With wgmma the path leads from the last product of a tile to the first
one of the next, and evaluates an exponential, or stores in kernels without any: a consumer without
rows skips the rest.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush

_LABEL = re.compile(r"^(\.L_x_\d+):")
_INSTRUCTION = re.compile(
    r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?P<predicate>@!?U?P\w+\s+)?(?P<opcode>[A-Z][\w.]*)(?P<operands>[^;]*);"
)
_PRODUCT, _EXPONENTIAL, _STORE = re.compile("HGMMA"), re.compile(r"MUFU\.EX2"), re.compile("STG")
_COPY, _ARITHMETIC = re.compile("LDGSTS"), re.compile("HMMA|DMMA|FFMA")


@dataclass
class Program:
    """Instructions and, for each of them, the possible successors."""

    opcodes: list[str] = field(default_factory=list)
    successors: list[list[int]] = field(default_factory=list)

    def loops(self) -> list[tuple[int, int]]:
        """Return the first and the last instruction of each loop, inner loops first."""
        found = [
            (target, place)
            for place, targets in enumerate(self.successors)
            for target in targets
            if target <= place
        ]
        return sorted(found, key=lambda loop: loop[1] - loop[0])

    def places(self, opcode: re.Pattern[str]) -> list[int]:
        """Return the instructions whose name begins like this."""
        return [place for place, name in enumerate(self.opcodes) if opcode.match(name)]

    def holds(self, loop: tuple[int, int], opcode: re.Pattern[str]) -> bool:
        """Return whether a loop contains an instruction whose name begins like this."""
        return any(opcode.match(name) for name in self.opcodes[loop[0] : loop[1] + 1])


def parse(disassembly: str) -> Program:
    """Return the control flow of one kernel as printed by `nvdisasm -c`."""
    program, labels = Program(), dict[str, int]()
    lines: list[re.Match[str]] = []
    for text in disassembly.splitlines():
        if label := _LABEL.match(text):
            labels[label[1]] = len(lines)
        elif instruction := _INSTRUCTION.match(text):
            lines.append(instruction)
    rejoins: dict[str, int] = {}  # barrier register of a BSSY: where its threads reconverge
    for place, line in enumerate(lines):
        operands = line["operands"]
        named = re.search(r"\.L_x_\d+", operands)
        target = labels.get(named[0]) if named else None
        kind = line["opcode"].partition(".")[0]
        is_conditional = bool(line["predicate"]) or re.search(r"U?P\d", operands.split("`")[0])
        following = [place + 1]
        if kind == "BSSY" and target is not None:
            rejoins[operands.split(",")[0].strip()] = target
        elif kind == "BSYNC":
            following = [rejoins.get(operands.strip(), place + 1)]
        elif kind == "BRA" and target is not None:
            following = [target, place + 1] if is_conditional else [target]
        elif kind in ("EXIT", "RET"):
            following = [place + 1] if line["predicate"] else []
        program.opcodes.append(line["opcode"])
        program.successors.append([next_ for next_ in following if next_ < len(lines)])
    return program


def epilogue_instructions(disassembly: str) -> int | None:
    """Return the length of the path after the product, or None without a product in a loop."""
    program = parse(disassembly)
    if program.places(_PRODUCT):
        return _between_products(program)
    loops = program.loops()
    product = next(
        (loop for loop in loops if program.holds(loop, _COPY) and program.holds(loop, _ARITHMETIC)),
        None,
    )
    if product is None:
        return None
    begin, end = product
    around = next((loop for loop in loops if loop[0] < begin and loop[1] > end), None)
    return _shortest(program, end + 1, around[1] if around else None, product)


def _shortest(
    program: Program, start: int, goal: int | None, avoided: tuple[int, int]
) -> int | None:
    """Return the number of instructions from `start` to `goal` or an exit, if there is a path."""
    queue, seen = [(1, start)], {start}
    while queue:
        count, place = heappop(queue)
        if place == goal or (goal is None and program.opcodes[place].startswith("EXIT")):
            return count
        for following in program.successors[place]:
            if following not in seen and not avoided[0] <= following <= avoided[1]:
                seen.add(following)
                heappush(queue, (count + 1, following))
    return None


def _between_products(program: Program) -> int | None:
    """Return the number of instructions between the products of two tiles by wgmma."""
    products = program.places(_PRODUCT)
    inner = next((loop for loop in program.loops() if program.holds(loop, _PRODUCT)), None)
    if inner is None:
        return None
    predecessors: list[list[int]] = [[] for _ in program.opcodes]
    for place, following in enumerate(program.successors):
        for next_ in following:
            predecessors[next_].append(place)
    last = max(place for place in products if place <= inner[1])
    after = _distances(program.successors, last)
    before = _distances(predecessors, products[0])
    work = program.places(_EXPONENTIAL) or program.places(_STORE)
    return min((after[p] + before[p] for p in work if p in after and p in before), default=None)


def _distances(following: list[list[int]], start: int) -> dict[int, int]:
    """Return the length of the shortest path to each instruction that is reached."""
    found, queue = {start: 0}, deque([start])
    while queue:
        place = queue.popleft()
        for next_ in following[place]:
            if next_ not in found:
                found[next_] = found[place] + 1
                queue.append(next_)
    return found
