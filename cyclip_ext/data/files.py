"""Millions of strings as one block of bytes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt


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
