"""Reading a checkpoint of this package's training, verified; its writing is training's."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

FORMAT = 2

State = dict[str, Any]


def load_checkpoint(path: Path) -> State:
    """The state that was saved, on the CPU.

    Raises FileNotFoundError where there is none, ValueError where the file is damaged or not one of
    ours.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    try:
        # torch.load takes a flipped bit for a weight: it does not look at the checksums it writes.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
        # weights_only: a checkpoint from elsewhere must not be able to execute code.
        state: State = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of this version (format {FORMAT})")
    return state
