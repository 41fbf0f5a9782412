"""Pictures that are files of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path

from PIL import Image

from ...data.images import open_image


class FileImages:
    """Pictures by path, opened when asked for, by the one policy that training has, too.

    Raises BadRecord on access where a file is missing or damaged; see cyclip_ext.data.images.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> Image.Image:
        return open_image(self.paths[index], str(self.paths[index]))

    def fingerprint(self) -> str:
        """Of names, sizes and times of change: see feature_cache."""
        return state_of_files(self.paths)


def state_of_files(paths: Iterable[Path]) -> str:
    """A digest of the names, sizes and times of change of files, in their order."""
    hashed = blake2b(digest_size=16)
    for path in paths:
        try:
            status = path.stat()
            state = f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0"
        except OSError:
            state = f"{path}\0missing\0"
        hashed.update(state.encode("utf-8", "surrogateescape"))
    return hashed.hexdigest()
