"""Workers: results in order; however a process ends, an error instead of a hang."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cyclip_ext.data.workers import AHEAD, WorkerDied, Workers, ordered_map


def slow_square(x: int) -> int:
    time.sleep(0.02 * (x % 3 == 0))
    return x * x


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_order(workers: int) -> None:
    assert list(ordered_map(slow_square, range(20), workers)) == [x * x for x in range(20)]
    assert list(ordered_map(slow_square, [], workers)) == []


def test_no_more_is_given_out_than_stated() -> None:
    """The loader has one slot of shared memory for each item in progress."""
    given: list[int] = []

    def items() -> Iterator[int]:
        for i in range(30):
            given.append(i)
            yield i

    for count, _ in enumerate(ordered_map(slow_square, items(), 2)):
        assert len(given) <= count + 1 + AHEAD * 2


def kill_at_5(x: int) -> int:
    if x == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def test_a_killed_worker_is_an_error_not_a_hang() -> None:
    results = ordered_map(kill_at_5, range(100), 2)
    with pytest.raises(WorkerDied, match=r"killed by SIGKILL; if memory ran out, use fewer"):
        list(results)


def test_a_worker_killed_between_results_is_an_error_of_the_next_one() -> None:
    """The main process must not fail at an unrelated step, such as writing a checkpoint."""
    pool = Workers(pid, 1)
    results = pool.map(range(100))
    os.kill(next(results), signal.SIGKILL)
    for _ in range(20):
        time.sleep(0.01)
    with pytest.raises(WorkerDied, match="killed by SIGKILL"):
        list(results)


def test_a_worker_killed_between_epochs_is_an_error_of_the_next_one() -> None:
    pool = Workers(pid, 1)
    (number,) = set(pool.map(range(3)))
    os.kill(number, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="killed by SIGKILL"):
        list(pool.map(range(3)))


def fail_at_5(x: int) -> int:
    if x == 5:
        raise KeyError("the culprit")
    return x


def test_an_error_in_a_worker_shows_its_traceback() -> None:
    with pytest.raises(KeyError, match=r"(?s)in fail_at_5.*the culprit"):
        list(ordered_map(fail_at_5, range(100), 2))


def pid(x: int) -> int:
    return os.getpid()


def gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{process}/stat").read_text().split()[2] == "Z"


def test_workers_end_with_the_iterator() -> None:
    results = ordered_map(pid, range(100), 2)
    workers = {next(results), next(results)}
    assert len(workers) == 2
    results.close()  # type: ignore[attr-defined]
    assert all(map(gone, workers))


def test_a_forked_process_does_not_end_the_workers_of_its_parent(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Workers that are forked later hold copies of the objects that own the first ones."""
    first, second = Workers(pid, 1), Workers(pid, 1)
    results, others = first.map(range(20)), second.map(range(10))
    next(results), next(others)
    child = os.fork()
    if child == 0:
        del results, others, first, second
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    assert len(list(results)) == 19
    assert len(list(others)) == 9
    del first, second
    assert capfd.readouterr().err == ""


PROGRAM = """
import os, signal, sys, time
from cyclip_ext.data.workers import ordered_map

def pid(x):
    time.sleep(0.05)
    return os.getpid()

results = ordered_map(pid, range(10**6), 2)
print(next(results), next(results), flush=True)
"""


def run(rest: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + rest],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, as a shell or a scheduler makes
    )


def wait_until_gone(workers: list[int]) -> None:
    for _ in range(100):
        if all(map(gone, workers)):
            return
        time.sleep(0.1)
    raise AssertionError("workers outlive the main process")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_group_reaches_the_main_process_alone(number: signal.Signals) -> None:
    """Workers that die of Ctrl-C print tracebacks, and the run cannot finish its step."""
    program = run(
        f"""
caught = []
signal.signal({int(number)}, lambda *_: caught.append(1))
print("ready", flush=True)
while not caught:
    next(results)
for _ in range(10):  # on as before: all that was given out, and more
    next(results)
results.close()
"""
    )
    assert program.stdout is not None
    workers = [int(part) for part in program.stdout.readline().split()]
    assert program.stdout.readline() == "ready\n"
    os.killpg(program.pid, number)
    _, errors = program.communicate(timeout=60)
    assert program.returncode == 0, errors
    assert errors == ""
    wait_until_gone(workers)


@pytest.mark.parametrize(
    "end", ["pass", "raise ValueError(next(results))", "os.kill(os.getpid(), 9)"]
)
def test_workers_do_not_outlive_the_main_process(end: str) -> None:
    """Workers ignore SIGTERM, so the main process must end them in another way."""
    program = run(end)
    assert program.stdout is not None
    workers = [int(part) for part in program.stdout.readline().split()]
    program.communicate(timeout=60)
    wait_until_gone(workers)
