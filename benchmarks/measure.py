"""Time, memory and error of losses, forward and backward, on one batch.

Peers take turns within each round, so that a clock that drifts does so for all of them, and the L2
cache is overwritten before every measurement. What runs out of memory or fails is reported and left
out of the rounds that follow.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any

import torch
from torch import Tensor

from .peers import Batch, Loss, Peer, Unavailable

_FLUSH_BYTES = 256 << 20  # more than any L2 cache


@dataclass
class Result:
    """One peer on one batch; None where it was not measured."""

    status: str = "ok"
    loss: Loss | None = None
    times_ms: list[float] = field(default_factory=list)
    peak_mib: float | None = None  # beyond the batch, gradients included
    loss_error: float | None = None  # relative, on a slice, against float64
    grad_error: float | None = None  # largest relative error (norms) of a leaf's gradient

    def quartiles_ms(self) -> tuple[float, float, float] | None:
        if self.status != "ok" or not self.times_ms:
            return None
        if len(self.times_ms) == 1:
            return (self.times_ms[0],) * 3
        low, median, high = quantiles(self.times_ms, n=4, method="inclusive")
        return low, median, high


def gradients(loss: Loss, batch: Batch) -> tuple[Tensor, list[Tensor | None]]:
    """The loss and the gradients of the leaves, forward and backward once."""
    value = loss(batch)
    grads = torch.autograd.grad(value, batch.leaves, allow_unused=True)
    return value.detach(), list(grads)


def slice_of(batch: Batch, rows: int, dtype: torch.dtype | None = None) -> Batch:
    """A batch of its own of the first rows; `dtype` widens everything."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().to(dtype or tensor.dtype).clone().requires_grad_()

    image, text, scale, bias = batch.leaves
    return Batch(leaf(image[:rows]), leaf(text[:rows]), leaf(scale), leaf(bias))


def measure(
    peers: list[Peer], batch: Batch, truth: dict[str, Loss], *, rounds: int, slice_rows: int
) -> dict[Peer, Result]:
    """Every peer on the batch; `truth` has the float64 loss of each family."""
    results = {peer: Result() for peer in peers}
    for peer, result in results.items():
        result.status = _guarded(_prepare, peer, result, batch, truth[peer.family], slice_rows)
    for _ in range(rounds):
        for result in results.values():
            if result.status == "ok":
                result.status = _guarded(_time, result, batch)
    return results


def _prepare(peer: Peer, result: Result, batch: Batch, truth: Loss, slice_rows: int) -> None:
    small = slice_of(batch, slice_rows)
    _errors(result, peer.make(small), small, truth)
    result.loss = peer.make(batch)
    gradients(result.loss, batch)  # warm-up
    result.peak_mib = _peak_mib(result.loss, batch)


def _time(result: Result, batch: Batch) -> None:
    assert result.loss is not None
    result.times_ms.append(_time_ms(result.loss, batch))


def _guarded(work: Callable[..., None], *arguments: Any) -> str:
    """How it went; nothing that a peer raises ends the benchmark."""
    try:
        work(*arguments)
    except Unavailable as reason:
        return str(reason)
    except torch.OutOfMemoryError:
        status = "out of memory"
    except Exception as error:
        status = " ".join(f"failed: {type(error).__name__}: {error}".split())[:200]
    else:
        return "ok"
    gc.collect()  # the failed call's tensors hang on its traceback
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return status


def _errors(result: Result, loss: Loss, batch: Batch, truth: Loss) -> None:
    value, grads = gradients(loss, batch)
    exact, exact_grads = gradients(truth, slice_of(batch, len(batch.image_features), torch.float64))
    result.loss_error = float(((value.double() - exact) / exact).abs())
    result.grad_error = max(
        float((grad.double() - exact_grad).norm() / exact_grad.norm())
        for grad, exact_grad in zip(grads, exact_grads, strict=True)
        if grad is not None and exact_grad is not None
    )


def _peak_mib(loss: Loss, batch: Batch) -> float | None:
    device = batch.image_features.device
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    gradients(loss, batch)
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def _time_ms(loss: Loss, batch: Batch) -> float:
    device = batch.image_features.device
    if device.type != "cuda":
        begin = time.perf_counter()
        gradients(loss, batch)
        return (time.perf_counter() - begin) * 1e3
    torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device).zero_()
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    started.record()
    gradients(loss, batch)
    ended.record()
    ended.synchronize()
    return float(started.elapsed_time(ended))
