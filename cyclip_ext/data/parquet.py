"""Parquet files: img2dataset's output, tables of image files, and images stored in a column."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._files import regular_size
from .._output import counted
from .captions import usable_captions
from .columns import Columns, Strings, StringWriter, cached
from .dataset import Encoded, FileDataset, digest
from .folders import content_state, is_image, size_of, walk
from .options import ReadOptions
from .pairs import PairWriter, TableDataset
from .skips import NO_ROW, NOT_DOWNLOADED, BadRecord, MissingData, SkipReport
from .tables import CAPTION_KEYS, IMAGE_KEYS, column_of

_STATUS = "status"  # of img2dataset's rows
_PLACE = np.dtype([("file", "<i4"), ("group", "<i4"), ("row", "<i4")])
_ENCODED_KEYS = ("jpg", "jpeg", "png", "webp")  # img2dataset names the column by the format


def read_parquet(files: Sequence[Path], options: ReadOptions) -> FileDataset:
    """Open parquet files with a column of captions and one of images.

    The images are, in this order: encoded in a column (img2dataset with output_format parquet, or a
    struct of bytes and path, as Hugging Face datasets have it); named in a column (IMAGE_KEYS); or
    files named by the column "key", which img2dataset writes beside its output of files. The
    default of the option images is a folder near the first parquet file.

    Rows whose "status" is not success are counted as not downloaded. Encoded images are read by row
    group: random access to large ones is slow, and tar shards are the better format.

    Raises ValueError if no file can be read and if a column is missing (names those that are
    there), MissingData without pyarrow.
    """
    schema = _schema(files)
    names, keys = schema.names, (options.csv_img_key, options.csv_caption_key)
    caption = names[column_of(files[0], names, "--csv-caption-key", keys[1], CAPTION_KEYS)]
    encoded = _encoded_column(schema, keys[0])
    folder = files[0].parent
    if encoded is not None:
        states = [content_state(file) for file in files]  # before they are indexed
        columns = cached(
            folder,
            [[str(file) for file in files], *keys],
            files,
            lambda place: _index(files, caption, encoded, place),
        )
        return ParquetDataset(files, states, encoded, columns)
    defaults = (*IMAGE_KEYS, "key")
    image = names[column_of(files[0], names, "--csv-img-key", keys[0], defaults)]
    if image == "key":
        return _by_key(files, options.folder or folder, caption)
    pairs = PairWriter(None)
    for _, where, (name, text) in _rows(files, [image, caption], pairs.skipped):
        pairs.add(where, name.strip() if isinstance(name, str) else name, [text])
    dataset = TableDataset(_name(files), pairs.columns(), folder)
    dataset.find_images(files[0], options.folder)
    return dataset


def _schema(files: Sequence[Path]) -> Any:
    """Return the columns of the first file that can be read; the others are counted later."""
    reasons = []
    for path in files:
        try:
            return _open(path).schema_arrow
        except _errors() as error:
            reasons.append(f"{path}: {error}")
    raise ValueError(f"no parquet file can be read: {reasons[0]}; write or copy it again")


def _open(path: Path) -> Any:
    regular_size(path)  # opening a FIFO would never end
    return _arrow().parquet.ParquetFile(path)


def _errors() -> tuple[type[Exception], ...]:
    """Return the errors of damaged files, and of codecs that this pyarrow lacks."""
    return (OSError, ValueError, KeyError, _arrow().ArrowException)


def _by_key(files: Sequence[Path], folder: Path, caption: str) -> TableDataset:
    """Open img2dataset's image files, whose names are the keys of the rows."""
    pairs = PairWriter(None)
    known: dict[str, list[str]] = {}
    for parent, names in walk(folder, pairs.skipped):
        for name in filter(is_image, names):
            path = os.path.normpath(os.path.join(parent, name))
            known.setdefault(os.path.splitext(name)[0], []).append(path)
    used: set[str] = set()
    for _, where, (key, text) in _rows(files, ["key", caption], pairs.skipped):
        named = isinstance(key, str) and bool(key.strip())
        found = known.get(key.strip(), []) if named else [""]
        used.update(found)
        if len(found) == 1:
            pairs.add(where, found[0], [text])
        else:
            pairs.skipped.add("two images of one key" if found else "missing", f"{where} ({key})")
    for path in (path for paths in known.values() for path in paths if path not in used):
        pairs.skipped.add(NO_ROW, str(folder / path))
    columns = pairs.columns()
    if "starts" in columns.arrays:
        raise ValueError(
            f"{_name(files)}: a key occurs in two rows, so that images have two captions; "
            "remove one of them"
        )
    return TableDataset(_name(files), columns, folder)


def _name(files: Sequence[Path]) -> str:
    return f"{counted(len(files), 'parquet file')} in {files[0].parent}"


class ParquetDataset(FileDataset):
    """Images that are encoded in a column, each row a record."""

    def __init__(
        self,
        files: Sequence[Path],
        states: Sequence[tuple[int, int]],
        column: str,
        columns: Columns,
    ) -> None:
        self.name = _name(files)
        self.files = tuple(files)
        self._states = states
        self.skipped = SkipReport.from_dict(columns.meta["skipped"])
        self._column = column
        self._columns = columns
        self._group: tuple[tuple[int, int], Any] | None = None  # read last

    def __len__(self) -> int:
        return len(self._columns.strings("captions"))

    def encoded(self, index: int) -> Encoded:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be between 0 and {len(self) - 1}, got {index}")
        file, group, row = self._columns.arrays["places"][index].tolist()
        key = f"{self.files[file]}: row {row} of group {group}"
        known = self._group
        if known is None or known[0] != (file, group):
            try:
                table = _open(self.files[file]).read_row_group(group, columns=[self._column])
            except _errors() as error:
                raise BadRecord(f"unreadable ({type(error).__name__})", key) from None
            if content_state(self.files[file]) != self._states[file]:
                raise BadRecord("unreadable (file changed since it was opened)", key)
            self._group = known = ((file, group), table.column(0))
        value = known[1][row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not data:
            raise BadRecord("empty file", key)
        return Encoded(data, key, (self._columns.strings("captions")[index],))

    def fingerprint(self) -> str:
        return str(self._columns.meta["fingerprint"])

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_group": None}


def _rows(
    files: Sequence[Path], columns: list[str], skipped: SkipReport, unread: str | None = None
) -> Iterator[tuple[tuple[int, int, int], str, list[Any]]]:
    """Yield ((file, row group, row), where, values) of rows that were downloaded.

    unread: a column that must be there as well; its values are read later.
    """
    counts: list[int] = []
    broken: list[str] = []
    for number, path in enumerate(files):
        try:
            file = _open(path)
            if unread is not None and unread not in file.schema_arrow.names:
                raise KeyError(f"no column {unread!r}")
            read = [*columns, *({_STATUS} & set(file.schema_arrow.names))]
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, columns=read).select(read).to_pylist()
                for row, values in enumerate(rows):
                    where = f"{path}: row {row} of group {group}"
                    if values.get(_STATUS, "success") != "success":
                        skipped.add(NOT_DOWNLOADED, where)
                    else:
                        yield (number, group, row), where, [values[name] for name in columns]
            counts.append(file.metadata.num_rows)
        except _errors() as error:
            broken.append(f"{path}: {type(error).__name__}: {error}")
    usual = max(1, round(sum(counts) / max(len(counts), 1)))
    for reason in broken:
        where = f"{reason}; about {counted(usual, 'row')} lost (estimated)"
        skipped.add("unreadable parquet", where, usual)


def _index(files: Sequence[Path], caption: str, image: str, folder: Path | None) -> Columns:
    skipped = SkipReport()
    captions = StringWriter(folder)
    places: list[tuple[int, int, int]] = []
    for place, where, (text,) in _rows(files, [caption], skipped, image):
        try:
            (cleaned,) = usable_captions([text], where)
        except BadRecord as bad:
            skipped.add(bad.reason, bad.where)
        else:
            captions.append(cleaned.encode())
            places.append(place)
    data, ends = captions.arrays()
    arrays: dict[str, Any] = {
        "captions.data": data,
        "captions.ends": ends,
        "places": np.array(places, _PLACE),
    }
    names = repr([(path.name, size_of(path)) for path in files])
    fingerprint = digest(Strings(data, ends).digest(), arrays["places"], names)
    return Columns(arrays, {"skipped": skipped.to_dict(), "fingerprint": fingerprint})


def _encoded_column(schema: Any, image_key: str | None) -> str | None:
    """Return the name of the column that has encoded images."""
    kinds = _arrow().types
    for name in (image_key,) if image_key is not None else (*_ENCODED_KEYS, *IMAGE_KEYS):
        if name in schema.names:
            kind = schema.field(name).type
            struct = kinds.is_struct(kind) and kind.get_field_index("bytes") >= 0
            if kinds.is_binary(kind) or kinds.is_large_binary(kind) or struct:
                return name
    return None


def _arrow() -> Any:
    try:
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        raise MissingData("reading parquet files needs pyarrow: pip install pyarrow") from None
    return pyarrow
