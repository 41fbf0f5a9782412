"""A CSV or TSV with a header: pictures with a label each, or with captions."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...data import SkipReport
from ...data.captions import clean_caption, is_text
from ...data.tables import CAPTION_KEYS, IMAGE_KEYS
from .files import ImageFiles
from .names import CLASS_NAMES_FILE, read_names

LABEL_KEYS = ("label", "class", "class_name", "target")


def open_table(path: Path) -> ImageFiles:
    """A table with an image column (IMAGE_KEYS) and a label column or caption columns.

    label (LABEL_KEYS): the name of the class. Where `classnames.txt` lies beside the table, its
        lines are the classes, and labels are such names, or all of them numbers: line k is that of
        label k, the first line that of 0. Without the file, classes are the labels that occur,
        numbers in their order, others in that of the alphabet.
    captions: every column called caption, title or text, or whose name begins with "caption"
        (caption_0, caption_1). Rows that name the same picture add up.
    The separator is a tab if the header has one, else a comma. Relative paths are relative to the
    table's folder; whether a picture is there is found out on opening it.

    Rows that cannot be used are counted in `skipped`. Raises ValueError, naming the file, the line
    and the header, where columns are missing, a quote is never closed, a label is no line of
    classnames.txt, and where no row is left.
    """
    header, rows = _read(path)
    image_column = next((header.index(key) for key in IMAGE_KEYS if key in header), None)
    label_column = next((header.index(key) for key in LABEL_KEYS if key in header), None)
    caption_columns = [
        column
        for column, key in enumerate(header)
        if key in CAPTION_KEYS or key.startswith("caption")
    ]
    if image_column is None or (label_column is None and not caption_columns):
        raise ValueError(
            f"{path} has the columns {header}; it needs one of {', '.join(IMAGE_KEYS)} and one of "
            f"{', '.join(LABEL_KEYS)} or of {', '.join(CAPTION_KEYS)}"
        )
    if label_column is not None and caption_columns:
        raise ValueError(
            f"{path} has labels and captions (columns {header}): write a table for each"
        )
    columns = caption_columns if label_column is None else [label_column]
    read = _images_with_texts(path, rows, image_column, columns)
    if not read.texts:
        raise ValueError(f"{path} has no row that can be used: {read.skipped}")
    if label_column is None:
        captions = tuple(tuple(texts) for texts in read.texts.values())
        paths = read.paths(path.parent)
        return ImageFiles(path.stem, paths, captions=captions, skipped=read.skipped)
    return _classified(path, read)


@dataclass(frozen=True)
class _Read:
    """The texts of each picture, and the line of its first mention."""

    texts: dict[str, list[str]]
    lines: dict[str, int]
    skipped: SkipReport

    def paths(self, folder: Path) -> list[Path]:
        return [folder / name for name in self.texts]


def _images_with_texts(
    path: Path, rows: Iterator[tuple[int, list[str]]], image_column: int, columns: list[int]
) -> _Read:
    read = _Read({}, {}, SkipReport())
    for line, fields in rows:
        where = f"{path}:{line}"
        if len(fields) <= max(image_column, *columns):
            read.skipped.add("too few columns", where)
            continue
        image = fields[image_column].strip()
        cells = [fields[column] for column in columns]
        if not image:
            read.skipped.add("no image named", where)
        elif not all(map(is_text, [image, *cells])):
            read.skipped.add("bad encoding", where)
        else:
            texts = list(filter(None, map(clean_caption, cells)))
            if texts:
                read.texts.setdefault(image, []).extend(texts)
                read.lines.setdefault(image, line)
            else:
                read.skipped.add("empty label or caption", where)
    return read


def _classified(path: Path, read: _Read) -> ImageFiles:
    for image, texts in read.texts.items():
        if len(set(texts)) > 1:
            raise ValueError(
                f"{path}: {image} has several labels ({', '.join(sorted(set(texts)))}), but a "
                "picture has one class here"
            )
    label_of_image = [texts[0] for texts in read.texts.values()]
    found = set(label_of_image)
    numbers = all(label.isdecimal() for label in found)
    file = path.parent / CLASS_NAMES_FILE
    index: dict[str, int] = {}
    if file.is_file():
        names = read_names(file)
        if numbers:
            index = {label: int(label) for label in found if int(label) < len(names)}
        else:
            index = {name: number for number, name in enumerate(names)}
        for image, label in zip(read.texts, label_of_image, strict=True):
            if label not in index:
                raise ValueError(
                    f"{path}:{read.lines[image]}: label {label}, but {file} has {len(names)} lines "
                    f"and so names 0 .. {len(names) - 1}, and none of them is {label!r}"
                )
    else:
        names = tuple(sorted(found, key=int) if numbers else sorted(found))
        index = {name: number for number, name in enumerate(names)}
    return ImageFiles(
        path.stem,
        read.paths(path.parent),
        labels=[index[label] for label in label_of_image],
        class_names=names,
        skipped=read.skipped,
    )


def _read(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header and the rows that are not empty, with the line each begins in."""
    # surrogateescape: one bad row must not cost the table; is_text finds it. csv of Python 3.10
    # refuses NUL.
    text = path.read_bytes().decode("utf-8-sig", "surrogateescape").replace("\0", "\udcff")
    lines = text.split("\n")
    separator = "\t" if "\t" in lines[0] else ","

    def rows() -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader((line + "\n" for line in lines), delimiter=separator, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise ValueError(
                    f"{path}:{line}: {error}; is a quote never closed, or are lines not ended by "
                    "LF or CRLF?"
                ) from None
            if any(field.strip() for field in fields):
                yield line, fields

    remaining = rows()
    header = [field.strip() for field in next(remaining, (1, []))[1]]
    return header, remaining
