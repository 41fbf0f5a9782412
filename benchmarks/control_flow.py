"""Counts the instructions that a kernel spends on a tile after its product, from the disassembly.

The count is that of the shortest way from the end of the product's loop to the next tile, or to the
end of the kernel: the way of a tile inside the matrix and off its diagonal, in a thread that has
nothing to write.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from heapq import heappop, heappush

_LABEL = re.compile(r"^(\.L_x_\d+):")
_INSTRUCTION = re.compile(
    r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?P<predicate>@!?U?P\w+\s+)?(?P<opcode>[A-Z][\w.]*)(?P<operands>[^;]*);"
)
_COPY, _ARITHMETIC = re.compile("LDGSTS"), re.compile("HMMA|DMMA|FFMA")


@dataclass
class Program:
    """Instructions and, for each, its possible successors."""

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
    rejoins: dict[str, int] = {}  # barrier register of a BSSY: where its threads meet again
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
    """Return the length of the shortest way after the product's loop; None without such a loop."""
    program = parse(disassembly)
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
    """Return the number of instructions from `start` to `goal` or to an exit, if there is a way."""
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
