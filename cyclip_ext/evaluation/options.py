"""The options of `cyclip-eval` and its commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from ..data import BUILTIN
from ..data.options import READ_HELP
from .encoder import BATCH
from .tasks import TASKS, completeness

_EXIT_STATUS = (
    "Exit status: 0 if the report is written; 2 if model, data or options cannot be used, or the "
    "report cannot be written; 130 after Ctrl-C."
)
READ_OPTIONS = {  # fields of ReadOptions; each applies to some kinds of datasets
    **{name: text for name, text in READ_HELP.items() if name != "manifest"},
    "split": "of torchvision's datasets, webdatasets and Karpathy's JSON; default: test, of "
    "--train-data train",
}


def build_parser() -> ArgumentParser:
    """Build the parser of the four commands."""
    parser = ArgumentParser(
        prog="cyclip-eval",
        description="Evaluate a trained model and write the results as JSON, Markdown and HTML. "
        + _EXIT_STATUS,
    )
    commands = parser.add_subcommands()
    for name, add, description in (
        ("run", _add_run, "Evaluate a run or a checkpoint of this package."),
        ("open-clip", _add_open_clip, "Evaluate a model of open_clip."),
        ("embeddings", _add_embeddings, "Evaluate embeddings from a .npz file."),
        ("completeness", _add_completeness, "Find annotated objects that captions do not name."),
    ):
        command = ArgumentParser(description=f"{description} {_EXIT_STATUS}")
        add(command)
        command.add_argument(
            "--output",
            type=Path | None,
            help="folder of the report; default: evaluation, inside the run folder if there is one",
        )
        commands.add_subcommand(name, command, help=description)
    return parser


def _add_run(parser: ArgumentParser) -> None:
    parser.add_argument(
        "path", type=Path, help="run folder (checkpoints/best.pt, else last.pt) or checkpoint file"
    )
    parser.add_argument(
        "--beside",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="other runs or checkpoints, to compare margins on the first dataset",
    )
    _add_data(parser, "default: the data of the run, if it is built in")
    _add_measuring(parser)


def _add_open_clip(parser: ArgumentParser) -> None:
    parser.add_argument(
        "model",
        help="a name of open_clip, local-dir:FOLDER, hf-hub:NAME, or a configuration in JSON",
    )
    parser.add_argument(
        "--pretrained",
        type=str,
        help="weights: a file, or a tag that open_clip downloads; none with local-dir and hf-hub",
    )
    _add_data(parser, "required")
    _add_measuring(parser)


def _add_data(parser: ArgumentParser, default: str) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        action="append",
        metavar="SPEC",
        help=f"{', '.join(BUILTIN)}, torchvision:NAME, or a path (folder of classes, CSV, "
        "webdataset, COCO captions, quadruples); may be repeated, and then the first dataset with "
        f"classes is the base of the distribution shift; {default}",
    )
    group.add_argument(
        "--train-data",
        type=str,
        metavar="SPEC",
        help="labelled images of the same classes, from which neighbours and probes learn",
    )
    group.add_argument("--root", type=Path, default=Path("data"), help="torchvision's files")
    for name, description in READ_OPTIONS.items():
        option = f"--{name.replace('_', '-')}"
        kind: Any = int | None if name == "first_row" else str
        group.add_argument(option, type=kind, help=description)
    group.add_argument(
        "--templates", type=str, help="prompts for class names: openai, simple, or a file"
    )
    group.add_argument(
        "--class-names", type=str, help="imagenet, or a file, instead of the dataset's own"
    )
    group.add_argument(
        "--prompts-key", type=str, help="which list of a JSON file of --templates or --class-names"
    )
    group.add_argument(
        "--baselines",
        type=Path | None,
        metavar="CSV",
        help="accuracies of other models, for effective robustness: the columns model, base, and "
        "one for each shifted dataset",
    )
    _add_hierarchy(group)


def _add_hierarchy(group: Any) -> None:
    group.add_argument(
        "--hierarchy",
        type=str,
        metavar="FILE",
        help="superclass of each class: cifar100, a .json or a .csv",
    )


def _add_measuring(parser: ArgumentParser) -> None:
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, ...")
    parser.add_argument("--batch-size", type=int, default=BATCH, help="images in a batch")
    _add_tasks(parser)


def _add_tasks(parser: ArgumentParser) -> None:
    known = [task for task in TASKS if task != completeness.TASK]
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=known,
        metavar="TASK",
        help=f"default: all; {', '.join(known)}",
    )
    parser.add_argument("--seed", type=int, default=0, help="of random batches and samples")


def _add_embeddings(parser: ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="see docs/evaluation.md for its arrays")
    parser.add_argument(
        "--train-data",
        type=Path | None,
        metavar="FILE.npz",
        help="labelled images of the same classes, from which neighbours and probes learn",
    )
    _add_hierarchy(parser)
    _add_tasks(parser)


def _add_completeness(parser: ArgumentParser) -> None:
    parser.add_argument("instances", type=Path, help="COCO's instances_*.json")
    parser.add_argument("captions", type=Path, help="COCO's captions_*.json of the same images")
