"""Output of the command lines: numbers with their nouns, and a reader that is gone."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


def counted(count: int, noun: str) -> str:
    """Return the number with its noun, whose plural ends in s: "1 row", "3,000 rows"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


@contextmanager
def quiet_if_output_closes() -> Iterator[None]:
    """Exit with status 1 and no message if the reader of the standard output or error is gone.

    A BrokenPipeError of another pipe, such as that of a worker process, passes through.
    """
    try:
        try:
            yield
        except SystemExit:  # of --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _is_closed(stream)]
        if not closed:
            raise
        for stream in closed:  # Python flushes them once more at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise SystemExit(1) from None


def _is_closed(stream: TextIO) -> bool:
    """Return whether the reader of the stream is gone."""
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
