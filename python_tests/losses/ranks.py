"""The ranks of a gloo group: processes that stay and run functions."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = 60  # seconds; a rank that takes longer hangs
# Imported once, and then present in every process of every world. Not cyclip_ext: the server of the
# forks looks into the current folder first, where the sources lie without their libraries.
PRELOAD = ["torch", "torch._dynamo", "torch.nn.parallel", "pytest"]


@dataclass(frozen=True)
class Raised:
    """An exception of a rank, in place of a result."""

    kind: type[Exception]
    message: str
    where: str


class World:
    """`size` ranks; `with` ends them. If one hangs, the next call starts new ones.

    `{rank}` in values of `environment` becomes the rank.
    """

    def __init__(self, size: int, environment: Mapping[str, str] | None = None) -> None:
        self.size = size
        self.environment = environment or {}
        self._connections: list[Connection] = []
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._start()

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            environment = {k: v.format(rank=rank) for k, v in self.environment.items()}
            store = str(Path(self._folder.name) / "store")
            arguments = rank, self.size, store, environment, theirs
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call `function(rank, *arguments)` on every rank; return its results, or Raised."""
        if not self._connections:
            self._start()
        for connection in self._connections:
            connection.send_bytes(pickle.dumps((function, arguments)))
        results = []
        for rank, connection in enumerate(self._connections):
            if not connection.poll(PATIENCE):
                self.__exit__(None, None, None)
                raise TimeoutError(f"rank {rank} of {self.size} hangs in {function.__name__}")
            results.append(pickle.loads(connection.recv_bytes()))
        return results

    def results(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Return the same; no rank may raise."""
        results = self.run(function, *arguments)
        for rank, result in enumerate(results):
            assert not isinstance(result, Raised), f"rank {rank}: {result.where}"
        return results

    def __enter__(self) -> World:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        for connection in self._connections:
            connection.close()  # ends the loop of _serve
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
        self._connections.clear()
        self._processes.clear()
        self._folder.cleanup()


def _serve(
    rank: int, size: int, store: str, environment: dict[str, str], connection: Connection
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=PATIENCE / 2),
    )
    while True:
        try:
            function, arguments = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            result = function(rank, *arguments)
        except Exception as error:
            result = Raised(type(error), str(error), traceback.format_exc())
        connection.send_bytes(pickle.dumps(result))
