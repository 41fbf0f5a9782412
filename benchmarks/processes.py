"""Work in a process of its own, which has imported everything and done nothing yet."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

# A server imports once and is forked before any thread starts. Not on Windows.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["benchmarks.loss", "torch._dynamo"])


def in_fresh_process(
    work: Callable[P, Iterator[T]], *arguments: P.args, **options: P.kwargs
) -> Iterator[T]:
    """What `work` (a function of a module) yields there, as it comes.

    Raises: ChildProcessError where the process ends before the work does.
    """
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_send, args=(sender, work, arguments, options))
    process.start()
    sender.close()
    try:
        while True:
            try:
                yield receiver.recv()
            except EOFError:
                break
    finally:
        receiver.close()  # a child that still has something to say ends by it
        process.join()
    if process.exitcode:
        raise ChildProcessError(f"its process ended with status {process.exitcode}")


def _send(
    sender: Connection,
    work: Callable[..., Iterator[T]],
    arguments: tuple[Any, ...],
    options: dict[str, Any],
) -> None:
    with suppress(BrokenPipeError):  # nobody listens any more
        for item in work(*arguments, **options):
            sender.send(item)
