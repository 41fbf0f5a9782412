"""`python -m cyclip_ext.data verify PATH`: is this data fit to train on?"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .dataset import FileDataset
from .manifest import require_writable
from .open import ReadOptions, open_dataset
from .skips import TooManyBadRecords, require_usable
from .verify import examine, find_doubles, manifest_of, report
from .workers import cores

_INTERRUPTED = 130  # as a shell reports Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m cyclip_ext.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    verify = commands.add_parser(
        "verify",
        help="read every record once: count what is bad, find duplicates, write a manifest",
        description="Read and decode every record once with all cores; print what is bad by "
        "reason, sizes, caption lengths, duplicates and the false negatives they make in a batch. "
        "Exit status: 0 fit to train on; 1 more records are bad than --max-skipped; 2 the data "
        "cannot be opened or read to the end, none of it can be used, or the manifest cannot be "
        "written.",
    )
    verify.add_argument(
        "path", help="as for --train-data: tar shards, a folder of images, a TSV or CSV"
    )
    verify.add_argument("--images", help="folder of the downloaded pictures of Google's TSV")
    verify.add_argument(
        "--first-row", type=int, help="number of its first row in their names: 0 or 1"
    )
    verify.add_argument("--csv-separator", help=r"of a table with a header; \t is a tab")
    verify.add_argument("--csv-img-key", help="its image column; default: image, filepath, ...")
    verify.add_argument("--csv-quoting", help="auto, quoted or none")
    verify.add_argument("--csv-caption-key", help="its caption column; default: caption, ...")
    verify.add_argument(
        "--workers", type=int, default=cores(), help="processes that read (default: all cores)"
    )
    verify.add_argument(
        "--manifest", type=Path, metavar="OUT.json", help="write what is bad, for training to skip"
    )
    verify.add_argument(
        "--max-skipped",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="share of bad records above which the exit status is 1 (default: 0.05)",
    )
    verify.add_argument(
        "--batch-size",
        type=int,
        default=4096,
        help="of training, all ranks together, for the false negatives (default: 4096)",
    )
    options = parser.parse_args(arguments)
    if options.workers < 0 or options.batch_size < 1 or not 0 <= options.max_skipped <= 1:
        parser.error("--workers must be 0 or more, --batch-size 1 or more, --max-skipped in [0, 1]")
    try:
        return _verify(options)
    except KeyboardInterrupt:
        print("\ninterrupted: no manifest was written", file=sys.stderr)
        return _INTERRUPTED


def _verify(options: argparse.Namespace) -> int:
    try:
        if options.manifest is not None:
            require_writable(options.manifest)  # before hours of reading
        pairs = open_dataset(
            options.path,
            ReadOptions(
                images=options.images,
                first_row=options.first_row,
                csv_separator=options.csv_separator,
                csv_img_key=options.csv_img_key,
                csv_caption_key=options.csv_caption_key,
                csv_quoting=options.csv_quoting,
            ),
        )
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    assert isinstance(pairs, FileDataset)  # without a manifest it is
    try:
        findings = examine(pairs, options.workers, _Progress(len(pairs)))
    except RuntimeError as error:  # a worker that was killed, or failed
        print(f"\n{error}", file=sys.stderr)
        return 2
    doubles = find_doubles(findings, options.batch_size)
    print(report(pairs, findings, doubles))
    if not len(findings.images):
        print(f"{pairs.name}: no record can be used", file=sys.stderr)
        return 2
    if options.manifest is not None:
        try:
            manifest_of(pairs, findings, doubles).write(options.manifest)
        except OSError as error:
            print(f"cannot write the manifest {options.manifest}: {error}", file=sys.stderr)
            return 2
        print(f"wrote {options.manifest}: {len(findings.bad):,} records to leave out")
    try:
        require_usable(findings.seen, findings.skipped, options.max_skipped, pairs.name)
    except TooManyBadRecords as error:
        print(error, file=sys.stderr)
        return 1
    return 0


class _Progress:
    """A line that renews itself on a terminal; elsewhere a line now and then."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.start = self.shown = time.monotonic()
        self.pause = 0.5 if sys.stderr.isatty() else 30.0

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        last = done == self.total
        if not last and now - self.shown < self.pause:
            return
        self.shown = now
        rate = done / max(now - self.start, 1e-9)
        text = f"{done:,} of {self.total:,} records, {rate:,.0f}/s"
        if sys.stderr.isatty():
            print(f"\r{text}   ", end="\n" if last else "", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
