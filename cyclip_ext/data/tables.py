"""Tables of images with captions or labels: CSV and TSV with a header, Flickr's token file."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .columns import Columns, cached
from .delimited import SEPARATORS, DelimitedRows, TextFile, split_header
from .options import ReadOptions
from .pairs import PairWriter, TableDataset

IMAGE_KEYS = (
    *("image", "filepath", "path", "file", "image_path", "filename"),
    *("image_name", "file_name", "img"),
)
CAPTION_KEYS = ("caption", "title", "text", "comment")
LABEL_KEYS = ("label", "class", "class_name", "target")

_NUMBERED = re.compile(rf"(?:{'|'.join(CAPTION_KEYS)})[ _-]?\d+")
_TOKEN = re.compile(r"[^\t]*\.\w+#\d+\t")


def read_table(
    path: Path, options: ReadOptions | None = None, *, labels: bool = False
) -> TableDataset:
    """Open a CSV or TSV with a header, or Flickr's token file.

    Defaults of the options: images: see TableDataset.find_images. csv_separator: the first of tab,
    comma, semicolon and vertical bar for which the header has the columns. csv_img_key,
    csv_caption_key: the first of IMAGE_KEYS and CAPTION_KEYS that the header has; columns called
    caption_0, caption_1 are captions as well. csv_label_key: none. csv_quoting: see DelimitedRows.
    labels: for evaluation, the table has captions or labels (LABEL_KEYS).

    Rows that name the same image become one record with several captions. Whether an image exists
    is found out on reading it. The columns are stored beside the table, see `cached`.

    Raises ValueError if a column is not in the header (names the header), if the separator is not
    one character, and if an image has two labels.
    """
    options = options or ReadOptions()
    separator = options.csv_separator
    separator = "\t" if separator == r"\t" else separator  # some shells pass on both characters
    if separator is not None and len(separator) != 1:
        raise ValueError(f"separator (--csv-separator) must be one character, got {separator!r}")
    file = TextFile(path)
    keys = (options.csv_img_key, options.csv_caption_key, options.csv_label_key)
    quoting = options.csv_quoting or "auto"

    def build(folder: Path | None) -> Columns:
        layout = None if is_token_file(path) else _layout(file, separator, keys, labels)
        return _columns(file, layout, quoting, folder)

    columns = cached(path.parent, [path.name, separator, keys, quoting, labels], [path], build)
    if columns.meta["warning"]:
        warnings.warn(columns.meta["warning"], stacklevel=2)
    dataset = TableDataset(f"table {path}", columns, path.parent)
    dataset.find_images(path, options.folder)
    return dataset


def is_token_file(path: Path) -> bool:
    """Return whether the lines are Flickr's: name#number<TAB>caption, without a header."""
    return _TOKEN.match(TextFile(path).first_line()) is not None


@dataclass(frozen=True)
class _Layout:
    separator: str
    columns: int
    image: int
    captions: tuple[int, ...]
    label: int | None


def _layout(
    file: TextFile,
    separator: str | None,
    keys: tuple[str | None, str | None, str | None],
    labels: bool,
) -> _Layout:
    """Find the columns in the header."""
    line = file.first_line()
    headers = {s: split_header(line, s) for s in ([separator] if separator else SEPARATORS)}
    errors: dict[str, ValueError] = {}
    for each, header in headers.items():
        try:
            image = column_of(file.path, header, "image_key (--csv-img-key)", keys[0], IMAGE_KEYS)
            captions, label = _texts(file.path, header, keys[1], keys[2], labels)
            return _Layout(each, len(header), image, captions, label)
        except ValueError as error:
            errors[each] = error
    likely = max(headers, key=lambda s: len(headers[s]))
    what = "" if separator else f" (--csv-separator; taken for {SEPARATORS[likely]})"
    raise ValueError(f"{errors[likely]}; columns are separated by {likely!r}{what}")


def _texts(
    path: Path, header: list[str], caption_key: str | None, label_key: str | None, labels: bool
) -> tuple[tuple[int, ...], int | None]:
    """Return the columns of captions and of labels."""
    caption_name, label_name = "caption_key (--csv-caption-key)", "label_key (--csv-label-key)"
    label: int | None = None
    if label_key is not None or (labels and caption_key is None and _known(header, LABEL_KEYS)):
        label = column_of(path, header, label_name, label_key, LABEL_KEYS)
    wanted = caption_key is not None or not labels
    captions: list[int] = []
    if caption_key is None and (wanted or label_key is None):
        captions += [i for i, name in enumerate(header) if _NUMBERED.fullmatch(name.casefold())]
    known = caption_key is not None or (label_key is None and _known(header, CAPTION_KEYS))
    if known or (wanted and not captions):
        captions.insert(0, column_of(path, header, caption_name, caption_key, CAPTION_KEYS))
    if labels and captions and label is not None and None in (caption_key, label_key):
        raise ValueError(
            f"{path} has labels and captions (columns {header}): name the column to evaluate with "
            "--csv-label-key or --csv-caption-key"
        )
    if not captions and label is None:
        raise ValueError(
            f"{path} has the columns {header}; it needs one of {', '.join(LABEL_KEYS)} or of "
            f"{', '.join(CAPTION_KEYS)}, or {label_name} or {caption_name}"
        )
    return tuple(captions), label


def _known(header: list[str], defaults: Sequence[str]) -> bool:
    return any(name.casefold() in defaults for name in header)


def column_of(
    path: Path, header: list[str], argument: str, key: str | None, defaults: Sequence[str]
) -> int:
    """Return the index of the column called `key`, or of the first of defaults; case may differ."""
    for candidate in (key,) if key is not None else defaults:
        for names in (header, [name.casefold() for name in header]):
            if names.count(candidate.strip()) > 1:
                raise ValueError(
                    f"{path} has several columns called {candidate!r} ({header}); "
                    "rename all but one"
                )
            if candidate.strip() in names:
                return names.index(candidate.strip())
    if key is None:
        raise ValueError(
            f"{path} has the columns {header}, but none of {', '.join(defaults)}; name the column "
            f"with {argument}"
        )
    raise ValueError(
        f"{argument} is {key!r}, but {path} has the columns {header}; name one of them"
    )


def _columns(file: TextFile, layout: _Layout | None, quoting: str, folder: Path | None) -> Columns:
    """Read all rows; layout: None for lines of name#number<TAB>caption, without quoting."""
    if layout is None:
        rows = DelimitedRows(file, "\t", 2, 0, header=False, quoting="none")
    else:
        rows = DelimitedRows(file, layout.separator, layout.columns, layout.image, quoting=quoting)
    pairs = PairWriter(folder, captioned=layout is None or bool(layout.captions))
    for row in rows:
        where, fields = f"{file.path}:{row.line}", row.fields
        if row.reason:
            pairs.skipped.add(row.reason, where)
        elif layout is None:
            name, _, number = fields[0].rpartition("#")
            pairs.add(where, name.strip() if number.strip().isdecimal() else "", fields[1:2])
        else:
            image = fields[layout.image].strip().removeprefix("\ufeff")  # of an appended file
            texts = [fields[index] for index in layout.captions]
            label = None if layout.label is None else fields[layout.label]
            pairs.add(where, image, texts, label, row.line)
    return pairs.columns(rows.quoting.warning(file.path))
