"""The folder of a run: its name, its lock, and the state to continue from."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .._files import read_text
from ..data import SkipReport
from .checkpoint import Checkpoints, State, load_checkpoint
from .config import FREE_ON_RESUME, SetupError, TrainConfig
from .ranks import ALONE, Ranks

RESULT = "result.json"  # written last: a run that has it is complete
LOCK = ".lock"

# The entries of a checkpoint that a run continues from.
ENTRIES: dict[str, type | tuple[type, ...]] = {
    "config": dict,
    "objective": str,
    "global_batch": int,
    "model": dict,
    "optimizer": dict,
    "scaler": dict,
    "ema": (dict, type(None)),
    "epoch": int,
    "step_in_epoch": int,
    "step": int,
    "best": float,
    "validation_due": bool,
    "fingerprints": dict,
    "skipped": dict,
    "shortened": int,
    "skipped_steps": int,
    "seconds": float,
}


def run_folder(config: TrainConfig) -> Path:
    """Return the resumed run's folder, a named one, or the first unused descriptive name.

    Raises SetupError if a file stands in the way of the folder.
    """
    resume = config.run.resume
    if resume is not None and resume != "auto":
        path = Path(resume).resolve()
        if path.is_dir():
            return path
        if not path.exists():
            raise FileNotFoundError(f"--resume {resume}: there is no such run folder or checkpoint")
        if path.parent.name != "checkpoints":
            raise ValueError(
                f"--resume {resume} must lie in the folder checkpoints of its run, got {path}; "
                "give the run folder"
            )
        return path.parent.parent
    parent = Path(config.run.logs_dir)
    if config.run.name is not None:
        folder = parent / config.run.name
    else:
        words = config.label().lower().replace(",", "").replace("+", "").split()
        stem = "-".join([*words, f"seed{config.run.seed}"])
        folder, number = parent / stem, 1
        while resume is None and folder.exists():
            number += 1
            folder = parent / f"{stem}-{number}"
    require_folder(folder)
    return folder


def require_folder(path: Path) -> None:
    """Raise SetupError if a file stands in the way of a folder."""
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not there.is_dir():
        raise SetupError(
            f"--logs-dir and --name must lead to a folder, got {path}: {there} is a file"
        )


_held: weakref.WeakSet[IO[str]] = weakref.WeakSet()


def _close_in_child() -> None:
    # A lock lives as long as any copy of its file descriptor, and a loader's worker process can
    # outlive this one for seconds.
    for file in list(_held):
        file.close()


os.register_at_fork(after_in_child=_close_in_child)


class _InUse(Exception):
    """Another process holds the lock; the message names it."""


def _lock(folder: Path) -> IO[str]:
    """Make the folder, and return its locked file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / LOCK).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
    except BlockingIOError:
        with file:
            file.seek(0)
            raise _InUse(file.read().strip() or "another process") from None
    _held.add(file)
    return file


@contextmanager
def locked(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Lock the folder for this run. The lock ends with the process that holds it.

    Only the main rank writes to the folder, so it alone holds the lock, but all ranks raise.
    Deletes the folder if nothing was written to it.

    Raises ValueError at once if another process holds the folder, or if it cannot be written.
    """
    file, problem = None, None
    if ranks.is_main:
        try:
            file = _lock(folder)
        except _InUse as holder:
            problem = f"is in use by {holder}; wait until it has ended, or choose another --name"
        except OSError as error:
            problem = f"cannot be written ({error.strerror}); choose another --logs-dir or --name"
    problem = ranks.gathered(problem)[0]
    if problem is not None:
        raise ValueError(f"the run folder {folder} {problem}")
    try:
        yield
    finally:
        if file is not None:
            if folder.is_dir() and [*folder.iterdir()] == [folder / LOCK]:
                (folder / LOCK).unlink()
                folder.rmdir()
            file.close()


def state_to_resume(folder: Path, resume: str, ranks: Ranks) -> State | None:
    """Return the state to resume from, the same on all ranks; None for a new run.

    resume: as --resume. Raises FileNotFoundError if there is no checkpoint, ValueError if the file
    is damaged, lacks entries, or differs between ranks.
    """
    if resume == "auto" or Path(resume).is_dir():
        state = newest_state(folder, ranks)
        if state is None and resume != "auto":
            raise FileNotFoundError(f"--resume {resume}: there is no checkpoint in {folder}")
    else:
        state = load_checkpoint(Path(resume))
        _require_entries(state, resume)
    found = ranks.gathered(state and (state["epoch"], state["step_in_epoch"]))
    if any(position != found[0] for position in found):
        raise ValueError(
            f"the ranks find different checkpoints in {folder} (epoch and step {found}): the "
            "folder must lie on a file system that all machines share"
        )
    return state


def newest_state(folder: Path, ranks: Ranks = ALONE) -> State | None:
    """Return the newest undamaged state of a run; None if it has no checkpoint.

    Raises ValueError if all are damaged, or the newest lacks entries.
    """
    state = Checkpoints(folder).newest(ranks.say)
    if state is not None:
        _require_entries(state, f"the newest checkpoint in {folder / 'checkpoints'}")
    return state


def _require_entries(state: State, where: str) -> None:
    if "optimizer" not in state:
        raise ValueError(
            f"{where} holds weights only, as best.pt does: continue from last.pt or the run folder"
        )
    missing = [name for name in ENTRIES if name not in state]
    unknown = [name for name in state if name not in ENTRIES and name != "format"]
    wrong = [n for n, kind in ENTRIES.items() if n in state and not isinstance(state[n], kind)]
    if not missing and not wrong:
        wrong = _impossible(state)
    problems = [
        f"{what} {', '.join(map(str, names[:10]))}"
        for what, names in (("lacks", missing), ("has unknown", unknown), ("has damaged", wrong))
        if names
    ]
    if problems:
        raise ValueError(
            f"{where} {' and '.join(problems)}: it is of another version of cyclip_ext, or not a "
            "checkpoint of a run; resume it with that version, or start a run with another --name"
        )


def _impossible(state: State) -> list[str]:
    """Return the entries with impossible values."""
    wrong = [
        name
        for name in ("epoch", "step_in_epoch", "step", "shortened", "skipped_steps")
        if state[name] < 0
    ]
    if state["step_in_epoch"] > state["step"]:
        wrong.append("step_in_epoch")
    # Without moments AdamW would start anew. Skipped steps leave none, nor do float16's overflows.
    stepped = state["step"] > state["skipped_steps"] and not state["scaler"]
    if stepped and not state["optimizer"].get("state"):
        wrong.append("optimizer")
    try:
        SkipReport.from_dict(state["skipped"])
    except (AttributeError, KeyError, TypeError):
        wrong.append("skipped")
    return wrong


def require_same_run(
    state: State,
    *,
    objective: str,
    pairs: int,
    fingerprints: Mapping[str, str],
    folder: Path,
    allow_other_data: bool = False,
) -> list[str]:
    """Return the parts of the data (training, validation) that are not those of the state.

    Raises ValueError if there are any and they are not allowed, and if the objective or the pairs
    of a step differ.
    """
    if state["objective"] != objective:
        raise ValueError(
            f"{folder} was trained with {state['objective']}, now with {objective}; choose another "
            "--name"
        )
    if state["global_batch"] != pairs:
        raise ValueError(
            f"{folder} was made with {state['global_batch']} pairs in a step, now --batch-size "
            f"times --accum-freq times the number of processes is {pairs}; choose the same number, "
            "or another --name"
        )
    changed = [n for n, digest in fingerprints.items() if state["fingerprints"].get(n) != digest]
    if changed and not allow_other_data:
        raise ValueError(
            f"the {' and '.join(changed)} records are not those of the run in {folder}, or not in "
            "the same order; give the same data options, or continue on these records with "
            "--allow-other-data"
        )
    return changed


def resumed_settings(typed: Mapping[str, Any], state: State, folder: Path) -> TrainConfig:
    """Return the checkpoint's settings with those given beside --resume.

    Raises ValueError for a setting that would change what is learned, other than more epochs.
    """
    try:
        stored = TrainConfig.from_dict(state["config"])
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"the settings in the checkpoint of {folder}: {error}") from error
    epochs = typed.get("epochs", stored.run.epochs)
    if epochs > stored.run.epochs:
        stored = stored.updated({"epochs": epochs})
    strict = {key: value for key, value in typed.items() if key not in FREE_ON_RESUME}
    check_same_settings(stored.updated(strict), stored.to_dict(), folder)
    free = {key: value for key, value in typed.items() if key in FREE_ON_RESUME}
    once = {"device": "auto", "allow_other_data": False, "profile": None}
    return stored.updated({**once, **free})


def check_same_settings(config: TrainConfig, found: dict[str, Any], folder: Path) -> None:
    """Raise ValueError if a checkpoint's settings differ in one that changes the result."""
    ours, theirs = _decisive(config.to_dict()), _decisive(found)
    differing = [key for key in ours if ours[key] != theirs.get(key)]
    if differing:
        listed = ", ".join(f"{key} {theirs.get(key)!r} (now {ours[key]!r})" for key in differing)
        raise ValueError(
            f"{folder} was made with other settings: {listed}; omit them, or choose another --name"
        )


def _decisive(config: dict[str, Any]) -> dict[str, Any]:
    """Return flat settings, without those that have no effect on the result."""
    flat = {key: value for section in config.values() for key, value in section.items()}
    return {key: value for key, value in flat.items() if key not in FREE_ON_RESUME}


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return the result of a complete run, None for one that is not complete.

    Raises ValueError, naming the file, if result.json is empty or damaged.
    """
    path = folder / RESULT
    if not path.is_file():
        return None
    text = read_text(path)
    try:
        result: Any = json.loads(text)
    except ValueError:
        result = None
    if not isinstance(result, dict) or not isinstance(result.get("metrics"), dict):
        problem = "is not the result of a run" if text.strip() else "is empty"
        raise ValueError(f"{path} {problem}; rename it, and --resume {folder} writes it again")
    return result
