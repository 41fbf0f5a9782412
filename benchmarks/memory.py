"""How much memory one call takes beyond what it is given and must give back.

On a GPU torch counts. On a CPU the kernel does: the peak of the resident set (VmHWM of
/proc/self/status, Linux) of a process that holds the batch already and has called the loss on a
small one, so that threads, libraries and their workspaces are there. What every implementation must
deliver, the gradients of the features, is subtracted.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from .family import Loss, Peer, Unavailable
from .inputs import Batch
from .measure import gradients

T = TypeVar("T")

_SMALL_ROWS = 256
_CLEAR_REFS = Path("/proc/self/clear_refs")


def gpu_peak_bytes(loss: Loss, batch: Batch) -> int:
    """With the gradients in it."""
    device = batch.image_features.device
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    gradients(loss, batch)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def cpu_extra_bytes(peer: Peer, batch: Batch) -> tuple[int, float]:
    """Without the gradients; and the milliseconds of the one call.

    For a process that has measured nothing else.

    Raises: Unavailable where the kernel does not count.
    """
    loss = peer.make(batch)
    # A compiled loss has to be compiled for this very size first.
    gradients(loss, batch if peer.compiled else batch.first(_SMALL_ROWS))
    (_, grads), peak, spent_ms = cpu_peak_of(lambda: gradients(loss, batch))
    delivered = sum(grad.nbytes for grad in grads if grad is not None)
    return max(0, peak - delivered), spent_ms


def cpu_peak_of(work: Callable[[], T]) -> tuple[T, int, float]:
    """What it returns, the bytes of its peak beyond what is there already, and its milliseconds.

    Raises: Unavailable where the kernel does not count.
    """
    if not _CLEAR_REFS.exists():
        raise Unavailable("peaks are read from Linux's /proc")
    _return_freed_memory()
    _CLEAR_REFS.write_text("5")  # the peak counts from here
    before = _peak_bytes()
    begin = time.perf_counter()
    result = work()
    spent_ms = (time.perf_counter() - begin) * 1e3
    return result, _peak_bytes() - before, spent_ms


def _peak_bytes() -> int:
    # Not ru_maxrss: that of a child starts at its parent's.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) << 10


def _return_freed_memory() -> None:
    """What the allocator holds back of earlier calls would hide as much of this one's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
