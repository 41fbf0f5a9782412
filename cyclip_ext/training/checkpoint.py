"""Checkpoints that are there whole or not at all, and the folder of a run that holds them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ..models.checkpoint import FORMAT, State, load_checkpoint

__all__ = ["Checkpoints", "State", "load_checkpoint", "save_checkpoint"]

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"


class Checkpoints:
    """The checkpoints of a run: the last, the one before it, the best, and those kept for good."""

    def __init__(self, run_folder: Path) -> None:
        self.folder = run_folder / "checkpoints"

    def prepare(self) -> None:
        """Make the folder, and sweep out what a killed process left half written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for torn in self.folder.glob(".*.tmp"):
            torn.unlink()

    def save_last(self, state: State) -> None:
        """The state to continue from. The former one stays as previous.pt.

        A disk may lose what it has acknowledged; then `newest` has the previous one.
        """
        last = self.folder / LAST
        temporary = _write(last, state)
        if last.exists():
            last.replace(self.folder / PREVIOUS)
        _publish(temporary, last)

    def save_best(self, state: State) -> None:
        """The weights that validated best."""
        save_checkpoint(self.folder / BEST, state)

    def keep(self, state: State, epoch: int) -> None:
        """The state after `epoch` epochs, never overwritten by a later one."""
        save_checkpoint(self.folder / f"epoch-{epoch:04d}.pt", state)

    def any(self) -> bool:
        """Whether there is a state to continue from, whole or not."""
        return next(self._newest_first(), None) is not None

    def newest(self, notify: Callable[[str], None] = print) -> State | None:
        """The newest whole state to continue from, None where there is no checkpoint.

        Damaged files are passed over with a line to `notify`.
        Raises ValueError where there are files and none of them is whole.
        """
        damaged = []
        for path in self._newest_first():
            try:
                return load_checkpoint(path)
            except ValueError as error:
                damaged.append(str(error))
                notify(f"passed over: {error}")
        if damaged:
            raise ValueError(f"no checkpoint in {self.folder} is whole: {'; '.join(damaged)}")
        return None

    def _newest_first(self) -> Iterator[Path]:
        names = (LAST, PREVIOUS)
        yield from (self.folder / name for name in names if (self.folder / name).is_file())
        kept = self.folder.glob("epoch-*.pt")
        yield from sorted(
            kept, key=lambda path: int(path.stem.removeprefix("epoch-")), reverse=True
        )


def save_checkpoint(path: Path, state: State) -> None:
    """Write beside the target, flush to the disk, then rename over it.

    Whoever reads `path` sees the former checkpoint or the new one, whatever interrupts the writing.
    """
    _publish(_write(path, state), path)


def _write(path: Path, state: State) -> Path:
    """A whole, flushed file beside `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _publish(temporary: Path, path: Path) -> None:
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)  # the rename itself must reach the disk, too
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
