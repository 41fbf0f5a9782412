"""Work in several processes by torch's DataLoader, with results in order and without hangs.

The DataLoader alone does not promise three things that training needs: Ctrl-C and a scheduler's
SIGTERM, which go to the whole process group, reach the main process alone; workers do not outlive
it, even if it is killed; a worker that was killed raises one error that names the cause.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader, Dataset

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2  # items that a worker has at a time: one being computed, one waiting

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class WorkerDied(RuntimeError):
    """A worker process that ended without an answer; the message has the cause and a remedy."""


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers(Generic[Item, Result]):
    """Processes that compute function(item) for the items of one `map` after another.

    count: number of processes; 0 computes in this one. The function must be picklable unless
    multiprocessing's start method is fork. Processes start at the first `map` and end with `close`,
    with the object, or with the program.
    """

    def __init__(
        self, function: Callable[[Item], Result], count: int, *, pin_memory: bool = False
    ) -> None:
        self.function = function
        self.count = count
        self._items = _Items()
        self._iterator: Any = None
        self._processes: list[BaseProcess] = []
        if count:
            self._loader = DataLoader(
                _Function(function),
                batch_size=None,  # an item is a whole batch
                sampler=self._items,
                num_workers=count,
                collate_fn=_unchanged,
                prefetch_factor=AHEAD,
                persistent_workers=True,
                pin_memory=pin_memory,
                worker_init_fn=_start_worker,
                generator=torch.Generator(),  # the global one must not depend on the data
            )
            _open.add(self)

    def map(self, items: Iterable[Item]) -> Iterator[Result]:
        """Yield function(item) for each item, in order, computed AHEAD * count items ahead.

        Ends the results of an earlier call, which must not be used any more.

        Raises WorkerDied if a worker was killed, and the function's error with its traceback.
        """
        if not self.count:
            yield from map(self.function, items)
            return
        self._items.current = items
        try:
            self._start()  # raises if a worker died since the last item
            while self._items.current is items:
                try:
                    result = next(self._iterator)
                except StopIteration:
                    return
                yield result
        except RuntimeError as error:
            raise self._death() or error from None
        raise RuntimeError(
            "the workers got other items before these results were read; use the latest iterator"
        )

    def _start(self) -> None:
        before = set(multiprocessing.active_children())
        handler = signal.getsignal(signal.SIGCHLD)
        # A worker starts with these signals blocked, so that none arrives before it ignores them.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._iterator = iter(self._loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            self._processes += set(multiprocessing.active_children()) - before
            # The DataLoader's own handler would raise anywhere, such as in the middle of a step.
            if handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, handler)

    def _death(self) -> WorkerDied | None:
        for process in self._processes:
            process.join(timeout=0)
            code = process.exitcode
            if code is not None:
                how = f"exit status {code}"
                if code < 0:
                    how = f"killed by {signal.Signals(-code).name}"
                advice = {
                    -signal.SIGKILL: "; if memory ran out, use fewer workers or smaller batches",
                    -signal.SIGBUS: "; if /dev/shm is full, enlarge it (docker run --shm-size) or "
                    "use fewer workers or smaller batches",
                }.get(code, "")
                return WorkerDied(
                    f"worker process {process.pid} of the data loader died: {how}{advice}"
                )
        return None

    def close(self) -> None:
        """End the processes, at the latest a few seconds after the items they are computing."""
        _open.discard(self)
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()  # public: none yet for closing persistent workers
        for process in self._processes:  # those that are stuck; they ignore SIGTERM
            process.kill()
            process.join(timeout=5)
        self._processes.clear()

    __del__ = close


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """Yield function(item) for each item, in order, computed by Workers that end with it."""
    pool = Workers(function, workers)
    try:
        yield from pool.map(items)
    finally:
        pool.close()


class _Items:
    """The items of the current `map`, as a sampler."""

    current: Iterable[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.current)


class _Function(Dataset[Any]):
    """A function as a dataset, whose indices are the items."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __getitem__(self, item: Any) -> Any:
        return self.function(item)


def _unchanged(result: Any) -> Any:
    return result


def _start_worker(number: int) -> None:
    for name in _SIGNALS:
        signal.signal(name, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    warnings.filterwarnings("ignore", module="PIL")  # about damaged files, which are counted
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


_open: WeakSet[Workers[Any, Any]] = WeakSet()
_inherited: list[Any] = []


# At exit multiprocessing would send SIGTERM, which workers ignore, and wait for them. Its hook was
# registered when it was imported; hooks that are registered later run earlier.
@atexit.register
def _close_all() -> None:
    for workers in list(_open):
        workers.close()


def _disown_all() -> None:
    """Keep a forked process from ending its parent's workers when its copies are collected."""
    for workers in list(_open):
        _inherited.append(workers._iterator)
        workers._iterator = None
        workers._processes.clear()
    _open.clear()


os.register_at_fork(after_in_child=_disown_all)
