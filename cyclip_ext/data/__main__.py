"""The command line of data: `cyclip-data` or `python -m cyclip_ext.data`."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from .._output import quiet_if_output_closes
from .dataset import FileDataset, ImageDataset
from .loader import Loader
from .manifest import require_writable
from .open import BUILTIN, load_builtin, open_dataset
from .options import READ_HELP, ReadOptions
from .skips import MissingData, SkipReport, TooManyBadRecords, require_usable
from .transforms import Augment
from .verify import examine, manifest_of, report
from .workers import AHEAD, WorkerDied, cores

_INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended

_VERIFY = """Read and decode every record once with all cores. Print the bad records by reason, the
sizes of images and captions, and records with equal captions. Exit status: 0 if the data is fit to
train on; 1 if more records are bad than --max-skipped; 2 if the data cannot be opened or read to
the end, if no record can be used, or if the manifest cannot be written."""

_SPEED = """Measure how many samples a second the loader delivers by itself, decoded, cropped and in
batches, without a model."""

_OPTIONS = [name for name in READ_HELP if name not in ("csv_label_key", "manifest")]


def build_parser() -> ArgumentParser:
    """Return the parser of all commands."""
    parser = ArgumentParser(prog="cyclip-data", description="Check data before training.")
    commands = parser.add_subcommands(dest="command")

    verify = _reading_parser("verify", _VERIFY)
    verify.add_argument(
        "--workers", type=int, default=cores(), help="processes that read (default: all cores)"
    )
    verify.add_argument(
        "--manifest", type=Path, metavar="OUT.json", help="write the bad records, for training"
    )
    verify.add_argument(
        "--max-skipped",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="share of bad records above which the exit status is 1",
    )
    commands.add_subcommand("verify", verify, help="read every record, count what is bad")

    speed = _reading_parser("speed", _SPEED)
    speed.add_argument("--image-size", type=int, default=224, help="pixels")
    speed.add_argument("--batch-size", type=int, default=128)
    speed.add_argument(
        "--workers", type=int, help="processes that decode (default: all cores; 0 if in memory)"
    )
    speed.add_argument("--seconds", type=float, default=20.0, help="duration of the measurement")
    commands.add_subcommand("speed", speed, help="measure the samples per second of the loader")
    return parser


def _reading_parser(name: str, description: str) -> ArgumentParser:
    parser = ArgumentParser(prog=f"cyclip-data {name}", description=description)
    parser.add_argument("path", help="as for --train-data: tar shards, a folder of images, a table")
    for option in _OPTIONS:
        kind = int if option == "first_row" else str
        parser.add_argument("--" + option.replace("_", "-"), type=kind, help=READ_HELP[option])
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    try:
        with quiet_if_output_closes():
            arguments = build_parser().parse_args(None if argv is None else list(argv))
            options = arguments[arguments.command]
            return _verify(options) if arguments.command == "verify" else _speed(options)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return _INTERRUPTED
    except (OSError, ValueError, MissingData, WorkerDied) as error:
        print(error, file=sys.stderr)
        return 2


def _open(options: Namespace) -> FileDataset:
    given = ReadOptions(**{option: options[option] for option in _OPTIONS})
    dataset = open_dataset(options.path, given)
    assert isinstance(dataset, FileDataset)  # only a manifest would make it another
    return dataset


def _verify(options: Namespace) -> int:
    if options.workers < 0:
        raise ValueError(f"--workers must be 0 or more, got {options.workers}")
    if not 0 <= options.max_skipped <= 1:
        raise ValueError(f"--max-skipped must be between 0 and 1, got {options.max_skipped}")
    if options.manifest is not None:
        require_writable(options.manifest)  # before hours of reading
    dataset = _open(options)
    with tqdm(total=len(dataset), unit="record", unit_scale=True, mininterval=0.5) as progress:
        findings = examine(dataset, options.workers, lambda done: progress.update(done) and None)
    print(report(dataset, findings))
    if not len(findings.images):
        raise ValueError(f"{dataset.name}: no record can be used")
    if options.manifest is not None:
        manifest_of(dataset, findings).write(options.manifest)
        print(f"wrote {options.manifest}: {len(findings.bad):,} records to skip")
    try:
        require_usable(findings.seen, findings.skipped, options.max_skipped, dataset.name)
    except TooManyBadRecords as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _speed(options: Namespace) -> int:
    dataset: ImageDataset
    augment = None
    workers = cores() if options.workers is None else options.workers
    if options.path in BUILTIN:
        dataset, augment = load_builtin(options.path).train, Augment()
        workers = options.workers or 0
    else:
        dataset = _open(options)
    size, batch_size = options.image_size, options.batch_size
    loader = Loader(dataset, batch_size, size, augment=augment, workers=workers)
    rate, skipped = measure_rate(loader, options.seconds, warmup=1 + AHEAD * workers)
    print(
        f"{dataset.name}: {rate:,.0f} samples/s at {size} pixels in batches of {batch_size} with "
        f"{workers} worker process{'es' * (workers != 1)}; {skipped}"
    )
    return 0


def measure_rate(loader: Loader, seconds: float, warmup: int) -> tuple[float, SkipReport]:
    """Return good samples per second after `warmup` steps, and the most that an epoch skipped."""
    skipped, total = SkipReport(), attrgetter("total")
    steps, samples, start = 0, 0, 0.0
    for epoch in itertools.count():
        for batch in loader.epoch(epoch):
            steps += 1
            if steps > warmup and batch is not None:
                samples += len(batch)
            now = time.perf_counter()
            if steps == warmup:
                start = now
            if steps > warmup and now - start >= seconds:
                return samples / (now - start), max(skipped, loader.skipped, key=total)
        skipped = max(skipped, loader.skipped, key=total)
    raise AssertionError("the loop over epochs never ends")


if __name__ == "__main__":
    sys.exit(main())
