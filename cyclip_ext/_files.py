"""Atomic writes, and reading of UTF-8 text with clear errors."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from threading import get_ident

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}


class NotRegularFileError(OSError):
    """A path that is a folder, FIFO, device or socket: reading it may never end."""


def regular_size(path: str | Path) -> int:
    """Return the size of a regular file in bytes, without opening it.

    Raises NotRegularFileError for anything else, and OSError if there is nothing.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "a special file")
        raise NotRegularFileError(f"{path} is not a regular file but {kind}")
    return found.st_size


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file atomically, text as UTF-8.

    Raises OSError, with the name of the file, if the disk is full.
    """
    data = content.encode() if isinstance(content, str) else content
    writer = f"{os.getpid()}-{get_ident()}"  # another process or thread may write the same file
    temporary = path.with_name(f".{path.name}.{writer}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:  # errors of write() do not name the file
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark.

    Raises ValueError, naming the file, for other encodings, and NotRegularFileError.
    """
    regular_size(path)
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.start}); convert it, for example with iconv"
        ) from error
