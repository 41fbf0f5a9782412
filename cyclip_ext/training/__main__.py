"""The command line of training: `cyclip-train` or `python -m cyclip_ext.training`.

cyclip-train --train-data PATH ...          train
cyclip-train export RUN --format onnx       write a trained model for other programs
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from .._output import quiet_if_output_closes
from ..data import MissingData, WorkerDied
from ..models import default_tokenizer
from ..models.export import FORMATS, export_run
from ..models.trained import run_folder_of
from .compare import run_comparison
from .config import SetupError, TrainConfig, add_arguments
from .data import open_data
from .folder import (
    locked,
    read_result,
    require_folder,
    resumed_settings,
    run_folder,
    state_to_resume,
)
from .precision import choose_device
from .ranks import Ranks, is_lost_connection, join_ranks, world_size
from .report import summary_table
from .run import run_training
from .step import DivergedError

UNUSABLE = 2  # the status with which argparse exits as well
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


def build_parser() -> ArgumentParser:
    """Return the parser of all flags."""
    parser = ArgumentParser(
        prog="cyclip-train",
        description="Pretrain CLIP-style towers with CyCLIP's losses, evaluate, write a report. "
        "Several processes: torchrun --nproc-per-node N, with the same flags. "
        "`cyclip-train export RUN` writes a trained model for other programs.",
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


def build_export_parser() -> ArgumentParser:
    """Return the parser of `cyclip-train export`."""
    parser = ArgumentParser(
        prog="cyclip-train export",
        description="Write the model of a run for other programs: its best weights, and their "
        "moving average if the run keeps one.",
    )
    parser.add_argument(
        "run", type=Path, help="run folder (checkpoints/best.pt, else last.pt) or checkpoint file"
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        required=True,
        help="open_clip: a folder that open_clip loads; safetensors: weights and configuration; "
        "onnx: a graph for each tower",
    )
    parser.add_argument(
        "--output", type=Path | None, help="folder; default: export, inside the run folder"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    0; 1 for an error; 2 if this machine does not support the settings; 130 after Ctrl-C or SIGTERM,
    with the state saved.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["export"]:
        return _export(words[1:])
    typed: dict[str, Any] = {}
    try:
        with quiet_if_output_closes():
            # Only the explicitly given settings: a resumed run supplies the others.
            typed = vars(build_parser().parse_args(words, defaults=False))
            return _dispatch(typed)
    except (SetupError, ImportError) as error:
        return _failed(error, UNUSABLE)
    except (MissingData, WorkerDied, DivergedError, ValueError, OSError) as error:
        return _failed(error, 1)
    except RuntimeError as error:
        if world_size() == 1 or not is_lost_connection(error):
            raise
        problem = str(error).partition(". ")[0]
        message = "another rank ended, see its own message; continue with --resume"
        return _failed(RuntimeError(f"{message} ({problem})"), 1)
    except KeyboardInterrupt:
        again = "; give the same --compare command again to continue" if "compare" in typed else ""
        print(f"stopped; the steps after the last checkpoint are lost{again}", file=sys.stderr)
        return INTERRUPTED


def _export(words: list[str]) -> int:
    try:
        with quiet_if_output_closes():
            options = build_export_parser().parse_args(words)
            folder = options.output or run_folder_of(options.run) / "export"
            for file in export_run(options.run, folder, options.format):
                print(f"wrote {file}")
    except (ImportError, ValueError, OSError) as error:
        return _failed(error, UNUSABLE if isinstance(error, ImportError) else 1)
    return 0


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
        folder: Path = ranks.gathered(run_folder(config))[0]
        with locked(folder, ranks):
            return _run(config, typed, folder, ranks)


def _compare(config: TrainConfig, seeds: list[int], ranks: Ranks) -> int:
    if config.run.resume is not None:
        raise ValueError("--compare resumes by itself: give the same --logs-dir and --name again")
    folder = Path(config.run.logs_dir) / (config.run.name or "compare")
    require_folder(folder)
    data = open_data(config.data)
    ranks.say(data.description)
    return 0 if run_comparison(config, data, folder, seeds, ranks) else INTERRUPTED


def _run(config: TrainConfig, typed: Mapping[str, Any], folder: Path, ranks: Ranks) -> int:
    start = time.perf_counter()
    resume = config.run.resume
    state = None if resume is None else state_to_resume(folder, resume, ranks)
    if state is not None:
        config = resumed_settings(typed, state, folder)
        if state["epoch"] == config.run.epochs and read_result(folder) is not None:
            ranks.say(
                f"{folder} is finished: {config.run.epochs} epochs, see report.md; a larger "
                "--epochs continues it"
            )
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


if __name__ == "__main__":
    sys.exit(main())
