"""CC3M and CC12M as published by Google: captions and URLs, with a folder of downloads."""

from __future__ import annotations

import hashlib
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._output import counted
from .captions import is_text, usable_captions
from .columns import Columns, cached, file_state
from .delimited import DelimitedRows, TextFile
from .folders import walk
from .images import IMAGE_SUFFIXES
from .pairs import PairWriter, TableDataset
from .skips import NO_ROW, NOT_DOWNLOADED, BadRecord, SkipReport

# How downloaders name the file of a row: (its description, row number and url -> stem). Row numbers
# count from 0, without leading zeros: they are removed from the names in the folder.
NAMINGS: tuple[tuple[str, Callable[[int, str], str]], ...] = (
    ("row number", lambda row, url: str(row)),
    ("row number_crc32(url)", lambda row, url: f"{row}_{zlib.crc32(url.encode())}"),
    ("md5(url)", lambda row, url: hashlib.md5(url.encode(), usedforsecurity=False).hexdigest()),
    ("sha1(url)", lambda row, url: hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()),
    ("sha256(url)", lambda row, url: hashlib.sha256(url.encode()).hexdigest()),
)
_NUMBER, _NUMBER_AND_CRC = (name for name, _ in NAMINGS[:2])
_UNLIKELY = 1e-3
_CLOCK_NS = 2 * 10**9  # file systems round times of change


def is_google_tsv(path: Path) -> bool:
    """Return whether the first line has two columns, one of which is a URL, and is not a header."""
    return _address_column(TextFile(path).first_line()) is not None


def _address_column(line: str) -> int | None:
    fields = [field.strip() for field in line.split("\t")]
    if len(fields) != 2:
        return None
    found = [i for i, field in enumerate(fields) if field.startswith(("http://", "https://"))]
    return found[-1] if found else None


def read_google_tsv(
    path: Path, images: Path | None, *, first_row: int | None = None
) -> TableDataset:
    """Open a TSV of caption and address (CC3M) or address and caption (CC12M), without a header.

    The file of a row may lie at any depth below `images`, with any image suffix or none. Of the
    NAMINGS the one that fits most rows is used for all rows; it is part of the dataset's name.
    first_row: the number of the first row in the file names, 0 or 1. Blank lines are not rows.

    The result is stored beside the table; it holds until the table or a folder below `images`
    changes.

    Raises ValueError without images, if no naming fits a single row, and if captions might go to
    the images of other rows: two files have the name of one row; numbers contradict first_row or do
    not decide it while it is None; there are numbers above that of the last row. The numbers of
    img2dataset are those of rows only if its number of samples per shard is a power of ten; if its
    shards seem to be smaller, first_row must be given.
    """
    if images is None:
        raise ValueError(
            f"{path} lists web addresses: images (--images) must name the folder the files were "
            "downloaded to, got None"
        )
    if first_row not in (None, 0, 1):
        raise ValueError(f"first_row (--first-row) must be 0 or 1, got {first_row}")
    file = TextFile(path)
    if not images.is_dir():
        raise FileNotFoundError(f"images (--images) must name a folder, but {images} is not one")
    columns = cached(
        path.parent,
        [path.name, str(images.resolve()), first_row],
        [path],
        lambda folder: _Matching(file, images, first_row).columns(folder),
        current=lambda columns: columns.meta["folders"] == _states(images, columns.meta["folders"]),
    )
    name = f"{path} with images by {columns.meta['naming']} in {images}"
    return TableDataset(name, columns, images)


def _states(images: Path, folders: Iterable[str]) -> dict[str, Any]:
    return {name: file_state(images / name) for name in folders}  # a new file changes it


@dataclass
class _Matching:
    """Finds the file of each row."""

    file: TextFile
    images: Path
    first_row: int | None
    count: int = 0  # of rows

    def columns(self, folder: Path | None) -> Columns:
        pairs = PairWriter(folder)
        start = time.time_ns()
        files, folders = _files_by_stem(self.images, pairs.skipped)
        states = _states(self.images, folders)
        for name, state in states.items():
            if state is not None and state[1] > start - _CLOCK_NS:
                states[name] = "may have changed since it was listed"
        naming, first = self._naming(files)
        stem_of = dict(NAMINGS)[naming]
        used: set[str] = set()
        for number, caption, url in self._rows(pairs.skipped):
            stem = stem_of(number + first, url)
            found = files.get(stem, [])
            used.add(stem)
            if not caption:
                continue
            if len(found) > 1:
                raise ValueError(
                    f"{self.images}: {found[0]} and {found[1]} are both named after row "
                    f"{number + first} of {self.file.path}: only one of them can be its "
                    "image. Name a folder with images (--images) that holds one download only"
                )
            where = f"{self.file.path}: row {number + first} ({url})"
            if found:
                pairs.add(where, found[0], [caption])
            else:
                pairs.skipped.add(NOT_DOWNLOADED, where)
        for stem, names in files.items():
            if stem not in used:
                pairs.skipped.add(NO_ROW, str(self.images / names[0]), len(names))
        columns = pairs.columns()
        columns.meta.update(naming=naming, folders=states)
        return columns

    def _rows(self, skipped: SkipReport) -> Iterator[tuple[int, str, str]]:
        """Yield (number from 0, caption, url) of all rows, and count them.

        The caption is empty if the row cannot be used. Quotes have no special meaning here.
        """
        number = -1
        address = _address_column(self.file.first_line()) or 0
        rows = DelimitedRows(self.file, "\t", 2, 1, header=False, quoting="none")
        for number, row in enumerate(rows):
            where = f"{self.file.path}:{row.line}"
            url = caption = ""
            if row.reason:
                skipped.add("not two columns", where)
            else:
                url, text = row.fields[address].strip(), row.fields[1 - address]
                try:
                    if not is_text(url):
                        raise BadRecord("bad encoding", where)
                    (caption,) = usable_captions([text], where)
                except BadRecord as bad:
                    skipped.add(bad.reason, bad.where)
            yield number, caption, url if is_text(url) else ""
        self.count = number + 1

    def _naming(self, files: dict[str, list[str]]) -> tuple[str, int]:
        """Return the naming that fits most rows, and the number of the first row."""
        numbered = (_NUMBER, _NUMBER_AND_CRC)
        matches = {(name, k): 0 for name, _ in NAMINGS for k in range(1 + (name in numbered))}
        stem_of = dict(NAMINGS)
        for number, _, url in self._rows(SkipReport()):
            for name, first in matches:
                matches[name, first] += stem_of[name](number + first, url) in files
        best, first = max(matches, key=lambda key: matches[key])
        path, images = self.file.path, self.images
        if not matches[best, first]:
            names = ", ".join(name for name, _ in NAMINGS)
            raise ValueError(
                f"none of the {len(files):,} image files in {images} is named after a row of "
                f"{path}; known namings: {names}"
            )
        if best == _NUMBER:
            return best, self._first_from_numbers(files)
        if best == _NUMBER_AND_CRC:
            if self.first_row not in (None, first):
                raise ValueError(
                    f"the checksums in the file names in {images} show that the first row has the "
                    f"number {first}, but first_row (--first-row) is {self.first_row}"
                )
        elif self.first_row is not None:
            raise ValueError(
                f"the files in {images} are named by {best}, not by row number: first_row "
                "(--first-row) does not apply"
            )
        return best, first

    def _first_from_numbers(self, files: dict[str, list[str]]) -> int:
        """Return the number of the first row.

        Raises ValueError if the numbers contradict first_row or each other, or do not decide it.
        """
        images, count, given = self.images, self.count, self.first_row
        zero, next_one = files.get("0"), files.get(str(count))
        if zero and given == 1:
            raise ValueError(
                f"first_row (--first-row) is 1, but there is {images / zero[0]}: the first row of "
                f"{self.file.path} has the number 0"
            )
        last = count - 1 if zero or given == 0 else count
        beyond = [stem for stem in files if _is_number(stem) and int(stem) > last]
        if not zero and given != 1 and next_one and len(beyond) <= (given == 0):
            raise ValueError(
                f"the file names in {images} seem to count from 1 (no 0, but {next_one[0]} for "
                f"{count:,} rows): pass --first-row 1 (first_row=1)"
            )
        if beyond:
            raise ValueError(
                f"{images} contains {counted(len(beyond), 'file')} numbered above {last:,}, the "
                f"last row of {self.file.path} (e.g. {files[beyond[0]][0]}), so the numbers are "
                "not those of its rows, and captions would go to other images. img2dataset "
                "numbers rows only if number_sample_per_shard is a power of ten; otherwise let "
                "it write the captions too and open its output without the table. Name a folder "
                "with images (--images) that holds the files of this table only"
            )
        if given is None and not zero:
            raise ValueError(
                f"the file names in {images} do not decide whether the first row is 0 or 1: there "
                f"is neither a file 0 nor a file {count} for the {count:,} rows of "
                f"{self.file.path}, and the wrong choice gives every image the caption of its "
                "neighbour. Compare one image with its caption and pass --first-row 0 or 1 "
                "(first_row)"
            )
        if given is None:
            _require_full_shards(files, self.file.path, images)
        return 0 if zero else given or 0


def _require_full_shards(files: dict[str, list[str]], table: Path, images: Path) -> None:
    """Raise ValueError if img2dataset's numbers seem to jump between its shards.

    It calls sample k of shard n n * 10^d + k, with d digits for k: 00001/000010003.jpg. This is the
    number of the row only if shards have 10^d samples, and then samples of all k are there.
    """
    shards: dict[int, list[int]] = {}
    digits = set()
    for path in (path for paths in files.values() for path in paths):
        parent, name = os.path.split(path)
        shard, stem = os.path.basename(parent), os.path.splitext(name)[0]
        if not _is_number(stem):
            continue
        if not (shard.isdecimal() and stem.startswith(shard)):
            return
        digits.add(len(stem) - len(shard))
        shards.setdefault(int(shard), []).append(int(stem[len(shard) :] or 0))
    shards.pop(max(shards, default=0), None)  # the last one need not be full
    numbers = [number for found in shards.values() for number in found]
    if len(digits) > 1 or not numbers:
        return
    size, highest = 10 ** digits.pop(), max(numbers)
    # If downloads fail at random, this is how likely it is that none above the highest is there.
    if ((highest + 1) / size) ** len(numbers) < _UNLIKELY:
        raise ValueError(
            f"the shards in {images} have no sample above {highest:,}, although their names have "
            f"room for {size:,}, so the numbers are hardly those of the rows of {table}, and "
            "captions would go to other images. img2dataset numbers rows only if "
            "number_sample_per_shard is a power of ten; otherwise let it write the captions too, "
            f"and open its output without the table. If it was {size:,}, pass --first-row 0"
        )


def _is_number(stem: str) -> bool:
    return stem.isdecimal() and len(stem) < 32  # hexadecimal digests are longer


def _files_by_stem(folder: Path, skipped: SkipReport) -> tuple[dict[str, list[str]], list[str]]:
    """Return image files below a folder by stem without leading zeros, and the folders they are in.

    Files without a suffix are included: some downloaders write none.
    """
    files: dict[str, list[str]] = {}
    folders: list[str] = []
    for parent, names in walk(folder, skipped):
        folders.append(parent)
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in IMAGE_SUFFIXES or not suffix:
                number, bar, rest = stem.partition("_")
                if _is_number(number) and len(stem) < 32:
                    stem = str(int(number)) + bar + rest
                files.setdefault(stem, []).append(os.path.normpath(os.path.join(parent, name)))
    return files, folders
