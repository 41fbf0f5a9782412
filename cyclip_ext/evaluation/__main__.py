"""`python -m cyclip_ext.evaluation`: everything about a trained model, as JSON, Markdown and HTML.

python -m cyclip_ext.evaluation logs/RUN                          a run of this package
python -m cyclip_ext.evaluation --model ViT-B-32 --pretrained FILE --data folder:PATH
python -m cyclip_ext.evaluation --embeddings FILE.npz             any other model
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..data import MissingData
from ..needs import MissingDependency
from .encoder import BATCH
from .job import Job, run_job
from .report import require_writable, write_report
from .tasks import TASKS

_UNUSABLE = 2
_INTERRUPTED = 130  # as a shell reports Ctrl-C


def build_parser() -> argparse.ArgumentParser:
    """All options; their defaults are Job's."""
    parser = argparse.ArgumentParser(
        prog="python -m cyclip_ext.evaluation",
        description=__doc__,
        epilog="Exit status: 0 the report is written; 2 model, data or options cannot be used, or "
        "the report cannot be written; 130 after Ctrl-C.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = parser.add_argument_group("model, one of")
    model.add_argument(
        "checkpoint",
        nargs="?",
        type=Path,
        metavar="CHECKPOINT",
        help="run folder (checkpoints/best.pt, else last.pt) or checkpoint file of this package",
    )
    model.add_argument("--model", help="name of open_clip, with --pretrained")
    model.add_argument("--pretrained", help="its weights: a file, or a tag open_clip downloads")
    model.add_argument(
        "--embeddings",
        type=Path,
        metavar="FILE.npz",
        help="computed elsewhere (docs/evaluation.md)",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="SPEC",
        help="emoji, shapes, debian, torchvision:NAME, or a path (folder of classes, CSV, "
        "webdataset, COCO captions, quadruples); may be repeated: of several sets with classes the "
        "first is the base of the shift; default: what the run was trained on",
    )
    data.add_argument(
        "--train-data",
        metavar="SPEC",
        help="labelled pictures (with --embeddings: a .npz) that neighbours and probes learn from",
    )
    data.add_argument(
        "--split",
        help="of torchvision's sets and webdatasets (default: test; of --train-data always train)",
    )
    data.add_argument(
        "--root",
        type=Path,
        default=Path("data"),
        help="folder of torchvision's files (default: data)",
    )
    data.add_argument("--templates", help="openai, simple, or a file: prompts for class names")
    data.add_argument("--class-names", help="imagenet, or a file: in place of the set's own")
    data.add_argument(
        "--hierarchy",
        metavar="FILE",
        help="superclass of each class: cifar100, a .json or .csv, or, with --depth, WordNet-style "
        'lines "parent child"',
    )
    data.add_argument(
        "--depth", type=int, help="superclasses are the ancestors so many steps below the root"
    )
    data.add_argument(
        "--words", type=Path, metavar="FILE", help='"id<tab>name, synonym" lines, where it has ids'
    )
    data.add_argument(
        "--beside",
        nargs="+",
        type=Path,
        default=[],
        metavar="CHECKPOINT",
        help="other runs or checkpoints, whose margins on the first set are drawn beside",
    )
    data.add_argument(
        "--completeness",
        nargs=2,
        type=Path,
        metavar=("INSTANCES", "CAPTIONS"),
        help="COCO's instances_*.json and captions_*.json: what do captions leave out?",
    )
    data.add_argument(
        "--baselines",
        type=Path,
        metavar="CSV",
        help="accuracies of other models, for effective robustness: columns model, base, and one "
        "for each shifted set",
    )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--tasks",
        nargs="+",
        choices=TASKS,
        metavar="TASK",
        help=f"default: all; {', '.join(TASKS)}",
    )
    run.add_argument(
        "--output",
        type=Path,
        help="folder of the report (default: evaluation, in the run folder where there is one)",
    )
    run.add_argument("--device", default="auto", help="cpu, cuda, ... (default: auto)")
    run.add_argument("--batch-size", type=int, default=BATCH, help=f"pictures (default: {BATCH})")
    run.add_argument(
        "--seed", type=int, default=0, help="of random batches and samples (default: 0)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    values = vars(options)
    output: Path | None = values.pop("output")
    for name in ("data", "tasks", "beside", "completeness"):
        values[name] = None if values[name] is None else tuple(values[name])
    try:
        job = Job(**values)
    except ValueError as error:
        parser.error(str(error))
    try:
        folder = output or _default_folder(job)
        require_writable(folder)
        about, outcomes = run_job(job, _show)
        write_report(folder, about, outcomes)
    except (MissingData, MissingDependency, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return _UNUSABLE
    except KeyboardInterrupt:
        print("\ninterrupted: no report was written", file=sys.stderr)
        return _INTERRUPTED
    print(f"wrote {folder / 'report.html'}, report.md and results.json")
    return 0


def _show(line: str) -> None:
    print(line, flush=True)


def _default_folder(job: Job) -> Path:
    if job.checkpoint is None:
        return Path("evaluation")
    if job.checkpoint.is_dir():
        return job.checkpoint / "evaluation"
    folder = job.checkpoint.resolve().parent
    return (folder.parent if folder.name == "checkpoints" else folder) / "evaluation"


if __name__ == "__main__":
    sys.exit(main())
