"""Time, memory and error of several losses on one batch, forward and backward."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from .family import Loss, Peer, Unavailable
from .inputs import Batch

T = TypeVar("T")
P = ParamSpec("P")
Outcome = tuple[Tensor, list[Tensor | None]]  # the loss and the gradients of the leaves

FLUSH_BYTES = 256 << 20  # more than any L2 cache
_WARM_UP_MS = 100.0
_WARM_UP_ROWS = 2048
_SMALL_ROWS = 256
_CLEAR_REFS = Path("/proc/self/clear_refs")

# The server imports modules once and is forked before any thread starts. Windows lacks it.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["benchmarks.loss", "torch._dynamo"])

# ---------------------------------------------------------------- time


@dataclass(frozen=True)
class Rounds:
    """The bounds of the number of rounds, which is as large as `seconds` allows."""

    least: int
    most: int
    seconds: float = 0.0


@dataclass
class Entrant:
    """A peer with its batch, status and times."""

    peer: Peer
    batch: Batch
    status: str = "ok"
    loss: Loss | None = None
    times_ms: list[float] = field(default_factory=list)

    def attempt(self, work: Callable[[], T]) -> T | None:
        """Return the result, or None if this or an earlier call failed. The run continues."""
        if self.status != "ok":
            return None
        try:
            return work()
        except Unavailable as reason:
            self.status = str(reason)
        except torch.OutOfMemoryError:
            self.status = "out of memory"
        except Exception as error:
            self.status = " ".join(f"failed: {type(error).__name__}: {error}".split())[:200]
        gc.collect()  # the traceback holds the tensors of the failed call
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def warm_up(self) -> None:
        """Call the loss until the clock has settled, on part of a large batch unless compiled."""
        self.loss = self.peer.make(self.batch)
        part = self.batch if self.peer.compiled else self.batch.first(_WARM_UP_ROWS)
        value, _ = gradients(self.loss, part)
        if not value.isfinite().all():
            raise ValueError("the result is not finite")
        spent = 0.0
        while spent < _WARM_UP_MS:
            spent += _time_ms(self.loss, part)

    def call_once(self) -> Outcome:
        return gradients(self.peer.make(self.batch), self.batch)

    def take_turn(self) -> None:
        assert self.loss is not None
        self.times_ms.append(_time_ms(self.loss, self.batch))

    def quartiles_ms(self) -> tuple[float, float, float] | None:
        if self.status != "ok" or not self.times_ms:
            return None
        if len(self.times_ms) == 1:
            return (self.times_ms[0],) * 3
        low, middle, high = quantiles(self.times_ms, n=4, method="inclusive")
        return low, middle, high


def take_turns(entrants: Sequence[Entrant], rounds: Rounds) -> None:
    """Warm up, then measure each entrant in every round.

    The entrants take turns, so that a drift of the clock affects all of them, in a new random order
    in every round, because a call is slower after one that returned its memory to the system. On a
    GPU, the L2 cache is overwritten before every measurement.
    """
    order = random.Random(0)
    for entrant in entrants:
        entrant.attempt(entrant.warm_up)
    begin = time.perf_counter()
    for done in range(rounds.most):
        if done >= rounds.least and time.perf_counter() - begin > rounds.seconds:
            break
        for entrant in order.sample(entrants, len(entrants)):
            entrant.attempt(entrant.take_turn)


def times_faster(entrant: Entrant, other: Entrant) -> float | None:
    """Return the median over the rounds of the ratio of the other's time to this one's."""
    if entrant.status != "ok" or other.status != "ok" or not entrant.times_ms:
        return None
    return median(b / a for a, b in zip(entrant.times_ms, other.times_ms, strict=True))


def gradients(loss: Loss, batch: Batch) -> Outcome:
    """Run forward and backward once.

    There are no gradients if the result has no derivatives, as for retrieval.
    """
    value = loss(batch)
    if not value.requires_grad:
        return value, []
    grads = torch.autograd.grad(value, batch.leaves, allow_unused=True)
    return value.detach(), list(grads)


def _time_ms(loss: Loss, batch: Batch) -> float:
    device = batch.image_features.device
    if device.type != "cuda":
        begin = time.perf_counter()
        gradients(loss, batch)
        return (time.perf_counter() - begin) * 1e3
    torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device).zero_()
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    started.record()
    gradients(loss, batch)
    ended.record()
    ended.synchronize()
    return float(started.elapsed_time(ended))


# ---------------------------------------------------------------- error


class Errors(NamedTuple):
    """Errors relative to the truth.

    The gradient of a scalar may nearly cancel. It is compared with 1, the size of a cosine, if it
    is smaller than that.
    """

    loss: float  # relative
    grad: float | None  # relative, of the features' gradients, by norms; the larger one
    scalar_grad: float | None  # of the scale's and the bias's gradients; the larger one


def errors(found: Outcome, exact: Outcome) -> Errors:
    of_grads = [
        _relative_error(grad, exact_grad, 1.0 if grad.dim() == 0 else 0.0)
        for grad, exact_grad in zip(found[1], exact[1], strict=True)
        if grad is not None and exact_grad is not None
    ]
    features, scalars = of_grads[:2], of_grads[2:]
    of_loss = _relative_error(found[0], exact[0])
    return Errors(of_loss, max(features, default=None), max(scalars, default=None))


def _relative_error(found: Tensor, exact: Tensor, least: float = 0.0) -> float:
    error, size = float((found.double() - exact).norm()), float(exact.double().norm())
    return error / (max(size, least) or 1.0)


# ---------------------------------------------------------------- memory


def gpu_peak_bytes(loss: Loss, batch: Batch) -> int:
    """Return the peak of one call on a GPU, including the gradients."""
    device = batch.image_features.device
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    gradients(loss, batch)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def cpu_extra_bytes(peer: Peer, batch: Batch) -> tuple[int, float]:
    """Return the peak of one call without the gradients of the features, and its milliseconds.

    Call this in a process that has measured nothing else: the operating system counts the peak of
    the resident set. A call on a small batch comes first, so that threads, libraries and their
    workspaces exist already.

    Raises: Unavailable if the operating system does not count (only Linux does).
    """
    loss = peer.make(batch)
    # A compiled loss must be compiled for this size first.
    gradients(loss, batch if peer.compiled else batch.first(_SMALL_ROWS))
    (_, grads), peak, spent_ms = cpu_peak_of(lambda: gradients(loss, batch))
    delivered = sum(grad.nbytes for grad in grads if grad is not None)
    return max(0, peak - delivered), spent_ms


def cpu_peak_of(work: Callable[[], T]) -> tuple[T, int, float]:
    """Return the result of `work`, the bytes of its peak beyond the present, and its milliseconds.

    Raises: Unavailable if the operating system does not count (only Linux does).
    """
    if not _CLEAR_REFS.exists():
        raise Unavailable("peaks are read from Linux's /proc")
    _return_freed_memory()
    _CLEAR_REFS.write_text("5")  # resets the peak
    before = _peak_bytes()
    begin = time.perf_counter()
    result = work()
    spent_ms = (time.perf_counter() - begin) * 1e3
    return result, _peak_bytes() - before, spent_ms


def _peak_bytes() -> int:
    # ru_maxrss is not used, because a child inherits it from its parent.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) << 10


def _return_freed_memory() -> None:
    """Return freed memory to the system: reusing it would hide as much of the next peak."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


# ---------------------------------------------------------------- processes


def in_fresh_process(
    work: Callable[P, Iterator[T]], *arguments: P.args, **options: P.kwargs
) -> Iterator[T]:
    """Yield the items of `work`, a function of a module, as a new process yields them.

    Raises: ChildProcessError if the process ends before the work does.
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
        receiver.close()  # ends a child that still has items
        process.join()
    if process.exitcode:
        raise ChildProcessError(f"its process ended with status {process.exitcode}")


def _send(
    sender: Connection,
    work: Callable[..., Iterator[T]],
    arguments: tuple[Any, ...],
    options: dict[str, Any],
) -> None:
    with suppress(BrokenPipeError):  # the parent has stopped reading
        for item in work(*arguments, **options):
            sender.send(item)
