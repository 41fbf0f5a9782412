"""Where each sample of a set of shards lies: found in one pass, kept on disk for the next run."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .images import IMAGE_SUFFIXES
from .workers import cores, ordered_map
from .skips import SkipReport
from .tar_format import BrokenTar, Member, read_members

CAPTION_SUFFIXES = (".txt", ".json")  # in order of preference

# One row per sample, 33 bytes: offsets and sizes inside its shard, and whether the text is JSON.
SAMPLE = np.dtype(
    [("image", "<i8"), ("image_size", "<i8"), ("text", "<i8"), ("text_size", "<i8"), ("json", "?")]
)

_FORMAT = "cyclip_ext tar index 2"
_CHECKSUM_BYTES = 4
_BROKEN = "broken tar"
_UNREADABLE = "unreadable tar"
_SERIAL_BYTES = 2**26  # below this starting processes costs more than it saves

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}

Rows = npt.NDArray[Any]


@dataclass(frozen=True)
class TarIndex:
    """rows: SAMPLE [n], shard by shard. starts: int64 [shards + 1], first row of each shard.

    skipped: samples without image or caption, and an estimate of those after a break in an archive.
    """

    rows: Rows
    starts: npt.NDArray[np.int64]
    skipped: SkipReport


def tar_index(shards: Sequence[Path]) -> TarIndex:
    """The index of a set of shards: from disk where it was built before, else built and stored.

    It is stored beside the first shard, or where that folder cannot be written, in the user's
    cache ($XDG_CACHE_HOME, ~/.cache); where neither can, it is built each time. A stored index
    counts only while names, sizes and modification times of all shards are those it was built
    from, and its checksum is right. Of many ranks that start together, one builds and the others
    wait.

    Raises ValueError where a shard is compressed.
    """
    for shard in shards:
        _refuse_compressed(shard)
    state = _state(shards)
    places = _places(shards)
    for place in places:
        index = _load(place, state)
        if index is not None:
            return index
    for place in filter(_writable, places):
        with _locked(place.parent):
            index = _load(place, state)  # another rank may have been faster
            if index is None:
                index = _build(shards)
                # What cannot be read now may be readable next time, without a new time of change.
                if _UNREADABLE not in index.skipped.counts:
                    _store(place, state, index)
            return index
    return _build(shards)


def _build(shards: Sequence[Path]) -> TarIndex:
    size = sum(shard.stat().st_size for shard in shards if shard.exists())
    workers = min(cores(), len(shards)) if size > _SERIAL_BYTES else 0
    parts = list(ordered_map(_index_shard, shards, 0 if workers == 1 else workers))
    starts = np.cumsum([0, *(len(part.rows) for part in parts)], dtype=np.int64)
    return TarIndex(np.concatenate([part.rows for part in parts]), starts, _skipped(parts))


@dataclass
class _Part:
    """What one pass over a shard found, and how far it came.

    bytes: of the shard, None where it is not there. read: bytes up to the end of the last member
    found. samples: good and bad ones up to there. reason: why it came no further; empty where it
    came to the end.
    """

    shard: Path
    rows: Rows = field(default_factory=lambda: np.empty(0, dtype=SAMPLE))
    skipped: SkipReport = field(default_factory=SkipReport)
    bytes: int | None = None
    read: int = 0
    reason: str = ""
    detail: str = ""

    @property
    def samples(self) -> int:
        return len(self.rows) + self.skipped.total


def _skipped(parts: Sequence[_Part]) -> SkipReport:
    """What all shards skipped; the samples after a break are estimated from the bytes there.

    One record for a shard of ten thousand would pass under every threshold.
    """
    skipped = SkipReport()
    for part in parts:
        skipped.merge(part.skipped)
    known = [part.bytes for part in parts if part.bytes is not None]
    usual = sum(known) / max(len(known), 1)  # bytes of a shard that is not there
    mean = sum(part.read for part in parts) / max(sum(part.samples for part in parts), 1)
    for part in parts:
        if part.reason:
            unread = (usual if part.bytes is None else part.bytes) - part.read
            size = part.read / part.samples if part.samples else mean
            lost = max(1, round(unread / size)) if size else 1
            detail = f"{part.shard}: {part.detail}; about {lost:,} sample(s) lost (estimated)"
            skipped.add(part.reason, detail, lost)
    return skipped


def _index_shard(shard: Path) -> _Part:
    part = _Part(shard)
    part.rows = np.array(list(_samples(part)), dtype=SAMPLE)
    return part


def _members(part: _Part) -> Iterator[Member]:
    """The members of a shard up to a break, which is noted in part."""
    try:
        part.bytes = part.shard.stat().st_size
        with part.shard.open("rb") as file:
            for member in read_members(file):
                part.read = member.end
                yield member
    except BrokenTar as broken:
        part.reason, part.detail = _BROKEN, str(broken)
    except OSError as error:
        part.reason, part.detail = _UNREADABLE, str(error)


def _samples(part: _Part) -> Iterator[tuple[int, int, int, int, bool]]:
    """A row of SAMPLE for each complete sample of a shard."""
    key: str | None = None
    image: Member | None = None
    texts: dict[str, Member] = {}

    def finish() -> Iterator[tuple[int, int, int, int, bool]]:
        suffix = next((s for s in CAPTION_SUFFIXES if s in texts), None)
        if image is not None and suffix is not None:
            text = texts[suffix]
            yield image.offset, image.size, text.offset, text.size, suffix == ".json"
        elif image is not None or texts:
            reason = "no caption file" if image else "no image file"
            part.skipped.add(reason, f"{part.shard}:{key}")

    for member in _members(part):
        # webdataset's rule: the key ends at the first dot of the last path component
        folder, slash, name = member.name.rpartition("/")
        stem, dot, suffix = name.partition(".")
        # macOS puts ._name, its AppleDouble, beside each file, even inside a sample.
        if not stem or not suffix:
            continue
        if folder + slash + stem != key:
            yield from finish()
            key, image, texts = folder + slash + stem, None, {}
        suffix = (dot + suffix).lower()
        if suffix in IMAGE_SUFFIXES:
            image = member
        elif suffix in CAPTION_SUFFIXES:
            texts[suffix] = member
    yield from finish()


def _refuse_compressed(shard: Path) -> None:
    try:
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


def _state(shards: Sequence[Path]) -> list[list[Any]]:
    """[name, size, time of change] of each shard: what a stored index must have been built from."""
    state: list[list[Any]] = []
    for shard in shards:
        name = os.path.relpath(shard, shards[0].parent)
        try:
            status = shard.stat()
            state.append([name, status.st_size, status.st_mtime_ns])
        except OSError:
            state.append([name, None, None])
    return state


def _places(shards: Sequence[Path]) -> list[Path]:
    """Where the index may be stored, best first; the name is that of this set of shards."""
    folder = shards[0].parent
    names = "\n".join(os.path.relpath(shard, folder) for shard in shards)
    places: list[Path] = []
    if folder.is_dir():  # it is not for us to create
        places.append(folder / f".cyclip_ext-{_digest(names)}.index")
    with contextlib.suppress(RuntimeError):  # a user without a home
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cyclip_ext"
        places.append(cache / f"{_digest(f'{folder.resolve()}{names}')}.index")
    return places


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _writable(place: Path) -> bool:
    """Found out by trying: permissions do not tell on network file systems, nor to root."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place.parent):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; ends with the process, leaves no file behind."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # A file system without locks costs only work done twice: files appear whole or not at all.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _store(place: Path, state: list[list[Any]], index: TarIndex) -> None:
    """Write a checksum, a line of JSON and the rows; where that fails (a full disk), nothing."""
    header = {
        "format": _FORMAT,
        "shards": state,
        "starts": index.starts.tolist(),
        "skipped": index.skipped.to_dict(),
    }
    content = json.dumps(header).encode() + b"\n" + index.rows.tobytes()
    temporary = place.with_name(f"{place.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(_checksum(content) + content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, place)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _load(place: Path, state: list[list[Any]]) -> TarIndex | None:
    """The stored index, None where there is none, or not of these shards, or a damaged one."""
    try:
        # Not mapped: where another machine replaces the file, reading a mapping may be fatal.
        stored = memoryview(place.read_bytes())
    except OSError:
        return None
    checksum, content = stored[:_CHECKSUM_BYTES], stored[_CHECKSUM_BYTES:]
    if not content or checksum != _checksum(content):  # the checksum of nothing is zero
        return None
    line, _, _ = bytes(content).partition(b"\n")
    header = json.loads(line)
    if header["format"] != _FORMAT or header["shards"] != state:
        return None
    rows: Rows = np.frombuffer(content[len(line) + 1 :], dtype=SAMPLE)
    starts = np.array(header["starts"], dtype=np.int64)
    return TarIndex(rows, starts, SkipReport.from_dict(header["skipped"]))


def _checksum(content: bytes | memoryview) -> bytes:
    return zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "little")
