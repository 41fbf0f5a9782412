"""img2dataset / webdataset shards: random access into .tar files through an index of offsets.

One pass over the headers finds every sample; after that any order of access costs one read.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .captions import clean_caption, is_text
from .dataset import Encoded, FileDataset, digest
from .skips import BadRecord
from .tar_index import tar_index

# Members this close are fetched by one read: from a disk, reads cost more than bytes.
_NEAR = 2**13

_OPEN_SHARDS = 64  # CC12M has 1,240 shards, a process mostly 1,024 descriptors


class _OpenFile:
    """A descriptor that closes with its last user: another thread may evict a file being read."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class TarDataset(FileDataset):
    """Samples of tar shards: members of one name up to the first dot, image beside .txt or .json.

    The caption is the whole .txt, or else "caption" of the .json (a string or a list of strings).
    Samples without image or caption, and what follows a break in an archive, are counted in
    `skipped`. Reading is by position, so threads and forked workers can share one object; the 64
    shards used last stay open. Raises ValueError for no shards and for compressed ones.
    """

    def __init__(self, shards: Sequence[Path]) -> None:
        if not shards:
            raise ValueError("shards must name at least one .tar file, got none")
        self.name = f"{len(shards)} tar shard(s) in {shards[0].parent}"
        self.shards = tuple(shards)
        index = tar_index(self.shards)
        self.skipped = index.skipped
        self._rows = index.rows
        self._starts = index.starts
        self._files: OrderedDict[int, _OpenFile] = OrderedDict()  # by shard, used last at the end

    def __len__(self) -> int:
        return len(self._rows)

    def encoded(self, index: int) -> Encoded:
        """See FileDataset.encoded."""
        if not 0 <= index < len(self):
            raise IndexError(f"index must be between 0 and {len(self) - 1}, got {index}")
        image_at, image_size, text_at, text_size, is_json = self._rows[index].tolist()
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        key = f"{self.shards[shard]} at byte {image_at}"
        try:
            data, text = self._read_both(shard, image_at, image_size, text_at, text_size)
        except OSError as error:
            raise BadRecord(f"unreadable ({type(error).__name__})", key) from None
        if len(text) < text_size or len(data) < image_size:
            raise BadRecord("unreadable (shard cut off since it was opened)", key)
        return Encoded(data, key, decode_captions(text, is_json, key))

    def fingerprint(self) -> str:
        """See ImageDataset.fingerprint: shards by name and size, and the samples' places."""
        folder = self.shards[0].parent
        names = [(os.path.relpath(shard, folder), _size(shard)) for shard in self.shards]
        return digest(repr(names), self._starts, self._rows)

    def _read_both(
        self, shard: int, image_at: int, image_size: int, text_at: int, text_size: int
    ) -> tuple[bytes, bytes]:
        start = min(image_at, text_at)
        end = max(image_at + image_size, text_at + text_size)
        if end - start > image_size + text_size + _NEAR:
            return self._read(shard, image_at, image_size), self._read(shard, text_at, text_size)
        span = self._read(shard, start, end - start)
        image, text = image_at - start, text_at - start
        return span[image : image + image_size], span[text : text + text_size]

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


def decode_captions(data: bytes, is_json: bool, where: str) -> tuple[str, ...]:
    """The captions in a .txt (the whole of it) or .json ("caption": a string or several).

    Raises BadRecord with reason bad encoding, broken metadata or empty caption.
    """
    try:
        text = data.decode("utf-8-sig")
        found = json.loads(text).get("caption") if is_json else text
    except UnicodeDecodeError:
        raise BadRecord("bad encoding", where) from None
    except (ValueError, AttributeError, RecursionError):  # no JSON, or not an object
        raise BadRecord("broken metadata", where) from None
    several = found if isinstance(found, list) else [found]
    captions = tuple(filter(None, (clean_caption(c) for c in several if isinstance(c, str))))
    if not captions:
        raise BadRecord("empty caption", where)
    if not all(map(is_text, captions)):  # JSON may spell half of a surrogate pair, or a NUL
        raise BadRecord("bad encoding", where)
    return captions


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
