"""img2dataset / webdataset shards: random access into .tar files through an index of offsets.

One pass over the headers finds every sample; after that any order of access costs one read.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from .._output import counted
from .captions import decode_captions
from .columns import Columns
from .dataset import Encoded, FileDataset, digest
from .folders import content_state, size_of
from .images import MAX_BYTES
from .skips import BadRecord, SkipReport
from .tar_index import BROKEN_LABEL, NO_LABEL, tar_index

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

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.descriptor, size, offset)

    def read_both(
        self, image_at: int, image_size: int, text_at: int, text_size: int
    ) -> tuple[bytes, bytes]:
        start = min(image_at, text_at)
        end = max(image_at + image_size, text_at + text_size)
        if end - start > image_size + text_size + _NEAR:
            return self.read(image_at, image_size), self.read(text_at, text_size)
        span = self.read(start, end - start)
        image, text = image_at - start, text_at - start
        return span[image : image + image_size], span[text : text + text_size]


class TarDataset(FileDataset):
    """Samples of tar shards: members of one key, an image beside a .txt, .json or .cls.

    The caption is the whole .txt, or else "caption" of the .json (a string or a list of strings).
    labelled: samples need a label, the number in their .cls, instead of a caption; the caller sets
    class_names. one_per_line: a .txt has a caption on each line.

    Samples without image or caption, ambiguous ones, and what follows a break in an archive, are
    counted in `skipped`. Reading is by position, so threads and forked workers can share one
    object; the 64 shards used last stay open. Raises ValueError for no shards and for compressed
    ones.
    """

    def __init__(
        self, shards: Sequence[Path], *, labelled: bool = False, one_per_line: bool = False
    ) -> None:
        if not shards:
            raise ValueError("shards must name at least one .tar file, got none")
        self.name = f"{counted(len(shards), 'tar shard')} in {shards[0].parent}"
        self.shards = tuple(shards)
        self._one_per_line = one_per_line
        self._states = [content_state(shard) for shard in self.shards]  # before they are indexed
        self._index = tar_index(self.shards)
        self._files: OrderedDict[int, _OpenFile] = OrderedDict()  # by shard, used last at the end
        self.skipped = SkipReport.from_dict(self._index.meta["skipped"])
        if labelled:
            if not self.has_labels:
                none = {"labels": np.full(len(self), NO_LABEL)}
                self._index = Columns({**self._index.arrays, **none}, {})
            self._choose("no .cls file", self._index.arrays["labels"] != NO_LABEL)
            self._choose("broken label", self._index.arrays["labels"] != BROKEN_LABEL)
            self.labels = torch.from_numpy(self._index.arrays["labels"].astype(np.int64))
        elif self.has_labels:  # otherwise every sample has a text
            self._choose("no caption file", self._index.arrays["rows"]["text"] >= 0)

    @property
    def has_labels(self) -> bool:
        """Whether any sample has a label."""
        return "labels" in self._index.arrays

    def _choose(self, reason: str, good: npt.NDArray[np.bool_]) -> None:
        bad = np.flatnonzero(~good)
        if len(bad):
            self.skipped.add(reason, self.where(int(bad[0])), len(bad))
            arrays, chosen = self._index.arrays, np.flatnonzero(good)
            starts = np.searchsorted(chosen, arrays["starts"])
            rows, labels = arrays["rows"][chosen], arrays["labels"][chosen]
            self._index = Columns({"rows": rows, "labels": labels, "starts": starts}, {})

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._index.arrays["starts"], index, side="right")) - 1

    def where(self, index: int) -> str:
        """Return the place of a sample, its key."""
        image = int(self._index.arrays["rows"][index]["image"])
        return f"{self.shards[self._shard(index)]} at byte {image}"

    def __len__(self) -> int:
        return len(self._index.arrays["rows"])

    def encoded(self, index: int) -> Encoded:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be between 0 and {len(self) - 1}, got {index}")
        row = self._index.arrays["rows"][index]
        image_at, image_size, text_at, text_size, is_json = row.tolist()
        if self.labels is not None:
            text_at, text_size = image_at, 0  # the text is not read
        shard, key = self._shard(index), self.where(index)
        if max(image_size, text_size) > MAX_BYTES:
            raise BadRecord("too large", key)
        try:
            file = self._open(shard)
            data, text = file.read_both(image_at, image_size, text_at, text_size)
        except OSError as error:
            raise BadRecord(f"unreadable ({type(error).__name__})", key) from None
        if len(text) < text_size or len(data) < image_size:
            raise BadRecord("unreadable (shard cut off since it was opened)", key)
        if content_state(file.descriptor) != self._states[shard]:
            raise BadRecord("unreadable (shard changed since it was opened)", key)
        if self.labels is not None:
            return Encoded(data, key)
        captions = decode_captions(text, is_json, key, one_per_line=self._one_per_line)
        return Encoded(data, key, captions)

    def fingerprint(self) -> str:
        """See ImageDataset.fingerprint: shards by name and size, and the samples' places."""
        folder = self.shards[0].parent
        names = [(os.path.relpath(shard, folder), size_of(shard)) for shard in self.shards]
        return digest(repr(names), self._index.arrays["rows"])

    def _open(self, shard: int) -> _OpenFile:
        # Each step is atomic, so threads at worst open a shard twice.
        file = self._files.pop(shard, None) or _OpenFile(self.shards[shard])
        self._files[shard] = file
        if len(self._files) > _OPEN_SHARDS:
            self._files.popitem(last=False)
        return file

    def __getstate__(self) -> dict[str, object]:
        # Descriptors mean nothing in another process.
        return self.__dict__ | {"_files": OrderedDict[int, _OpenFile]()}
