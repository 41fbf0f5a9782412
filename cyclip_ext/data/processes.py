"""Work spread over processes, results in order, with no way to hang.

Not torch's DataLoader and not concurrent.futures: a worker that is killed (by the kernel, when
memory runs out) must end the run with a message, Ctrl-C must reach the main process alone, and
workers must not outlive it.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2  # items given to a worker at a time: one in work, one waiting

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class WorkerDied(RuntimeError):
    """A worker process ended without an answer; the message says how, and what to try."""


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """function(item) for each item, in order, computed in `workers` processes; 0: in this one.

    Item k goes to worker k modulo workers, AHEAD of them at a time: when result k is handed out,
    item k + AHEAD * workers has been given away, and no later one. Items must be small (they are
    sent while the worker may be busy sending). Workers see function as it is now and are ended when
    the iterator is closed or exhausted. Uses multiprocessing's start method; function must be
    picklable for any but fork.

    Raises WorkerDied where a worker was killed, RuntimeError with the worker's traceback where
    function raised.
    """
    if workers == 0:
        yield from map(function, items)
        return
    pool = _Pool(function, workers)
    remaining = iter(items)
    pending: deque[int] = deque()  # the worker of each item under way
    given = 0

    def give() -> None:
        nonlocal given
        for item in remaining:
            pool.send(given % workers, item)
            pending.append(given % workers)
            given += 1
            return

    try:
        for _ in range(AHEAD * workers):
            give()
        while pending:
            result: Result = pool.receive(pending.popleft())
            give()
            yield result
    finally:
        pool.close()


class _Pool:
    """Worker processes with a pipe to each."""

    def __init__(self, function: Callable[[Item], Result], workers: int) -> None:
        context = multiprocessing.get_context()
        self.processes: list[BaseProcess] = []
        self.pipes: list[Connection] = []
        # At exit, multiprocessing would send SIGTERM, which workers ignore, and wait for them.
        # What is registered later runs earlier.
        atexit.register(self.close)
        # A worker starts with these signals blocked: none can strike before it ignores them.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            for number in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_serve, args=(function, theirs), name=f"data-{number}", daemon=True
                )
                process.start()
                theirs.close()
                self.processes.append(process)
                self.pipes.append(ours)
        except BaseException:
            self.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def send(self, number: int, item: object) -> None:
        try:
            self.pipes[number].send(item)
        except OSError:
            raise self._death(number) from None

    def receive(self, number: int) -> Any:
        wait([self.pipes[number], self.processes[number].sentinel])
        # Where both are ready, an answer sent before the end still counts.
        if not self.pipes[number].poll():
            raise self._death(number)
        try:
            fine, result = self.pipes[number].recv()
        except (EOFError, OSError):
            raise self._death(number) from None
        if not fine:
            raise RuntimeError(f"a worker process of the data loader failed:\n{result}")
        return result

    def _death(self, number: int) -> WorkerDied:
        process = self.processes[number]
        process.join(timeout=1)
        code = process.exitcode
        how = f"exit status {code}"
        if code is not None and code < 0:
            how = f"killed by {signal.Signals(-code).name}"
        advice = (
            "; if memory ran out, use fewer workers or smaller batches"
            if code == -signal.SIGKILL
            else ""
        )
        return WorkerDied(f"worker process {process.pid} of the data loader died: {how}{advice}")

    def close(self) -> None:
        """End the workers. They only read: there is nothing to wait for."""
        atexit.unregister(self.close)
        for process in self.processes:
            process.kill()
        for process, pipe in zip(self.processes, self.pipes, strict=False):
            process.join(timeout=5)
            pipe.close()


def _serve(function: Callable[[Item], Result], pipe: Connection) -> None:
    """What a worker does until it is killed or its parent is gone."""
    for number in _SIGNALS:  # Ctrl-C and a scheduler's signal go to the whole process group
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    warnings.filterwarnings("ignore", module="PIL")  # of damaged files, which are counted
    parent = multiprocessing.parent_process()
    assert parent is not None
    while True:
        if pipe not in wait([pipe, parent.sentinel]):
            return
        try:
            item = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer: tuple[bool, object] = (True, function(item))
        except Exception:
            answer = (False, traceback.format_exc())
        try:
            pipe.send(answer)
        except OSError:
            return
