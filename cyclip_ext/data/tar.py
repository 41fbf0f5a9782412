"""img2dataset / webdataset shards: random access into .tar files through an index of offsets.

One pass over the headers finds every sample; after that any order of access costs one read. The
index is a few numbers per sample, so CC3M's 3 million samples take about 100 MB.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np

from .images import IMAGE_SUFFIXES, open_image
from .records import BadRecord, Pairs, Record, SkipReport, clean_caption

_BLOCK = 512
_OPEN_SHARDS = 64  # CC12M has 1,240 shards, a process mostly 1,024 descriptors
_CAPTION_SUFFIXES = (".txt", ".json")  # in order of preference


class BrokenTar(Exception):
    """The archive ends or goes astray; members before this point are good."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file inside an archive: where its bytes are."""

    name: str
    offset: int
    size: int


class _OpenFile:
    """A descriptor that closes with its last user: another thread may evict a file being read."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class TarPairs(Pairs):
    """Samples of tar shards: members of one name up to the first dot, image beside .txt or .json.

    The caption is the whole .txt, or else "caption" of the .json (a string or a list of strings).
    Samples without image or caption, and what follows a break in an archive, are counted in
    `skipped`. Reading is by position, so threads and forked workers can share one object; the 64
    shards used last stay open.
    """

    def __init__(self, shards: Sequence[Path], *, keep_alpha: bool = False) -> None:
        if not shards:
            raise ValueError("shards must name at least one .tar file, got none")
        self.source = f"{len(shards)} tar shard(s) in {shards[0].parent}"
        self.shards = tuple(shards)
        self.keep_alpha = keep_alpha
        self.skipped = SkipReport()
        rows: list[tuple[int, int, int, int, int, bool]] = []
        for number, shard in enumerate(self.shards):
            rows.extend((number, *row) for row in _samples(shard, self.skipped))
        # columns: shard, image offset, image size, caption offset, caption size, caption is JSON
        self._index = np.array(rows, dtype=np.int64).reshape(-1, 6)
        self._files: OrderedDict[int, _OpenFile] = OrderedDict()  # by shard, used last at the end

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Record:
        """Read and decode sample `index`; BadRecord where that fails."""
        shard, image_at, image_size, text_at, text_size, is_json = self._index[index].tolist()
        where = f"{self.shards[shard]} at byte {image_at}"
        try:
            text = self._read(shard, text_at, text_size)
            data = self._read(shard, image_at, image_size)
        except OSError as error:
            raise BadRecord(f"unreadable ({type(error).__name__})", where) from None
        if len(text) < text_size or len(data) < image_size:
            raise BadRecord("unreadable (shard cut off since it was opened)", where)
        captions = _captions(text, bool(is_json), where)
        return Record(open_image(data, where, keep_alpha=self.keep_alpha), captions, where)

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        # Each step is atomic, so threads at worst open a shard twice.
        file = self._files.pop(shard, None) or _OpenFile(self.shards[shard])
        self._files[shard] = file
        if len(self._files) > _OPEN_SHARDS:
            self._files.popitem(last=False)
        return os.pread(file.descriptor, size, offset)

    def __getstate__(self) -> dict[str, object]:
        # Descriptors mean nothing in another process.
        return self.__dict__ | {"_files": OrderedDict[int, _OpenFile]()}


def _samples(shard: Path, skipped: SkipReport) -> Iterator[tuple[int, int, int, int, bool]]:
    """(image offset, size, caption offset, size, is JSON) of each complete sample of a shard."""
    key: str | None = None
    image: Member | None = None
    texts: dict[str, Member] = {}

    def finish() -> Iterator[tuple[int, int, int, int, bool]]:
        suffix = next((s for s in _CAPTION_SUFFIXES if s in texts), None)
        if image is not None and suffix is not None:
            text = texts[suffix]
            yield image.offset, image.size, text.offset, text.size, suffix == ".json"
        elif image is not None or texts:
            skipped.add("no caption file" if image else "no image file", f"{shard}:{key}")

    try:
        with shard.open("rb") as file:
            for member in read_members(file):
                # webdataset's rule: the key ends at the first dot of the last path component
                folder, slash, name = member.name.rpartition("/")
                stem, dot, suffix = name.partition(".")
                if folder + slash + stem != key:
                    yield from finish()
                    key, image, texts = folder + slash + stem, None, {}
                suffix = (dot + suffix).lower()
                if suffix in IMAGE_SUFFIXES:
                    image = member
                elif suffix in _CAPTION_SUFFIXES:
                    texts[suffix] = member
    except BrokenTar as broken:
        skipped.add("broken tar", f"{shard}: {broken}")
    except OSError as error:
        skipped.add("unreadable tar", f"{shard}: {error}")
    yield from finish()


def _captions(data: bytes, is_json: bool, where: str) -> tuple[str, ...]:
    try:
        text = data.decode("utf-8")
        found = json.loads(text).get("caption") if is_json else text
    except UnicodeDecodeError:
        raise BadRecord("bad encoding", where) from None
    except (ValueError, AttributeError):  # no JSON, or not an object
        raise BadRecord("broken metadata", where) from None
    several = found if isinstance(found, list) else [found]
    captions = tuple(filter(None, (clean_caption(c) for c in several if isinstance(c, str))))
    if not captions:
        raise BadRecord("empty caption", where)
    return captions


def read_members(file: BufferedReader) -> Iterator[Member]:
    """The regular files of an uncompressed tar archive, in order.

    Several times as fast as tarfile, which builds an object of 20 fields per member: CC3M has 9
    million. Knows POSIX ustar, GNU long names and sizes, and pax paths and sizes.

    Raises BrokenTar where a header or the data of a member is cut off or damaged.
    """
    end = os.fstat(file.fileno()).st_size
    position = 0
    override: dict[str, str] = {}  # from a pax or GNU header, for the one member that follows
    while position < end:
        file.seek(position)
        header = file.read(_BLOCK)
        if len(header) < _BLOCK:
            raise BrokenTar(f"cut off at byte {position}")
        if not any(header):
            return  # the zero block that marks the end
        checksum = _number(header[148:156], position)
        # The checksum counts its own 8 bytes as spaces.
        if sum(header) - sum(header[148:156]) + 8 * ord(" ") != checksum:
            raise BrokenTar(f"damaged header at byte {position}")
        kind = header[156:157]
        data = position + _BLOCK
        size = int(override["size"]) if "size" in override else _number(header[124:136], position)
        position = data + -(-size // _BLOCK) * _BLOCK
        if data + size > end:
            raise BrokenTar(f"cut off inside the member at byte {data}")
        if kind == b"x":
            override |= _pax(file.read(size))
        elif kind == b"L":
            override["path"] = file.read(size).rstrip(b"\0").decode("utf-8", "replace")
        elif kind == b"g":  # global settings: none of them moves a member
            continue
        else:
            if kind in b"0\0":
                yield Member(override.get("path") or _name(header), data, size)
            override = {}


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:262] == b"ustar" and header[263:265] == b"00":  # GNU uses these bytes otherwise
        prefix = header[345:500].split(b"\0", 1)[0]
        if prefix:
            name = prefix + b"/" + name
    return name.decode("utf-8", "replace")


def _number(field: bytes, position: int) -> int:
    """Octal text, or big-endian binary marked by the top bit (GNU, from 8 GiB on)."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.split(b"\0", 1)[0].strip() or b"0", 8)
    except ValueError:
        raise BrokenTar(f"damaged header at byte {position}") from None


def _pax(data: bytes) -> dict[str, str]:
    """The records of a pax header: "<length> <key>=<value>", each ended by a newline."""
    records: dict[str, str] = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or int(length) == 0:
            raise BrokenTar("damaged pax header")
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        data = data[int(length) :]
    return records
