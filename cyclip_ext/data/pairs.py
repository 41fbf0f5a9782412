"""Image files by name, with captions or labels: columns of rows, and their dataset."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .captions import clean_caption, is_text, usable_captions
from .columns import Columns, Strings, StringWriter
from .dataset import Encoded, FileDataset, digest
from .folders import size_of
from .images import read_bytes
from .skips import BadRecord, SkipReport

_LOOKED_AT = 16  # names of images that are looked for in a folder
_SAMPLED = 64  # images by whose sizes folders of the same names are told apart


class TableDataset(FileDataset):
    """Image files by name, each with the captions of all rows that name it, and its label.

    columns: as PairWriter makes them. folder: of names that are relative.
    """

    def __init__(self, name: str, columns: Columns, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.skipped = SkipReport.from_dict(columns.meta["skipped"])
        self._columns = columns
        if "labels" in columns.arrays:
            self.labels = torch.from_numpy(columns.arrays["labels"].astype(np.int64))
            self.class_names = tuple(columns.meta["class_names"])

    def __len__(self) -> int:
        if "starts" in self._columns.arrays:
            return len(self._columns.arrays["starts"]) - 1
        return len(self._columns.strings("images"))

    def entries(self, indices: Any = None) -> int:
        """Return the number of rows of these records; None: of all."""
        starts = self._columns.arrays.get("starts")
        if starts is None:
            return super().entries(indices)
        if indices is None:
            return int(starts[-1])
        return int((starts[indices + 1] - starts[indices]).sum())

    def rows(self, index: int) -> list[int]:
        """Return the rows of record `index`, counted without those that were skipped."""
        arrays = self._columns.arrays
        if "starts" not in arrays:
            return [index]
        start, end = arrays["starts"][index : index + 2].tolist()
        found: list[int] = arrays["rows"][start:end].tolist()
        return found

    def image_name(self, index: int) -> str:
        """Return the name of the image in the table, as a normalized path."""
        return self._columns.strings("images")[self.rows(index)[0]]

    def line(self, index: int) -> int:
        """Return the line of the first row of a record. Only tables with labels have lines."""
        return int(self._columns.arrays["lines"][self.rows(index)[0]])

    def encoded(self, index: int) -> Encoded:
        """Read the file of image `index`, in order of first mention."""
        if not 0 <= index < len(self):
            raise IndexError(f"index must be between 0 and {len(self) - 1}, got {index}")
        rows = self.rows(index)
        path = self.folder / self._columns.strings("images")[rows[0]]
        captions: tuple[str, ...] = ()
        if self._columns.meta["captioned"]:
            strings = self._columns.strings("captions")
            captions = tuple(strings[row] for row in rows)
        return Encoded(read_bytes(path, str(path)), str(path), captions)

    def fingerprint(self) -> str:
        """See ImageDataset.fingerprint: names and captions of all records, sizes of some images."""
        some = range(0, len(self), max(1, len(self) // _SAMPLED))
        sizes = [size_of(self.folder / self.image_name(index)) for index in some]
        return digest(self._columns.meta["fingerprint"], repr(sizes))

    def find_images(self, table: Path, images: Path | None) -> list[Path]:
        """Set `folder` to `images`, or to the folder near a table that has one of its images.

        It is that of the table if one of the first images is there. Otherwise it is the one among
        these: its subfolders, the folder above it and `images` there, and beside the table's folder
        the one that the end of the table's name names (captions_val2017.json: val2017). If none has
        an image, it is that of the table, and the folders tried are returned.

        Raises ValueError if several folders have images of these names.
        """
        parent = self.folder = table.parent
        if images is not None:
            self.folder = images
            return []
        names = [self.image_name(index) for index in range(min(_LOOKED_AT, len(self)))]
        if any(map(os.path.isabs, names)) or _has_any(parent, names):
            return []
        above = parent.resolve().parent
        inside = sorted(
            Path(entry.path)
            for entry in os.scandir(parent)
            if entry.is_dir() and not entry.name.startswith(".")
        )
        near = [*inside, above, above / "images", above / table.stem.rpartition("_")[2]]
        found = {folder.resolve(): folder for folder in near if _has_any(folder, names)}
        if len(found) > 1:
            several = " and ".join(str(folder) for folder in list(found.values())[:2])
            raise ValueError(
                f"{table}: {several} both have images of these names: name one with images "
                "(--images)"
            )
        self.folder = next(iter(found.values()), parent)
        return [] if found else [parent, *near]


def _has_any(folder: Path, names: Sequence[str]) -> bool:
    # Unlike Path.is_file, it raises for no name, however long, and no folder.
    return any(os.path.isfile(folder / name) for name in names)


class PairWriter:
    """Gathers (image, captions, label) row by row and groups them by image.

    One record per image: rows of their own would put one image into training and validation.
    """

    def __init__(self, folder: Path | None, *, captioned: bool = True) -> None:
        self.skipped = SkipReport()
        self._captioned = captioned
        self._images = StringWriter(folder)
        self._captions = StringWriter(folder)
        self._hashes = array("q")
        self._labels = array("q")
        self._lines = array("q")
        self._class_names: dict[str, int] = {}

    def add(
        self,
        where: str,
        image: object,
        texts: Iterable[object],
        label: str | None = None,
        line: int = 0,
    ) -> None:
        """Add a row, or count it in `skipped` if it has no name of an image, text or label."""
        try:
            name = _file_name(image, where)
            captions = usable_captions(texts, where) if self._captioned else ("",)
            if label is not None:
                label = clean_caption(label)
                if not label or not is_text(label):
                    raise BadRecord("bad encoding" if label else "empty label", where)
        except BadRecord as bad:
            self.skipped.add(bad.reason, bad.where)
            return
        for caption in captions:
            self._images.append(name)
            self._hashes.append(_hash(name))
            if self._captioned:
                self._captions.append(caption.encode())
            if label is not None:
                self._labels.append(self._class_names.setdefault(label, len(self._class_names)))
                self._lines.append(line)

    def __len__(self) -> int:
        return len(self._images)

    def columns(self, warning: str = "") -> Columns:
        """Return the columns of all rows, with the labels of records, int32, in `labels`.

        Raises ValueError if an image has two labels.
        """
        images = Strings(*self._images.arrays())
        arrays: dict[str, Any] = {"images.data": images.data, "images.ends": images.ends}
        parts = [images.digest()]
        if self._captioned:
            captions = Strings(*self._captions.arrays())
            arrays |= {"captions.data": captions.data, "captions.ends": captions.ends}
            parts.append(captions.digest())
        grouped = _grouped(images, np.array(self._hashes, dtype=np.int64))
        if grouped is not None:
            arrays["starts"], arrays["rows"] = grouped
        names = list(self._class_names)
        if names:
            labels = np.array(self._labels, dtype=np.int32)
            lines = arrays["lines"] = np.array(self._lines, dtype=np.int64)
            if grouped is not None:
                labels = _label_of_records(images, labels, lines, grouped, names)
            arrays["labels"] = labels
            parts += [digest(arrays["labels"]), repr(names)]
        meta = {
            "skipped": self.skipped.to_dict(),
            "captioned": self._captioned,
            "class_names": names,
            "fingerprint": digest(*parts),
            "warning": warning,
        }
        return Columns(arrays, meta)


def _file_name(image: object, where: str) -> bytes:
    """Return the bytes of a file's name, which need not be UTF-8 (surrogateescape)."""
    if not isinstance(image, str) or not image.strip():
        raise BadRecord("no image named", where)
    try:
        encoded = os.path.normpath(image).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair
        encoded = b"\0"
    if b"\0" in encoded:
        raise BadRecord("bad encoding", where)
    return encoded


def _grouped(images: Strings, hashes: Any) -> tuple[Any, Any] | None:
    """Return where the rows of each image start in the second array, in order of first mention.

    None if no image occurs twice. Rows are compared by hash, then by name.
    """
    while True:
        ordered = np.sort(hashes)
        if not (ordered[1:] == ordered[:-1]).any():
            return None
        _, first, group, counts = np.unique(
            hashes, return_index=True, return_inverse=True, return_counts=True
        )
        repeated = np.flatnonzero(counts[group] > 1)
        candidates = zip(repeated.tolist(), first[group[repeated]].tolist(), strict=True)
        different = [row for row, other in candidates if images.bytes(row) != images.bytes(other)]
        if not different:
            break
        for row in different:  # a collision of hashes
            hashes[row] = _hash(images.bytes(row), int(hashes[row]) + 1)
    number = np.empty(len(first), dtype=np.int64)
    number[np.argsort(first, kind="stable")] = np.arange(len(first))
    group = number[group]
    rows = np.argsort(group, kind="stable")
    starts = np.zeros(len(first) + 1, dtype=np.int64)
    np.cumsum(np.bincount(group), out=starts[1:])
    return starts, rows


def _hash(name: bytes, salt: int = 0) -> int:
    return hash((salt, name)) if salt else hash(name)  # 64 bits, the same in this process only


def _label_of_records(
    images: Strings, labels: Any, lines: Any, grouped: tuple[Any, Any], names: list[str]
) -> Any:
    starts, rows = grouped
    found = labels[rows[starts[:-1]]]
    owner = np.repeat(np.arange(len(found)), np.diff(starts))
    wrong = np.flatnonzero(labels[rows] != found[owner])
    if len(wrong):
        row, first = int(rows[wrong[0]]), int(rows[starts[owner[wrong[0]]]])
        raise ValueError(
            f"{images[row]} has several labels: {names[labels[first]]!r} in line {lines[first]}, "
            f"{names[labels[row]]!r} in line {lines[row]}; an image has one class here"
        )
    return found
