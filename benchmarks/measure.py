"""Time and error of losses, forward and backward, beside each other on one batch.

Peers take turns within each round, so that a clock that drifts does so for all of them, and every
round begins with another one. On a GPU the L2 cache is overwritten before every measurement. What
runs out of memory or fails is reported and left out of the rounds that follow.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from .family import Loss, Peer, Unavailable
from .inputs import Batch

T = TypeVar("T")
Outcome = tuple[Tensor, list[Tensor | None]]  # the loss and the gradients of the leaves

FLUSH_BYTES = 256 << 20  # more than any L2 cache
_WARM_UP_MS = 100.0
_WARM_UP_ROWS = 2048


@dataclass(frozen=True)
class Rounds:
    """How often: until `seconds` have passed, within bounds."""

    least: int
    most: int
    seconds: float = 0.0


@dataclass
class Entrant:
    """A peer with a batch, and what has become of it."""

    peer: Peer
    batch: Batch
    status: str = "ok"
    loss: Loss | None = None
    times_ms: list[float] = field(default_factory=list)

    def attempt(self, work: Callable[[], T]) -> T | None:
        """The result, None where this or anything before failed: no peer ends the benchmark."""
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
        gc.collect()  # the failed call's tensors hang on its traceback
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def warm_up(self) -> None:
        """With part of a batch for which a call takes its time, where nothing is compiled for N."""
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
    """Warms up, then measures each of them in every round."""
    for entrant in entrants:
        entrant.attempt(entrant.warm_up)
    begin = time.perf_counter()
    for done in range(rounds.most):
        if done >= rounds.least and time.perf_counter() - begin > rounds.seconds:
            break
        first = done % len(entrants)
        for entrant in (*entrants[first:], *entrants[:first]):
            entrant.attempt(entrant.take_turn)


def times_faster(entrant: Entrant, other: Entrant) -> float | None:
    """Median over the rounds of the other's time by this one's."""
    if entrant.status != "ok" or other.status != "ok" or not entrant.times_ms:
        return None
    return median(b / a for a, b in zip(entrant.times_ms, other.times_ms, strict=True))


def gradients(loss: Loss, batch: Batch) -> Outcome:
    """Forward and backward once.

    A result without derivatives, as of retrieval, comes without gradients.
    """
    value = loss(batch)
    if not value.requires_grad:
        return value, []
    grads = torch.autograd.grad(value, batch.leaves, allow_unused=True)
    return value.detach(), list(grads)


class Errors(NamedTuple):
    """Against the truth. One number of a gradient that nearly cancels says little of its own size,
    so scalars' errors are relative to 1, the size of a cosine, where they are smaller than that.
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
