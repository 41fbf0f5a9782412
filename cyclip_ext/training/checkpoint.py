"""Atomic checkpoints, and the folder of a run that holds them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..models.checkpoint import FORMAT, State, load_checkpoint

__all__ = ["Checkpoints", "State", "load_checkpoint", "save_checkpoint"]

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"


class Checkpoints:
    """The checkpoints of a run: the last, the one before it, the best, and those of some epochs."""

    def __init__(self, run_folder: Path) -> None:
        self.folder = run_folder / "checkpoints"

    def prepare(self) -> None:
        """Make the folder, and delete the incomplete files of a killed process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for torn in self.folder.glob(".*.tmp"):
            torn.unlink()

    def save_last(self, state: State) -> None:
        """Save the state to resume from, and keep the former one as previous.pt.

        A disk may lose data that it has acknowledged; then `newest` returns the previous one.
        Raises OSError, naming the folder and the remedy, if the disk is full.
        """
        last = self.folder / LAST
        with self._remedy():
            temporary = _write(last, state)
            if last.exists():
                last.replace(self.folder / PREVIOUS)
            _publish(temporary, last)

    def save_best(self, state: State) -> None:
        """Save the weights that validated best. Raises as `save_last`."""
        with self._remedy():
            save_checkpoint(self.folder / BEST, state)

    def keep(self, state: State, epoch: int) -> None:
        """Save the state after `epoch` epochs, which no later one overwrites.

        Raises as `save_last`.
        """
        with self._remedy():
            save_checkpoint(self.folder / f"epoch-{epoch:04d}.pt", state)

    @contextmanager
    def _remedy(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            # torch.save raises a RuntimeError about positions after the OSError of the full disk.
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            reason = str(cause).partition("\n")[0]
            remedy = (
                "the one before is intact: free some space and continue with --resume "
                f"{self.folder.parent}"
                if self.any()
                else "there is none before it: free some space and start the run again"
            )
            raise OSError(
                f"no checkpoint could be written to {self.folder} ({reason}); {remedy}"
            ) from error

    def any(self) -> bool:
        """Return whether there is a state to continue from, damaged or not."""
        return next(self._newest_first(), None) is not None

    def newest(self, notify: Callable[[str], None] = print) -> State | None:
        """Return the newest undamaged state to continue from; None if there is no checkpoint.

        Damaged files are skipped with a line to `notify`.
        Raises ValueError if all of them are damaged.
        """
        damaged = []
        for path in self._newest_first():
            try:
                return load_checkpoint(path)
            except ValueError as error:
                damaged.append(str(error))
                notify(f"skipped: {error}")
        if damaged:
            raise ValueError(f"no checkpoint in {self.folder} can be read: {'; '.join(damaged)}")
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

    If writing is interrupted, `path` is the former checkpoint.
    """
    _publish(_write(path, state), path)


def _write(path: Path, state: State) -> Path:
    """Write a complete, flushed file beside `path`."""
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
    folder = os.open(path.parent, os.O_RDONLY)  # the rename itself must reach the disk as well
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
