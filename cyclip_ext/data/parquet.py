"""Parquet files: img2dataset's output, tables of image files, and images stored in a column."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._files import regular_size
from .captions import clean_caption, is_text
from .columns import Columns, Strings, StringWriter, cached, file_state
from .dataset import Encoded, FileDataset, digest
from .folders import is_image, walk
from .skips import NOT_DOWNLOADED, BadRecord, MissingData, SkipReport
from .tables import CAPTION_KEYS, IMAGE_KEYS, LOOKED_AT, PairWriter, TableDataset, find_image_folder

_VERSION = 2
_STATUS = "status"  # of img2dataset's rows
_PLACE = np.dtype([("file", "<i4"), ("group", "<i4"), ("row", "<i4")])
_ENCODED_KEYS = ("jpg", "jpeg", "png", "webp")  # img2dataset names the column by the format


def read_parquet(
    files: Sequence[Path],
    *,
    images: Path | None = None,
    image_key: str | None = None,
    caption_key: str | None = None,
) -> FileDataset:
    """Open parquet files with a column of captions and one of images.

    The images are, in this order: encoded in a column (img2dataset with output_format parquet, or a
    struct of bytes and path, as Hugging Face datasets have it); named in a column (IMAGE_KEYS); or
    files named by the column "key", which img2dataset writes beside its output of files. images:
    the folder of image files, default: near the first parquet file.

    Rows whose "status" is not success are counted as not downloaded. Encoded images are read by row
    group: random access to large ones is slow, and tar shards are the better format.

    Raises ValueError if a column is missing (names those that are there), MissingData without
    pyarrow.
    """
    schema = _schema(files)
    caption = _column(files[0], schema.names, caption_key, CAPTION_KEYS, "--csv-caption-key")
    encoded = _encoded_column(schema, image_key)
    state = [_VERSION, [[str(f.name), file_state(f)] for f in files], image_key, caption_key]
    folder = files[0].parent
    if encoded is not None:
        columns = cached(
            folder, repr(state[1:]), state, lambda place: _index(files, caption, encoded, place)
        )
        return ParquetDataset(files, encoded, columns)
    defaults = (*IMAGE_KEYS, "key")
    image = _column(files[0], schema.names, image_key, defaults, "--csv-img-key")
    if image == "key":
        return _by_key(files, images or folder, caption)
    pairs = PairWriter(None)
    for _, name, text in _rows(files, image, caption, pairs.skipped):
        pairs.add(name, [text])
    dataset = TableDataset(_name(files), pairs.columns(), folder)
    first = [dataset.image_name(i) for i in range(min(LOOKED_AT, len(dataset)))]
    dataset.folder = images or find_image_folder(files[0], first)[0] or folder
    return dataset


def _schema(files: Sequence[Path]) -> Any:
    """Return the columns of the first file that can be read; the others are counted later."""
    errors = []
    for path in files:
        try:
            return _open(path).schema_arrow
        except (OSError, ValueError) as error:
            errors.append(f"{path}: {error}")
    raise ValueError(f"no parquet file can be read: {errors[0]}")


def _open(path: Path) -> Any:
    regular_size(path)  # opening a FIFO would never end
    return _pyarrow().ParquetFile(path)


def _by_key(files: Sequence[Path], folder: Path, caption: str) -> TableDataset:
    """Open img2dataset's image files, whose names are the keys of the rows."""
    pairs = PairWriter(None)
    known: dict[str, list[str]] = {}
    for parent, names in walk(folder, pairs.skipped):
        for name in filter(is_image, names):
            path = os.path.normpath(os.path.join(parent, name))
            known.setdefault(os.path.splitext(name)[0], []).append(path)
    for where, key, text in _rows(files, "key", caption, pairs.skipped):
        found = known.get(key, [])
        if len(found) == 1:
            pairs.add(found[0], [text])
        else:
            pairs.skipped.add("two images of one key" if found else "missing", f"{where} ({key})")
    columns = pairs.columns()
    if "starts" in columns.arrays:
        raise ValueError(
            f"{_name(files)}: a key occurs in two rows, so that images have two captions"
        )
    return TableDataset(_name(files), columns, folder)


def _name(files: Sequence[Path]) -> str:
    return f"{len(files)} parquet file(s) in {files[0].parent}"


class ParquetDataset(FileDataset):
    """Images that are encoded in a column, each row a record."""

    def __init__(self, files: Sequence[Path], column: str, columns: Columns) -> None:
        self.name = _name(files)
        self.files = tuple(files)
        self.skipped = SkipReport.from_dict(columns.meta["skipped"])
        self._column = column
        self._columns = columns
        self._group: tuple[tuple[int, int], Any] | None = None  # read last

    def __len__(self) -> int:
        return len(self._columns.strings("captions"))

    def encoded(self, index: int) -> Encoded:
        """See FileDataset.encoded."""
        if not 0 <= index < len(self):
            raise IndexError(f"index must be between 0 and {len(self) - 1}, got {index}")
        file, group, row = self._columns.arrays["places"][index].tolist()
        key = f"{self.files[file]}: row {row} of group {group}"
        known = self._group
        if known is None or known[0] != (file, group):
            try:
                table = _open(self.files[file]).read_row_group(group, columns=[self._column])
            except (OSError, ValueError) as error:
                raise BadRecord(f"unreadable ({type(error).__name__})", key) from None
            self._group = known = ((file, group), table.column(0))
        value = known[1][row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not data:
            raise BadRecord("empty file", key)
        return Encoded(data, key, (self._columns.strings("captions")[index],))

    def fingerprint(self) -> str:
        """See ImageDataset.fingerprint."""
        return str(self._columns.meta["fingerprint"])

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_group": None}


def _rows(
    files: Sequence[Path], image: str, caption: str, skipped: SkipReport
) -> Iterator[tuple[str, str, str]]:
    """Yield (where, name of the image, caption) of usable rows."""
    for _, where, values in _values(files, [image, caption], skipped):
        name, text = values
        if not isinstance(name, str) or not name.strip():
            skipped.add("no image named", where)
            continue
        cleaned = _caption(text, where, skipped)
        if cleaned:
            yield where, name.strip(), cleaned


def _caption(text: object, where: str, skipped: SkipReport) -> str:
    cleaned = clean_caption(text) if isinstance(text, str) else ""
    if not cleaned:
        skipped.add("empty caption", where)
    elif not is_text(cleaned):
        skipped.add("bad encoding", where)
        return ""
    return cleaned


def _values(
    files: Sequence[Path], columns: list[str], skipped: SkipReport, unread: str | None = None
) -> Iterator[tuple[tuple[int, int, int], str, list[Any]]]:
    """Yield ((file, row group, row), where, values) of rows that were downloaded.

    unread: a column that must be there as well; its values are read later.
    """
    counts: list[int] = []
    broken: list[tuple[Path, str]] = []
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
        except (OSError, ValueError, KeyError) as error:
            broken.append((path, f"{type(error).__name__}: {error}"))
    usual = max(1, round(sum(counts) / max(len(counts), 1)))
    for path, reason in broken:
        detail = f"{path}: {reason}; about {usual:,} row(s) lost (estimated)"
        skipped.add("unreadable parquet", detail, usual)


def _index(files: Sequence[Path], caption: str, image: str, folder: Path | None) -> Columns:
    skipped = SkipReport()
    captions = StringWriter(folder)
    places: list[tuple[int, int, int]] = []
    for place, where, (text,) in _values(files, [caption], skipped, image):
        cleaned = _caption(text, where, skipped)
        if cleaned:
            captions.append(cleaned.encode())
            places.append(place)
    data, ends = captions.arrays()
    arrays: dict[str, Any] = {
        "captions.data": data,
        "captions.ends": ends,
        "places": np.array(places, _PLACE),
    }
    names = repr([(path.name, (file_state(path) or [-1])[0]) for path in files])
    fingerprint = digest(Strings(data, ends).digest(), arrays["places"], names)
    return Columns(arrays, {"skipped": skipped.to_dict(), "fingerprint": fingerprint})


def _encoded_column(schema: Any, image_key: str | None) -> str | None:
    """Return the name of the column that has encoded images."""
    import pyarrow as pa  # type: ignore[import-untyped]

    for name in (image_key,) if image_key is not None else (*_ENCODED_KEYS, *IMAGE_KEYS):
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                return name
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                return name
    return None


def _column(
    path: Path, names: list[str], key: str | None, defaults: Sequence[str], flag: str
) -> str:
    for candidate in (key,) if key is not None else defaults:
        if candidate in names:
            return candidate
    if key is None:
        raise ValueError(
            f"{path} has the columns {names}, but none of {', '.join(defaults)}; name the column "
            f"with {flag}"
        )
    raise ValueError(f"{flag} is {key!r}, but {path} has the columns {names}; name one of them")


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        raise MissingData("reading parquet files needs pyarrow: pip install pyarrow") from None
    return pyarrow.parquet
