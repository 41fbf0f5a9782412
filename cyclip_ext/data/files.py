"""What every source on disk has in common: encoded bytes first, decoding second."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from .images import open_image
from .records import Pairs, Record


@dataclass(frozen=True, slots=True)
class Encoded:
    """A record before decoding: the bytes of its image file, its captions, its key."""

    data: bytes
    captions: tuple[str, ...]
    key: str


@dataclass(frozen=True)
class Fingerprint:
    """Tells one data set from another: a manifest holds for the same records in the same order.

    Times and folders are left out, so that a copy is the same data.
    files: (name, bytes) of the table or of the shards. keys: digest of the records' names, where
    they are not in those files.
    """

    records: int
    files: tuple[tuple[str, int], ...]
    keys: str = ""


class FilePairs(Pairs):
    """Pairs whose pictures are files, or parts of files."""

    @abstractmethod
    def encoded(self, index: int) -> Encoded:
        """Record `index` as stored; BadRecord where it cannot be read or has no usable caption."""

    @abstractmethod
    def fingerprint(self) -> Fingerprint:
        """Of the whole source."""

    def __getitem__(self, index: int) -> Record:
        """Read and decode record `index`; BadRecord where that fails."""
        found = self.encoded(index)
        image = open_image(found.data, found.key)
        return Record(image, found.captions, found.key)

    def reduced(self, index: int, side: int) -> Record:
        """See Pairs.reduced."""
        found = self.encoded(index)
        image = open_image(found.data, found.key, least_side=side)
        return Record(image, found.captions, found.key)


class Strings:
    """Millions of strings as one block of bytes.

    As Python objects they take several times the memory, and a forked worker copies them all merely
    by counting references.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        # surrogateescape: names of files need not be UTF-8
        encoded = [string.encode("utf-8", "surrogateescape") for string in strings]
        self.ends: npt.NDArray[np.int64] = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self.data = b"".join(encoded)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be between 0 and {len(self) - 1}, got {index}")
        start, end = self.ends[index], self.ends[index + 1]
        return self.data[start:end].decode("utf-8", "surrogateescape")

    def digest(self) -> str:
        """Hexadecimal, of all strings in their order."""
        hashed = blake2b(self.ends.astype("<i8").tobytes(), digest_size=16)
        hashed.update(self.data)
        return hashed.hexdigest()
