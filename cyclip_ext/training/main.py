"""The command line of the pretraining job."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from ..data import MissingData, WorkerDied
from ..models import default_tokenizer
from .checkpoint import Checkpoints, State, load_checkpoint
from .compare import check_same_settings, run_comparison
from .config import FREE_ON_RESUME, SetupError, TrainConfig, add_arguments
from .loop import DivergedError
from .precision import choose_device
from .ranks import Ranks, join_ranks, world_size
from .report import summary_table
from .run import read_result, run_training
from .sources import open_data

UNUSABLE = 2  # what argparse exits with, too
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


def build_parser() -> ArgumentParser:
    """All flags of the job."""
    parser = ArgumentParser(
        description="Pretrain CLIP-style towers with CyCLIP's losses, evaluate, write a report. "
        "Several processes: torchrun --nproc-per-node N, with the same flags."
    )
    add_arguments(parser)
    group = parser.add_argument_group("comparison")
    group.add_argument(
        "--compare",
        action="store_true",
        help="train CLIP, CyCLIP, CyCLIP with margin and CLIP with its scale held at 100",
    )
    group.add_argument(
        "--seeds", type=int, nargs="+", help="seeds of --compare (default: the one of --seed)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status.

    0; 1 for an error; 2 where this machine cannot serve the settings; 130 after Ctrl-C or SIGTERM,
    with the state saved.
    """
    # What was typed or stood in a YAML file, and nothing else: a resumed run has its own settings.
    typed: dict[str, Any] = vars(build_parser().parse_args(argv, defaults=False))
    try:
        return _dispatch(typed)
    except (SetupError, ImportError) as error:
        return _failed(error, UNUSABLE)
    except (
        MissingData,
        WorkerDied,
        DivergedError,
        ValueError,
        OSError,
    ) as error:
        return _failed(error, 1)
    except KeyboardInterrupt:
        again = "; give the same --compare command again to continue" if "compare" in typed else ""
        print(f"stopped; nothing after the last checkpoint is kept{again}", file=sys.stderr)
        return INTERRUPTED


def _failed(error: Exception, status: int) -> int:
    rank = f"rank {os.environ.get('RANK')}: " if world_size() > 1 else ""
    print(f"{rank}error: {error}", file=sys.stderr)
    return status


def _dispatch(typed: Mapping[str, Any]) -> int:
    config = TrainConfig().updated({"tokenizer": default_tokenizer(), **typed})
    device = choose_device(config.run.device)  # before the data, which may take long to open
    with join_ranks(device) as ranks:
        if typed.get("compare"):
            return _compare(config, typed.get("seeds") or [config.run.seed], ranks)
        if typed.get("seeds"):
            raise ValueError("--seeds belongs to --compare; a single run takes --seed")
        return _run(config, typed, ranks)


def _compare(config: TrainConfig, seeds: list[int], ranks: Ranks) -> int:
    if config.run.resume is not None:
        raise ValueError("--compare resumes by itself: give the same --logs-dir and --name again")
    folder = Path(config.run.logs_dir) / (config.run.name or "compare")
    _require_folder(folder)
    data = open_data(config.data)
    ranks.say(data.description)
    return 0 if run_comparison(config, data, folder, seeds, ranks) else INTERRUPTED


def _run(config: TrainConfig, typed: Mapping[str, Any], ranks: Ranks) -> int:
    start = time.perf_counter()
    state, folder = _to_resume(config, ranks)
    if state is None:
        _require_folder(folder)
    else:
        config = _resumed(typed, TrainConfig.from_dict(state["config"]), folder)
        if read_result(folder) is not None and state.get("epoch") == config.run.epochs:
            ranks.say(f"{folder} is finished: {config.run.epochs} epochs, see report.md")
            return 0
    data = open_data(config.data)
    ranks.say(data.description)
    result = run_training(config, data, folder, state, ranks)
    if result is None:
        ranks.say(f"continue with --resume {folder}")
        return INTERRUPTED
    ranks.say(
        f"\n{summary_table(result['metrics'])}\n\nin percent; report and checkpoints: {folder}"
    )
    ranks.say(f"whole run: {time.perf_counter() - start:.0f} s")
    return 0


def _to_resume(config: TrainConfig, ranks: Ranks) -> tuple[State | None, Path]:
    """The state to continue from, None to start anew; and the run's folder. One for all ranks."""
    resume = config.run.resume
    folder: Path = ranks.gathered(_run_folder(config))[0]
    if resume is None:
        return None, folder
    if resume == "auto" or Path(resume).is_dir():
        state = Checkpoints(folder).newest(ranks.say)
        if state is None and resume != "auto":
            raise FileNotFoundError(f"--resume {resume}: there is no checkpoint in {folder}")
    else:
        state = load_checkpoint(Path(resume))
    found = ranks.gathered(state and (state.get("epoch"), state.get("step_in_epoch")))
    if any(position != found[0] for position in found):
        raise ValueError(
            f"the ranks find different checkpoints in {folder} (epoch and step {found}): the "
            "folder must lie on a file system that all machines share"
        )
    return state, folder


def _resumed(typed: Mapping[str, Any], stored: TrainConfig, folder: Path) -> TrainConfig:
    """The checkpoint's settings. Those typed beside --resume must agree with them, or be free."""
    strict = {key: value for key, value in typed.items() if key not in FREE_ON_RESUME}
    check_same_settings(stored.updated(strict), stored.to_dict(), folder)
    free = {key: value for key, value in typed.items() if key in FREE_ON_RESUME}
    return stored.updated({"device": "auto", **free})


def _require_folder(path: Path) -> None:
    """Raises SetupError where a file stands in the way of a folder."""
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not there.is_dir():
        raise SetupError(
            f"--logs-dir and --name must lead to a folder, got {path}: {there} is a file"
        )


def _run_folder(config: TrainConfig) -> Path:
    """The resumed run's folder; a named one; or the first free one of a speaking name."""
    resume = config.run.resume
    if resume is not None and resume != "auto":
        path = Path(resume).resolve()
        if path.is_dir():
            return path
        if path.parent.name != "checkpoints":
            raise ValueError(
                f"--resume {resume} must lie in the folder checkpoints of its run, got {path}; "
                "give the run folder"
            )
        return path.parent.parent
    if config.run.name is not None:
        return Path(config.run.logs_dir) / config.run.name
    words = config.label().lower().replace(",", "").replace("+", "").split()
    stem = "-".join([*words, f"seed{config.run.seed}"])
    folder, number = Path(config.run.logs_dir) / stem, 1
    while resume is None and folder.exists():
        number += 1
        folder = Path(config.run.logs_dir) / f"{stem}-{number}"
    return folder
