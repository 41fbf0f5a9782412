"""The index of the samples of tar shards, built in one pass and stored for the next run."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._files import regular_size
from .._output import counted
from .captions import CAPTION_SUFFIXES
from .columns import Columns, cached
from .images import IMAGE_SUFFIXES
from .skips import SkipReport
from .tar_format import DIRECTORY, BrokenTar, Member, read_members
from .workers import cores, ordered_map

# One row per sample, 33 bytes: offsets and sizes inside its shard, and whether the text is JSON. A
# sample that has a label but no text has -1 for its offset.
SAMPLE = np.dtype(
    [("image", "<i8"), ("image_size", "<i8"), ("text", "<i8"), ("text_size", "<i8"), ("json", "?")]
)
_LABEL = ".cls"
NO_LABEL, BROKEN_LABEL = -1, -2

_BROKEN = "broken tar"
_UNREADABLE = "unreadable tar"
_NO_SUFFIX = "member without a suffix"
_SERIAL_BYTES = 2**26  # below this starting processes costs more than it saves
_LONGEST_LABEL = 32

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}

_IMAGE = "image"
_KINDS = dict.fromkeys(IMAGE_SUFFIXES, _IMAGE) | {s: s for s in (*CAPTION_SUFFIXES, _LABEL)}

Rows = npt.NDArray[Any]


def tar_index(shards: Sequence[Path]) -> Columns:
    """Return the index of shards, from disk if it was built before; see `cached`.

    arrays: "rows", SAMPLE [n], shard by shard; "starts", int64 [shards + 1], the first row of each
    shard; "labels", int64 [n], if any sample has a .cls: its number, NO_LABEL or BROKEN_LABEL.
    meta["skipped"]: samples without an image or without text and label, ambiguous ones, and an
    estimate of those after a break in an archive.

    Raises ValueError if a shard is compressed.
    """
    for shard in shards:
        _require_uncompressed(shard)
    folder = shards[0].parent
    names = [os.path.relpath(shard, folder) for shard in shards]
    return cached(
        folder,
        names,
        shards,
        lambda _: _build(shards),
        # An unreadable shard may become readable without a new time of change.
        store=lambda columns: _UNREADABLE not in columns.meta["skipped"],
    )


def _build(shards: Sequence[Path]) -> Columns:
    size = sum(shard.stat().st_size for shard in shards if shard.exists())
    workers = min(cores(), len(shards)) if size > _SERIAL_BYTES else 0
    parts = list(ordered_map(_index_shard, shards, 0 if workers == 1 else workers))
    arrays = {
        "rows": np.concatenate([part.rows for part in parts]),
        "starts": np.cumsum([0, *(len(part.rows) for part in parts)], dtype=np.int64),
    }
    labels = np.concatenate([part.labels for part in parts])
    if (labels != NO_LABEL).any():
        arrays["labels"] = labels
    return Columns(arrays, {"skipped": _skipped(parts).to_dict()})


@dataclass
class _Part:
    """Result of one pass over a shard, up to its end or to a break.

    bytes: of the shard, None if it is not there. read: bytes up to the end of the last member
    found. samples: good and bad ones up to there. reason: the cause of the break; empty if the pass
    reached the end. marked: whether there is a zero block at the end.
    """

    shard: Path
    rows: Rows = field(default_factory=lambda: np.empty(0, dtype=SAMPLE))
    labels: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    skipped: SkipReport = field(default_factory=SkipReport)
    bytes: int | None = None
    read: int = 0
    reason: str = ""
    detail: str = ""

    @property
    def samples(self) -> int:
        return len(self.rows) + self.skipped.total

    @property
    def marked(self) -> bool:
        return self.bytes is None or self.read < self.bytes


def _skipped(parts: Sequence[_Part]) -> SkipReport:
    """Return what all shards skipped; the samples after a break are estimated from the bytes there.

    One record for a shard of ten thousand would pass under every threshold.
    """
    skipped = SkipReport()
    for part in parts:
        skipped.merge(part.skipped)
    known = [part.bytes for part in parts if part.bytes]
    usual = sum(known) / max(len(known), 1)  # bytes of a shard that is empty or not there
    mean = sum(part.read for part in parts) / max(sum(part.samples for part in parts), 1)
    # A writer that never marks the end is one thing, a shard that lacks the mark another.
    unmarked = len(parts) > 1 and not any(part.marked for part in parts if not part.reason)
    for part in parts:
        if not part.reason and not part.marked and not unmarked:
            part.reason = _BROKEN
            part.detail = "no mark of the end after the last member, so it may be cut off there"
        if part.reason:
            unread = (part.bytes or usual) - part.read
            size = part.read / part.samples if part.samples else mean
            lost = max(1, round(unread / size)) if size else 1
            detail = (
                f"{part.shard}: {part.detail}; about {counted(lost, 'sample')} lost (estimated)"
            )
            skipped.add(part.reason, detail, lost)
    return skipped


def _index_shard(shard: Path) -> _Part:
    part = _Part(shard)
    try:
        part.bytes = regular_size(shard)
        if not part.bytes:
            part.reason, part.detail = "empty shard", "0 bytes"
            return part
        with shard.open("rb") as file:
            samples = _Samples(part, file.fileno())
            try:
                for member in read_members(file):
                    part.read = member.end
                    samples.add(member)
            except (BrokenTar, OSError) as error:
                broken = isinstance(error, BrokenTar)
                part.reason, part.detail = _BROKEN if broken else _UNREADABLE, str(error)
            samples.finish()
        part.rows = np.array(samples.rows, dtype=SAMPLE)
        part.labels = np.array(samples.labels, dtype=np.int64)
    except OSError as error:
        part.reason, part.detail = _UNREADABLE, str(error)
    return part


class _Samples:
    """Groups the members of a shard into samples.

    webdataset's rule: the key ends at the first dot of the last path component, and the members of
    a sample follow each other. In addition:
    - A name with more dots belongs to the sample of its key, and is not its image or caption. But
      if an image and a caption agree in all but the last suffix, they are a sample of their own:
      there are full stops in its key.
    - Members whose suffixes repeat in the same order (.jpg .txt .jpg .txt) are several samples of
      one key. If they repeat in another order, it is not known which belong together.
    - An image and a caption of one key that do not follow each other are a sample as well.
    """

    def __init__(self, part: _Part, descriptor: int) -> None:
        self.rows: list[tuple[int, int, int, int, bool]] = []
        self.labels: list[int] = []
        self._part = part
        self._descriptor = descriptor
        self._key = ""
        self._members: list[tuple[str, Member]] = []  # with their kinds
        self._dotted: dict[str, list[tuple[str, Member]]] = {}  # by what is between the dots
        self._suffixes: list[str] = []
        # Parts of samples whose others may follow later, by key; with their names for messages.
        self._lone: dict[str, tuple[str, list[tuple[str, Member]]]] = {}

    def add(self, member: Member) -> None:
        """Add the next member of the archive."""
        folder, slash, name = member.name.removeprefix("./").rpartition("/")
        stem, dot, suffix = name.partition(".")
        # macOS puts ._name, its AppleDouble, beside each file, even inside a sample.
        if not stem or member.odd == DIRECTORY:
            return
        if not suffix:
            self._part.skipped.add(_NO_SUFFIX, f"{self._part.shard}:{member.name}")
            return
        key = folder + slash + stem
        if key != self._key:
            self._end_sample()
            self._key = key
        suffix = dot + suffix.lower()
        kind = _KINDS.get(suffix)
        if kind is not None:
            self._members.append((kind, member))
        else:
            inner, _, last = suffix.rpartition(".")
            kind = _KINDS.get("." + last) if inner else None
            if kind is not None:
                self._dotted.setdefault(inner, []).append((kind, member))
        self._suffixes.append(suffix)

    def finish(self) -> None:
        """End the last sample, and join the parts that do not follow each other."""
        self._end_sample()
        for where, members in self._lone.values():
            self._add_samples(where, members)

    def _end_sample(self) -> None:
        if not self._suffixes:
            return
        members, dotted = self._members, self._dotted
        by_kind = dict(members)
        if not dotted and _IMAGE in by_kind and 1 < len(by_kind) == len(members):  # nearly all
            self._add_sample(by_kind)
        else:
            self._end_unusual_sample(members, dotted)
        self._members, self._dotted, self._suffixes = [], {}, []

    def _end_unusual_sample(
        self, members: list[tuple[str, Member]], dotted: dict[str, list[tuple[str, Member]]]
    ) -> None:
        suffixes = ", ".join(dict.fromkeys(self._suffixes))
        where = f"{self._part.shard}:{self._key} (has {suffixes})"
        if _is_complete(members):
            self._add_samples(where, members)
        elif members:
            self._lone.setdefault(self._key, (where, []))[1].extend(members)
        complete = {inner for inner, found in dotted.items() if _is_complete(found)}
        for inner in filter(complete.__contains__, dotted):
            self._add_samples(where, dotted[inner])
        # A name with more dots than that of a sample is not loose, but a mask.
        loose = [
            member
            for inner, found in dotted.items()
            if not members and not any(f"{inner}.".startswith(f"{c}.") for c in complete)
            for member in found
        ]
        if loose:
            self._add_samples(where, loose, join=False)
        elif not members and not dotted:
            self._part.skipped.add("no image file", where)

    def _add_samples(
        self, where: str, members: list[tuple[str, Member]], join: bool = True
    ) -> None:
        """Add the samples that the members of one key form, and count incomplete ones."""
        kinds = [kind for kind, _ in members]
        counts = Counter(kinds)
        images = counts.pop(_IMAGE, 0)
        texts = max(counts.values(), default=0)
        period = len(set(kinds))
        if not images or not texts or not join:
            missing = "no image file" if texts >= images else "no caption file"
            self._part.skipped.add(missing, where, max(images, texts))
        elif kinds == kinds[:period] * (len(kinds) // period):
            for start in range(0, len(kinds), period):
                self._add_sample(dict(members[start : start + period]))
        else:
            reason = f"two {'images' if images > 1 else 'captions'} of one key"
            self._part.skipped.add(reason, where, max(images, texts))

    def _add_sample(self, members: dict[str, Member]) -> None:
        odd = next((member.odd for member in members.values() if member.odd), "")
        if odd:
            self._part.skipped.add(f"{odd} in a tar", f"{self._part.shard}:{members[_IMAGE].name}")
            return
        image = members[_IMAGE]
        kind = next((kind for kind in CAPTION_SUFFIXES if kind in members), "")
        at, size = (members[kind].offset, members[kind].size) if kind else (-1, 0)
        self.rows.append((image.offset, image.size, at, size, kind == ".json"))
        number = NO_LABEL
        if _LABEL in members:
            label = members[_LABEL]
            text = os.pread(self._descriptor, min(label.size, _LONGEST_LABEL), label.offset).strip()
            known = text.isdigit() and len(text) < _LONGEST_LABEL // 2
            number = int(text) if known else BROKEN_LABEL
        self.labels.append(number)


def _is_complete(members: list[tuple[str, Member]]) -> bool:
    kinds = {kind for kind, _ in members}
    return _IMAGE in kinds and len(kinds) > 1


def _require_uncompressed(shard: Path) -> None:
    try:
        regular_size(shard)  # opening a FIFO would never end
        with shard.open("rb") as file:
            start = file.read(8)
    except OSError:
        return  # counted when it is indexed
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise ValueError(
                f"{shard} is compressed with {name}: samples cannot be reached at random in it. "
                "Unpack it to a plain .tar (images are compressed already, it hardly grows)"
            )
