"""Tables of images and captions: CSV or TSV with a header, Google's CC3M TSV with a folder."""

from __future__ import annotations

import csv
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from .captions import clean_caption, is_text
from .dataset import Encoded, FileDataset, digest
from .files import Strings
from .images import IMAGE_SUFFIXES, read_bytes
from .skips import NOT_DOWNLOADED, SkipReport

IMAGE_KEYS = ("image", "filepath", "path", "file", "image_path", "filename")
CAPTION_KEYS = ("caption", "title", "text")

# How downloaders name the file of a row: (what it is called here, row number and url -> stem).
# Row numbers count from 0, without leading zeros here: the folder's names are stripped of them.
NAMINGS: tuple[tuple[str, Callable[[int, str], str]], ...] = (
    ("row number", lambda row, url: str(row)),
    ("row number_crc32(url)", lambda row, url: f"{row}_{zlib.crc32(url.encode())}"),
    ("md5(url)", lambda row, url: hashlib.md5(url.encode(), usedforsecurity=False).hexdigest()),
    ("sha1(url)", lambda row, url: hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()),
    ("sha256(url)", lambda row, url: hashlib.sha256(url.encode()).hexdigest()),
)


def typed_separator(typed: str | None) -> str | None:
    """A tab, where a shell has passed on backslash and t; else what was typed."""
    return "\t" if typed == r"\t" else typed


class TableDataset(FileDataset):
    """Image files of a table, each with the captions of all rows that name it."""

    def __init__(
        self,
        name: str,
        table: Path,
        folder: Path,
        rows: Iterable[tuple[str, str]],  # (path relative to folder, or absolute; caption)
        skipped: SkipReport,
    ) -> None:
        self.name = name
        self.table = table
        self.folder = folder
        self.skipped = skipped
        # One record per image: rows of their own would put one image into training and validation.
        captions_of: dict[str, list[str]] = {}
        for path, caption in rows:
            captions_of.setdefault(path, []).append(caption)
        self._paths = Strings(captions_of)
        self._captions = Strings(chain.from_iterable(captions_of.values()))
        self._starts = np.cumsum([0, *map(len, captions_of.values())], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._paths)

    def encoded(self, index: int) -> Encoded:
        """Read the file of image `index`, in order of first mention."""
        path = self.folder / self._paths[index]
        captions = tuple(
            self._captions[i] for i in range(self._starts[index], self._starts[index + 1])
        )
        return Encoded(read_bytes(path, str(path)), str(path), captions)

    def fingerprint(self) -> str:
        """See ImageDataset.fingerprint."""
        paths, captions = self._paths, self._captions
        return digest(paths.ends, paths.data, captions.ends, captions.data, self._starts)


def read_table(
    path: Path,
    *,
    separator: str | None = None,
    image_key: str | None = None,
    caption_key: str | None = None,
) -> TableDataset:
    """A CSV or TSV with a header: CyCLIP's `image,caption`, open_clip's `filepath,title`, others.

    separator: of the columns; default: a tab if the header has one, otherwise a comma.
    image_key, caption_key: names of the columns; default: the first of IMAGE_KEYS and CAPTION_KEYS
    that the header has. Relative image paths are relative to the file's folder. Rows that name the
    same image become one record with several captions. That an image exists is found out on
    reading it.

    Raises ValueError where a column is not in the header (names the header), and with the line
    where a quote is never closed or the separator is not one character.
    """
    if separator is not None and len(separator) != 1:
        raise ValueError(f"separator (--csv-separator) must be one character, got {separator!r}")
    skipped = SkipReport()
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        # The blank line at the end is a row of its own, unless a quote is still open there.
        # A NUL, which csv refuses before Python 3.11, becomes another byte that is no UTF-8.
        lines = chain((line.replace("\0", "\udcff") for line in file), ["\n"])
        first = next(lines, "")
        if separator is None:
            separator = "\t" if "\t" in first else ","
        header = next(_csv_rows(path, [first], separator, 1), (1, []))[1]
        image_column = _column(path, header, "image_key (--csv-img-key)", image_key, IMAGE_KEYS)
        caption_column = _column(
            path, header, "caption_key (--csv-caption-key)", caption_key, CAPTION_KEYS
        )
        rows: list[tuple[str, str]] = []
        line, fields = 2, list[str]()
        for line, fields in _csv_rows(path, lines, separator, 2):
            where = f"{path}:{line}"
            if not fields:
                continue
            if len(fields) <= max(image_column, caption_column):
                skipped.add("too few columns", where)
                continue
            caption = _usable_caption(fields[caption_column], where, skipped)
            if caption is None:
                continue
            if not fields[image_column].strip():
                skipped.add("no image named", where)
                continue
            rows.append((os.path.normpath(fields[image_column]), caption))
        if fields:
            raise ValueError(f"{path}:{line}: a quote is opened in this row and never closed")
    return TableDataset(f"table {path}", path, path.parent, rows, skipped)


def read_google_tsv(
    path: Path,
    images: Path,
    *,
    first_row: int = 0,
) -> TableDataset:
    """CC3M as Google publishes it, caption<TAB>url without a header, with a folder of downloads.

    The file of a row is looked for anywhere below `images`, with any image suffix or none, under
    the namings of NAMINGS; the one that fits most rows is taken for all and stands in `source`.
    first_row: the number of the first row in the file names, 0 or 1.

    Raises ValueError where no naming fits a single row, and where captions would go to other rows'
    pictures: the numbers seem to start at 1 while first_row is 0, or there are numbers above that
    of the last row. img2dataset numbers within shards: its names are row numbers only where the
    samples per shard are a power of ten.
    """
    skipped = SkipReport()
    rows, last = _google_rows(path, first_row, skipped)
    files = _files_by_stem(images)
    matches = {
        name: sum(naming(number, url) in files for number, _, url in rows)
        for name, naming in NAMINGS
    }
    best = max(matches, key=lambda name: matches[name])
    if not matches[best]:
        names = ", ".join(name for name, _ in NAMINGS)
        raise ValueError(
            f"none of the {len(files):,} image files in {images} is named after a row of {path}; "
            f"known namings: {names}"
        )
    if best == "row number" and first_row == 0 and "0" not in files and str(last + 1) in files:
        raise ValueError(
            f"the file names in {images} seem to count from 1 (no 0, but {last + 1}): "
            "pass --first-row 1 (first_row=1)"
        )
    if best == "row number":
        beyond = [
            stem for stem in files if stem.isdecimal() and len(stem) < 32 and int(stem) > last
        ]
        if beyond:
            raise ValueError(
                f"{len(beyond):,} file(s) in {images} have numbers above {last:,}, the last row of "
                f"{path} (e.g. {files[beyond[0]]}): where they are not row numbers, captions would "
                "go to other rows' pictures. img2dataset's are only if number_sample_per_shard is "
                "a power of ten; otherwise let it write the captions too and open its output "
                "without the table. Remove files that do not belong to the table"
            )
    naming = dict(NAMINGS)[best]
    found: list[tuple[str, str]] = []
    for number, caption, url in rows:
        file = files.get(naming(number, url))
        if file is None:
            skipped.add(NOT_DOWNLOADED, f"{path}: row {number} ({url})")
        else:
            found.append((file, caption))
    source = f"{path} with images by {best} in {images}"
    return TableDataset(source, path, images, found, skipped)


def _csv_rows(
    path: Path, lines: Iterable[str], separator: str, start: int
) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, fields) of each row; csv's errors as ValueError with the line."""
    reader = csv.reader(lines, delimiter=separator)
    while True:
        line = start + reader.line_num
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # mostly an open quote: a field of 128 KiB
            raise ValueError(f"{path}:{line}: {error}; is a quote never closed?") from None
        yield line, fields


def is_google_tsv(path: Path) -> bool:
    """Whether the second column of the first line is a web address: then there is no header."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        fields = file.readline().rstrip("\r\n").split("\t")
    return len(fields) == 2 and fields[1].startswith(("http://", "https://"))


def _google_rows(
    path: Path, first_row: int, skipped: SkipReport
) -> tuple[list[tuple[int, str, str]], int]:
    """(number, caption, url) per usable line, and the number of the last line, usable or not.

    Quotes in captions mean nothing special here.
    """
    rows: list[tuple[int, str, str]] = []
    number = first_row
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, start=first_row):
            where = f"{path}: row {number}"
            fields = line.rstrip("\r\n").split("\t")
            if len(fields) != 2:
                skipped.add("not two columns", where)
                continue
            caption = _usable_caption(fields[0], where, skipped)
            if caption is None:
                continue
            if not is_text(fields[1]):
                skipped.add("bad encoding", where)
                continue
            rows.append((number, caption, fields[1].strip()))
    return rows, number


def _files_by_stem(folder: Path) -> dict[str, str]:
    """Image files below a folder, relative to it, by name without suffix and leading zeros.

    A file without suffix counts too: some downloaders write none.
    """
    files: dict[str, str] = {}
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in IMAGE_SUFFIXES or not suffix:
                # Hexadecimal digests keep their zeros: only a decimal number is padded.
                number, bar, rest = stem.partition("_")
                if number.isdecimal() and len(stem) < 32:
                    stem = str(int(number)) + bar + rest
                files[stem] = os.path.relpath(os.path.join(parent, name), folder)
    return files


def _usable_caption(text: str, where: str, skipped: SkipReport) -> str | None:
    if not is_text(text):
        skipped.add("bad encoding", where)
        return None
    caption = clean_caption(text)
    if not caption:
        skipped.add("empty caption", where)
        return None
    return caption


def _column(
    path: Path, header: list[str], argument: str, key: str | None, defaults: tuple[str, ...]
) -> int:
    for candidate in (key,) if key is not None else defaults:
        if candidate in header:
            return header.index(candidate)
    wanted = repr(key) if key is not None else "one of " + ", ".join(defaults)
    raise ValueError(f"{path} has the columns {header}, but {argument} is {wanted}")
