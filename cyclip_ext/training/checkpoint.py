"""Checkpoints that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

FORMAT = 1
LAST, BEST = "last.pt", "best.pt"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write beside the target, flush to the disk, then rename over it.

    Whoever reads `path` sees the former checkpoint or the new one, whatever interrupts the writing.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)  # the rename itself must reach the disk, too
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state `save_checkpoint` wrote, on the CPU. `path`: the file, or a run folder (its last).

    Raises FileNotFoundError where there is none, ValueError where the file is not one of ours.
    """
    file = path / "checkpoints" / LAST if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"--resume {path}: there is no checkpoint at {file}")
    try:
        # weights_only: a checkpoint from elsewhere must not be able to execute code.
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{file} cannot be read as a checkpoint: {error}") from error
    if state.get("format") != FORMAT:
        raise ValueError(f"{file} is not a checkpoint of this version (format {FORMAT})")
    return state
