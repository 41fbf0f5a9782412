"""The command line of the pretraining job."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..data import MissingData
from .checkpoint import load_checkpoint
from .compare import check_same_settings, run_comparison
from .config import SetupError, TrainConfig, add_arguments, config_from_arguments
from .loop import DivergedError
from .precision import choose_device
from .report import summary_table
from .run import read_result, run_training
from .sources import open_data

# In the message of whatever needs open_clip or torchvision and cannot import it.
NO_TORCHVISION = "open_clip and a torchvision that matches torch"
UNUSABLE = 2  # what argparse exits with, too
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


def build_parser() -> argparse.ArgumentParser:
    """All flags of the job."""
    parser = argparse.ArgumentParser(
        description="Pretrain CLIP-style towers with CyCLIP's losses, evaluate, and write a report."
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

    0; 1 for an error; 2 where this machine cannot serve the settings; 130 after Ctrl-C.
    """
    arguments = build_parser().parse_args(argv)
    try:
        return _dispatch(arguments)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    except (MissingData, DivergedError, ValueError, FileNotFoundError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if NO_TORCHVISION not in str(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        again = "; give the same --compare command again to continue" if arguments.compare else ""
        print(f"stopped; nothing after the last checkpoint is kept{again}", file=sys.stderr)
        return INTERRUPTED


def _dispatch(arguments: argparse.Namespace) -> int:
    start = time.perf_counter()
    config = config_from_arguments(arguments)
    if arguments.seeds and not arguments.compare:
        raise ValueError("--seeds belongs to --compare; a single run takes --seed")
    state = None
    if config.run.resume is not None:
        if arguments.compare:
            raise ValueError("--compare resumes by itself: give the same --logs and --name again")
        state = load_checkpoint(Path(config.run.resume))
        config = _resumed(config, TrainConfig.from_dict(state["config"]))
        folder = _run_folder(config)
        if read_result(folder) is not None and state.get("epoch") == config.run.epochs:
            print(f"{folder} is finished: {config.run.epochs} epochs, see report.md; nothing done")
            return 0
    else:
        _require_folder(Path(config.run.logs) / (config.run.name or ""))
    choose_device(config.run.device)  # before the data, which may take long to open
    data = open_data(config.data)
    print(data.description)
    if arguments.compare:
        folder = Path(config.run.logs) / (config.run.name or "compare")
        seeds = arguments.seeds or [config.run.seed]
        return 0 if run_comparison(config, data, folder, seeds) else INTERRUPTED
    folder = _run_folder(config)
    result = run_training(config, data, folder, state)
    if result is None:
        print(f"continue with --resume {folder}")
        return INTERRUPTED
    print(f"\n{summary_table(result['metrics'])}\n\nin percent; report and checkpoints: {folder}")
    print(f"whole run: {time.perf_counter() - start:.0f} s")
    return 0


def _resumed(given: TrainConfig, stored: TrainConfig) -> TrainConfig:
    """The checkpoint's settings. Settings typed beside --resume must agree with them."""
    default = TrainConfig()
    typed = replace(
        stored,
        **{
            name: replace(
                getattr(stored, name),
                **{
                    key: value
                    for key, value in vars(getattr(given, name)).items()
                    if value != getattr(getattr(default, name), key)
                },
            )
            for name in ("data", "loss", "optim", "run")
        },
    )
    check_same_settings(typed, stored.to_dict(), Path(str(given.run.resume)))
    run = replace(stored.run, resume=given.run.resume, device=given.run.device)
    return replace(stored, run=run)


def _require_folder(path: Path) -> None:
    """Raises SetupError where a file stands in the way of a folder."""
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not there.is_dir():
        raise SetupError(f"--logs and --name must lead to a folder, got {path}: {there} is a file")


def _run_folder(config: TrainConfig) -> Path:
    """The resumed run's folder; a named one; or the first free one of a speaking name."""
    if config.run.resume is not None:
        path = Path(config.run.resume).resolve()
        if path.is_dir():
            return path
        if path.parent.name != "checkpoints":
            raise ValueError(
                f"--resume {config.run.resume} must lie in the folder checkpoints of its run, got "
                f"{path}; give the run folder"
            )
        return path.parent.parent
    if config.run.name is not None:
        return Path(config.run.logs) / config.run.name
    words = config.label().lower().replace(",", "").replace("+", "").split()
    stem = "-".join([*words, f"seed{config.run.seed}"])
    folder, number = Path(config.run.logs) / stem, 1
    while folder.exists():
        number += 1
        folder = Path(config.run.logs) / f"{stem}-{number}"
    return folder
