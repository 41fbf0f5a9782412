"""Ctrl-C and SIGTERM end a run after the current step, with its state saved."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """A request to stop: the number of the signal, 0 if there was none."""

    number: int = 0

    def __bool__(self) -> bool:
        return self.number != 0


@contextmanager
def listening_for_stop(processes: int = 1) -> Iterator[StopRequest]:
    """Make SIGINT and SIGTERM only set the request; a second SIGINT ends a single process at once.

    Several processes ignore it, because each may get the terminal's signal and then its launcher's
    while it is about to save.
    """
    request = StopRequest()

    def request_stop(number: int, frame: FrameType | None) -> None:
        request.number = request.number or number
        if number == signal.SIGINT and processes == 1:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    former = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            former[number] = signal.signal(number, request_stop)
    except ValueError:  # not the main thread, which cannot set handlers
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
