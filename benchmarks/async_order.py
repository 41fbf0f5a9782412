"""Checks the order of memory accesses in the PTX of kernels for compute capability 9.0a.

wgmma and bulk copies access shared memory asynchronously, through another proxy than the other
instructions. The checks follow all paths that a thread may take. They may therefore report a
correct kernel, but none passes with

    - a load or store of memory that asynchronous instructions use, without fence.proxy.async before
      such an instruction, or before an arrival at a barrier that hands the memory to other threads
    - an mbarrier that is used without fence.mbarrier_init after its initialization
    - wgmma without a wgmma.fence of its group after the last access to accumulators, wgmma without
      commit_group, or accumulators that are accessed before wait_group

Shared memory below the first mbarrier is taken to belong to asynchronous instructions, as is all
memory from the lowest known address above it that they use. Addresses of operands that change from
stage to stage are unknown, and taken to be below the first mbarrier. Source: PTX ISA 9.1, "Async
proxy" and "Asynchronous Warpgroup Level Matrix Instructions".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .ptx import SHARED_BASE, Instruction, Program, Values, parse

# Without a state space, the memory may be shared.
_STORE = re.compile(r"(st|atom|red|stmatrix)\.(?!.*\b(global|local|param)\b)")
_LOAD = re.compile(r"(ld|ldmatrix)\.(?!.*\b(global|local|param|const)\b)")
_COPY = re.compile(r"cp\.(reduce\.)?async\.bulk\.(tensor|shared|global)")
_COPY_TO_SHARED = re.compile(r"cp\.async\.bulk\.(tensor\.\dd\.)?shared")
_INIT = re.compile(r"mbarrier\.init")
_MULTIPLY = re.compile(r"wgmma\.mma_async")
_SYNC = re.compile(r"(bar|barrier(\.cta)?)\.(sync|red)")
_ARRIVE = re.compile(r"mbarrier\.arrive|(bar|barrier(\.cta)?)\.arrive")
_WAIT = re.compile(r"mbarrier\.(try|test)_wait")
_PROXY_FENCE = re.compile(r"fence\.proxy\.async(?!\.global)")
_INIT_FENCE = re.compile(r"fence\.mbarrier_init|fence\.proxy\.async(?!\.global)")

_NOWHERE = 1 << 40  # above all addresses
_MOST_PENDING = 7  # groups, after a wait_group


def findings(text: str, shared: Iterable[str] = ()) -> list[str]:
    """Return descriptions of the problems of a kernel, from `.entry` on.

    `shared` contains the names of the arrays in shared memory.
    """
    try:
        program = parse(text, dict.fromkeys(shared, SHARED_BASE))
    except ValueError as error:
        return [str(error)]
    checks = _Checks(program)
    return [*checks.initializations(), *checks.proxies(), *checks.products()]


@dataclass(frozen=True)
class _Products:
    """The state of a warpgroup's products before an instruction, over all paths to it."""

    is_fenced: bool = False
    is_open: bool = False  # products without commit_group
    pending: int = 0  # groups

    def joined(self, other: _Products) -> _Products:
        return _Products(
            self.is_fenced and other.is_fenced,
            self.is_open or other.is_open,
            max(self.pending, other.pending),
        )


class _Checks:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.places = [i for i, threads in enumerate(program.reached) if threads.any()]
        initialized = [program.addresses(place) for place in self._all(_INIT)]
        self.first_barrier = min(
            (int(values.min()) for values in initialized if values is not None and values.size),
            default=_NOWHERE,
        )
        above = [start for start in self._starts() if start >= self.first_barrier]
        self.further = min(above, default=_NOWHERE)

    def _all(self, opcode: re.Pattern[str]) -> list[int]:
        instructions = self.program.instructions
        return [place for place in self.places if opcode.match(instructions[place].opcode)]

    def _starts(self) -> Iterator[int]:
        """Yield the known addresses of operands of asynchronous instructions."""
        for place in self._all(_COPY):
            is_target = _COPY_TO_SHARED.match(self.program.instructions[place].opcode)
            addresses = self.program.addresses(place, 0 if is_target else 1)
            yield from () if addresses is None else addresses.tolist()
        for place in self._all(_MULTIPLY):
            for operand in self.program.instructions[place].operands[1:3]:
                descriptors = self.program.value(operand)
                if descriptors is not None:
                    addresses = (descriptors & 0x3FFF) << 4
                    yield from addresses[self.program.executing(place)].tolist()

    def _is_asynchronous(self, addresses: Values | None) -> bool:
        """Return whether asynchronous instructions may access these addresses."""
        if addresses is None:
            return True
        return bool(((addresses < self.first_barrier) | (addresses >= self.further)).any())

    # ------------------------------------------------------------ mbarriers and proxies

    def initializations(self) -> Iterator[str]:
        """Yield the mbarriers that are used without a fence after their initialization."""
        for place in self._all(_INIT):
            for user in self._following(place, _INIT_FENCE):
                opcode = user.opcode
                if any(used.match(opcode) for used in (_SYNC, _ARRIVE, _WAIT, _COPY)):
                    name = self.program.instructions[place]
                    yield f"{name} reaches {user} without fence.mbarrier_init"
                    break

    def proxies(self) -> Iterator[str]:
        """Yield the accesses that reach an asynchronous one without a fence."""
        for place in self.places:
            access = self.program.instructions[place]
            is_store = _STORE.match(access.opcode) is not None
            if not is_store and not _LOAD.match(access.opcode):
                continue
            if not self._is_asynchronous(self.program.addresses(place)):
                continue
            for user in self._following(place, _PROXY_FENCE):
                uses = (_MULTIPLY, _COPY, _ARRIVE) if is_store else (_COPY_TO_SHARED, _ARRIVE)
                if any(used.match(user.opcode) for used in uses):
                    yield f"{access} reaches {user} without fence.proxy.async"
                    break

    def _following(self, place: int, fence: re.Pattern[str]) -> Iterator[Instruction]:
        """Yield the instructions that follow one without a fence in between.

        Threads that continue at the same barrier execute the same code. If they may continue at
        another instruction, their fences do not count.
        """
        instructions = self.program.instructions
        seen = {(place, True)}
        queue = [(place, True)]  # with whether the thread is still the same
        while queue:
            at, is_same = queue.pop()
            following = [(i, is_same) for i in self.program.successors(at)]
            if at != place and _SYNC.match(instructions[at].opcode):
                following += [
                    (i, False)
                    for other in self._partners(at)
                    for i in self.program.successors(other)
                ]
            for step in following:
                if step in seen:
                    continue
                seen.add(step)
                instruction = instructions[step[0]]
                if step[1] and instruction.guard is None and fence.match(instruction.opcode):
                    continue
                yield instruction
                queue.append(step)

    def _partners(self, place: int) -> Iterator[int]:
        """Yield the instructions at which other threads may wait for the same barrier."""
        own, threads = self._numbers(place), self.program.executing(place)
        for other in self._all(_SYNC):
            if (self.program.executing(other) & ~threads).any():
                numbers = self._numbers(other)
                if own is None or numbers is None or own & numbers:
                    yield other

    def _numbers(self, place: int) -> set[int] | None:
        instruction = self.program.instructions[place]
        number = instruction.operands[1 if ".red" in instruction.opcode else 0]
        values = self.program.value(number)
        return None if values is None else set(values[self.program.executing(place)].tolist())

    # ------------------------------------------------------------ wgmma

    def products(self) -> Iterator[str]:
        """Yield the products without a fence, commit or wait."""
        instructions = self.program.instructions
        accumulators = frozenset[str]().union(
            *(
                re.findall(r"%\w+", instructions[place].operands[0])
                for place in self._all(_MULTIPLY)
            )
        )
        if not accumulators:
            return
        before = {0: _Products()}
        queue = [0]
        while queue:
            place = queue.pop()
            state = self._after(place, before[place], accumulators)
            for following in self.program.successors(place):
                known = before.get(following)
                joined = state if known is None else known.joined(state)
                if joined != known:
                    before[following] = joined
                    queue.append(following)
        for place in self.places:
            instruction, state = instructions[place], before[place]
            opcode = instruction.opcode
            ends = opcode in ("ret", "exit")
            if _MULTIPLY.match(opcode) and not state.is_fenced:
                yield f"{instruction} has no wgmma.fence"
            elif opcode.startswith("wgmma.commit_group") and state.pending == _MOST_PENDING:
                yield f"{instruction} leaves more than {_MOST_PENDING} groups without wait_group"
            elif opcode.startswith("wgmma.wait_group") and state.is_open:
                yield f"{instruction} waits for products without commit_group"
            elif ends and (state.is_open or state.pending):
                yield f"{instruction} ends the thread before its products are complete"
            elif (
                not _MULTIPLY.match(opcode)
                and (state.is_open or state.pending)
                and instruction.names & accumulators
            ):
                yield f"{instruction} uses the accumulators of products that are not complete"

    def _after(self, place: int, state: _Products, accumulators: frozenset[str]) -> _Products:
        instruction = self.program.instructions[place]
        opcode = instruction.opcode
        if opcode.startswith("wgmma.fence"):
            return _Products(True, state.is_open, state.pending)
        if _MULTIPLY.match(opcode):
            return _Products(state.is_fenced, True, state.pending)
        if opcode.startswith("wgmma.commit_group"):
            return _Products(False, False, min(state.pending + 1, _MOST_PENDING))
        if opcode.startswith("wgmma.wait_group"):
            most = int(instruction.operands[0])
            return _Products(state.is_fenced, state.is_open, min(state.pending, most))
        if instruction.names & accumulators:
            return _Products(False, state.is_open, state.pending)
        return state
