"""The processes of a run: alone, or as many as torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .config import SetupError

Thing = TypeVar("Thing")

# How long ranks wait for each other: one measures and writes while the others are at the barrier.
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Ranks:
    """One process's place among the processes of the run.

    group: for the losses and DDP, None for a single process. control: for small messages
    between hosts, never over the accelerator, so that they do not wait for its queue.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    control: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process prints, measures and writes."""
        return self.rank == 0

    def say(self, *lines: object) -> None:
        """Print on the main rank."""
        if self.is_main:
            print(*lines, flush=True)

    def sums(self, numbers: Sequence[int]) -> list[int]:
        """Sum each number over the ranks."""
        if self.control is None:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(total, group=self.control)
        summed: list[int] = total.tolist()
        return summed

    def all(self, flag: Tensor) -> Tensor:
        """Return whether a flag on the device, bool scalar, is set on every rank.

        Nothing waits for the device.
        """
        if self.group is None:
            return flag
        least = flag.int()
        dist.all_reduce(least, dist.ReduceOp.MIN, group=self.group)
        return least.bool()

    def gathered(self, thing: Thing) -> list[Thing]:
        """Return the value of every rank, in the order of ranks."""
        if self.control is None:
            return [thing]
        things = [thing] * self.size
        dist.all_gather_object(things, thing, group=self.control)
        return things

    def wait(self) -> None:
        """Return once every rank has called this."""
        if self.control is not None:
            dist.barrier(group=self.control)


ALONE = Ranks()


def world_size() -> int:
    """Return the number of processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Return this process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_lost_connection(error: RuntimeError) -> bool:
    """Return whether a collective raised this error because another rank ended."""
    # gloo raises no class of its own, but its messages begin with the name of a source file.
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


@contextmanager
def join_ranks(device: torch.device) -> Iterator[Ranks]:
    """Join the ranks of this run, over NCCL on a GPU and gloo elsewhere, until the block ends.

    Raises SetupError if this torch has no collectives.
    """
    if world_size() == 1:
        yield ALONE
        return
    if not dist.is_available():
        raise SetupError(
            "torchrun started several processes, but this torch is built without "
            "torch.distributed; start one process, without torchrun"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # With gloo beside NCCL, the first messages of the losses do not wait for the GPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
        assert isinstance(control, dist.ProcessGroup)  # this process is in it
        yield Ranks(dist.get_rank(), dist.get_world_size(), dist.group.WORLD, control)
        dist.barrier(group=control)  # no rank closes connections that another one still uses
    finally:
        dist.destroy_process_group()
