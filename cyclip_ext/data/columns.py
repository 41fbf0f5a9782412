"""Columns of records in one file that is built once, memory-mapped, and shared by processes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._files import regular_size

_FORMAT = "cyclip_ext columns 2"  # another number whenever the meaning of columns changes
_CHECKSUM_BYTES = 4
_ALIGNMENT = 64
_CHUNK = 2**20  # more would show as memory of this process, which malloc does not return
_FLUSH = 2**16  # strings gathered before they are written

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Columns:
    """One-dimensional arrays by name, and other values as plain JSON.

    A column of strings called "x" is stored as the arrays "x.data" (uint8, all of them joined) and
    "x.ends" (int64 [n + 1]). Arrays that were read from a file are memory-mapped; pickling such
    columns passes on the place of the file.
    """

    arrays: Mapping[str, Array]
    meta: dict[str, Any]
    place: Path | None = None
    checksum: bytes = b""

    def strings(self, name: str) -> Strings:
        """Return a column of strings."""
        return Strings(self.arrays[f"{name}.data"], self.arrays[f"{name}.ends"])

    def __reduce__(self) -> tuple[Any, ...]:
        if self.place is None:
            return Columns, (dict(self.arrays), self.meta)
        return _reopened, (self.place, self.checksum)


class Strings:
    """Millions of strings as one block of bytes.

    As Python objects they take several times the memory, and a forked worker copies them all merely
    by counting references.
    """

    def __init__(self, data: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> None:
        self.data = data
        self.ends = ends

    @classmethod
    def of(cls, strings: Iterable[str]) -> Strings:
        """Pack strings. Names of files need not be UTF-8 (surrogateescape)."""
        writer = StringWriter()
        for string in strings:
            writer.append(string.encode("utf-8", "surrogateescape"))
        return cls(*writer.arrays())

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> str:
        return self.bytes(index).decode("utf-8", "surrogateescape")

    def bytes(self, index: int) -> bytes:
        """Return string `index` as it is stored."""
        if not 0 <= index < len(self):
            raise IndexError(f"index must be between 0 and {len(self) - 1}, got {index}")
        return self.data[self.ends[index] : self.ends[index + 1]].tobytes()

    def digest(self) -> str:
        """Return a hexadecimal digest of all strings in their order."""
        hashed = blake2b(np.ascontiguousarray(self.ends).data, digest_size=16)
        hashed.update(np.ascontiguousarray(self.data).data)
        return hashed.hexdigest()


class StringWriter:
    """Gathers strings into an unnamed file of `folder`, or in memory without one."""

    def __init__(self, folder: Path | None = None) -> None:
        self._file: FileIO | None = None
        if folder is not None:
            with contextlib.suppress(OSError):
                self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self._lengths = array("q")
        self._pending: list[bytes] = []
        self._blocks: list[bytes] = []

    def append(self, string: bytes) -> None:
        """Add a string."""
        self._lengths.append(len(string))
        self._pending.append(string)
        if len(self._pending) >= _FLUSH:
            self._flush()

    def __len__(self) -> int:
        return len(self._lengths)

    def _flush(self) -> None:
        block = b"".join(self._pending)
        self._pending.clear()
        if self._file is None:
            self._blocks.append(block)
            return
        good = self._file.tell()
        try:
            rest = memoryview(block)
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError:  # the disk is full: continue in memory
            written = mmap.mmap(self._file.fileno(), good, access=mmap.ACCESS_READ) if good else b""
            self._blocks = [bytes(written), block]
            self._file.close()
            self._file = None

    def arrays(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Return data and ends. Nothing may be added afterwards."""
        self._flush()
        lengths = np.frombuffer(self._lengths, dtype=np.int64)
        ends = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=ends[1:])
        if self._file is not None and ends[-1]:
            mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            self._file.close()
            return np.frombuffer(mapped, dtype=np.uint8), ends
        return np.frombuffer(b"".join(self._blocks), dtype=np.uint8), ends


def cached(
    folder: Path,
    key: list[Any],
    sources: Sequence[Path],
    build: Callable[[Path | None], Columns],
    *,
    current: Callable[[Columns], bool] = lambda columns: True,
    store: Callable[[Columns], bool] = lambda columns: True,
) -> Columns:
    """Return columns from disk if they were built before, otherwise build and store them.

    They are stored in `folder`, or if it cannot be written in the user's cache ($XDG_CACHE_HOME,
    ~/.cache), as `.cyclip_ext-<digest of key>.index`. key: names and options, plain JSON. sources:
    the files that they were read from; if the `file_state` of one has changed, or a stored file is
    damaged, they are built again. If many ranks start together, one builds and the others wait.
    build: takes a folder for temporary files, None if no folder can be written. current: whether
    the stored columns are still valid; store: whether a result may be stored.
    """
    places = _places(folder, repr(key))
    state = json.loads(json.dumps([key, [file_state(source) for source in sources]]))
    for place in places:
        found = _load(place, state)
        if found is not None and current(found):
            return found
    for place in filter(_writable, places):
        with _locked(place.parent):
            found = _load(place, state)  # another rank may have been faster
            if found is None or not current(found):
                found = build(place.parent)
                if store(found):
                    found = _store(place, state, found)
            return found
    return build(None)


def file_state(path: Path) -> list[int | str] | None:
    """Return plain JSON that changes with the content of a file or folder; None if there is none.

    It consists of the size, the times of change in ns, and the target of a link. The time of the
    content can be set, as unpacking an archive does; that of the status cannot. All of them are the
    same on every machine that shares a folder. Numbers of devices are not, nor are those of inodes
    where an object store is mounted, and each job would read all shards again.
    """
    try:
        status = path.stat()
        target = os.readlink(path) if path.is_symlink() else ""
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, target]


def _places(folder: Path, name: str) -> list[Path]:
    def digest(text: str) -> str:
        return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()

    # The folder is not created here.
    places = [folder / f".cyclip_ext-{digest(name)}.index"] if folder.is_dir() else []
    with contextlib.suppress(RuntimeError):  # a user without a home
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cyclip_ext"
        places.append(cache / f"{digest(f'{folder.resolve()}{name}')}.index")
    return places


def _writable(place: Path) -> bool:
    """Return whether a file can be written; on network file systems, permissions do not show it."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place.parent):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which leaves no file behind and ends with the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Without locks two ranks may build the same file. Each replaces it atomically.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _store(place: Path, state: Any, columns: Columns) -> Columns:
    """Write columns and return them mapped; if that fails (a full disk), return them unchanged."""
    layout: dict[str, tuple[Any, int, int]] = {}
    offset = 0
    for name, values in columns.arrays.items():
        kind = values.dtype.descr if values.dtype.names else values.dtype.str
        layout[name] = (kind, len(values), offset)
        offset += -(-values.nbytes // _ALIGNMENT) * _ALIGNMENT
    header = {"format": _FORMAT, "state": state, "meta": columns.meta, "arrays": layout}
    line = json.dumps(header).encode()
    line += b" " * (-(_CHECKSUM_BYTES + len(line) + 1) % _ALIGNMENT) + b"\n"
    blocks: list[Any] = [line]
    for values in columns.arrays.values():
        blocks += [values.view(np.uint8), bytes(-values.nbytes % _ALIGNMENT)]
    temporary = place.with_name(f"{place.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(bytes(_CHECKSUM_BYTES))
            checksum = 0
            for block in blocks:
                checksum = zlib.crc32(block, checksum)
                file.write(block)
            file.seek(0)
            file.write(checksum.to_bytes(_CHECKSUM_BYTES, "little"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, place)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        return columns
    return _load(place, state) or columns


def _load(place: Path, state: Any = None) -> Columns | None:
    """Return the stored columns, or None if they do not exist, are outdated, or are damaged."""
    try:
        regular_size(place)
        with place.open("rb") as file:
            stored = file.read(_CHECKSUM_BYTES)
            checksum = 0
            # Read, not mapped: what is mapped counts as this process's memory.
            while block := file.read(_CHUNK):
                checksum = zlib.crc32(block, checksum)
            if not checksum or stored != checksum.to_bytes(_CHECKSUM_BYTES, "little"):
                return None  # the checksum of nothing is zero
            file.seek(_CHECKSUM_BYTES)
            line = file.readline()
            header = json.loads(line)
            if header["format"] != _FORMAT or state not in (None, header["state"]):
                return None
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError:
        return None
    start = _CHECKSUM_BYTES + len(line)
    arrays: dict[str, Array] = {}
    for name, (kind, length, offset) in header["arrays"].items():
        dtype = np.dtype(kind if isinstance(kind, str) else [tuple(field) for field in kind])
        arrays[name] = np.frombuffer(content, dtype, length, start + offset if length else 0)
    return Columns(arrays, header["meta"], place, stored)


def _reopened(place: Path, checksum: bytes) -> Columns:
    """Open the columns of another process."""
    found = _load(place)
    if found is None or found.checksum != checksum:
        raise RuntimeError(f"{place} was replaced while it was in use: start again")
    return found
