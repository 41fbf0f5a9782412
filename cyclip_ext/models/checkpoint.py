"""Reading and verification of the checkpoints that this package's training writes."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

FORMAT = 2

State = dict[str, Any]


def load_checkpoint(path: Path) -> State:
    """Load a saved state onto the CPU.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is empty, damaged, or not a checkpoint of this package. The message
            is one line with the file, the cause and a remedy.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no checkpoint at {path}; name a run folder or a .pt file"
        )
    state = read_state(path)
    if "format" not in state:
        raise ValueError(f"{path} is not a checkpoint of this package{_foreign(state)}")
    if state["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {state['format']!r}, but this version reads format {FORMAT}; use "
            "the version that trained it"
        )
    return state


def read_state(path: Path) -> State:
    """Load a dictionary that torch.save wrote, verifying its checksums. No code is executed.

    Raises:
        ValueError: If the file is empty or damaged, or holds something else.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty{_others(path)}")
    try:
        # torch.load does not compare the checksums it writes, so a flipped bit would pass.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # of zipfile, zlib, struct: whatever the damage leads to
        raise ValueError(
            f"{path} is cut short or is not a file of torch.save ({error}){_others(path)}"
        ) from error
    if damaged is not None:
        raise ValueError(f"{path} is damaged: the checksum of {damaged} is wrong{_others(path)}")
    try:
        # weights_only: a checkpoint from elsewhere must not be able to execute code.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds Python objects besides tensors, which are not loaded because they could "
            "execute code; save its state_dict() instead"
        ) from error
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} cannot be read by torch.load: {reason}{_others(path)}") from error
    if not isinstance(state, dict):
        raise ValueError(
            f"{path} holds a {type(state).__name__}, not a dictionary of weights; save "
            "model.state_dict()"
        )
    return state


def shortened(names: list[str]) -> str:
    """Return the first ten of the names and how many follow."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more


def _foreign(state: State) -> str:
    """Return a description of a foreign file, and the command that evaluates it."""
    command = "evaluate it with `cyclip-eval open-clip MODEL --pretrained FILE`"
    if "state_dict" in state:
        return f", but of another trainer (it has {shortened([*map(str, state)])}); {command}"
    if state and all(isinstance(value, torch.Tensor) for value in state.values()):
        return f", but weights alone ({shortened([*map(str, state)])}); {command}"
    return f": it has the entries {shortened([*map(str, state)]) or 'none'}"


def _others(path: Path) -> str:
    """Return a remedy: the other checkpoints that lie beside a damaged one."""
    found = sorted(other.name for other in path.parent.glob("*.pt") if other.name != path.name)
    beside = f"other checkpoints in its folder: {shortened(found)}"
    return f"; {beside}" if found else "; there is no other checkpoint in its folder"
