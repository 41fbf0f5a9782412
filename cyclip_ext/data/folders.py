"""A folder of image files with the captions beside them, as img2dataset's "files" output."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from .dataset import Encoded, FileDataset, digest
from .files import Strings
from .images import IMAGE_SUFFIXES, read_bytes
from .skips import SkipReport
from .tar import decode_captions
from .tar_index import CAPTION_SUFFIXES

_STATISTICS = "_stats"  # img2dataset's 00000_stats.json describes a shard, not a picture


class FolderDataset(FileDataset):
    """Image files anywhere below a folder, each with the .txt or .json of the same stem beside it.

    The caption is the whole .txt, or else "caption" of the .json. Hidden files are passed over;
    images without caption file and caption files without image are counted in `skipped`.
    """

    def __init__(self, folder: Path) -> None:
        self.name = f"image folder {folder}"
        self.folder = folder
        self.skipped = SkipReport()
        images: list[str] = []
        json: list[bool] = []
        for parent, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            prefix = os.path.relpath(parent, folder)
            for name, is_json in self._pairs(parent, names):
                images.append(os.path.normpath(os.path.join(prefix, name)))
                json.append(is_json)
        self._images = Strings(images)
        self._json = np.array(json, dtype=bool)

    def _pairs(self, parent: str, names: list[str]) -> list[tuple[str, bool]]:
        """(image, whether its caption is JSON) of one folder; the rest is counted."""
        images: list[tuple[str, str]] = []
        texts: dict[str, str] = {}
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if stem.startswith("."):
                continue
            if suffix.lower() in IMAGE_SUFFIXES:
                images.append((stem, name))
            elif suffix in CAPTION_SUFFIXES and not stem.endswith(_STATISTICS):
                texts[stem] = min(texts.get(stem, suffix), suffix, key=CAPTION_SUFFIXES.index)
        found: list[tuple[str, bool]] = []
        for stem, name in images:
            if stem in texts:
                found.append((name, texts[stem] == ".json"))
            else:
                self.skipped.add("no caption file", os.path.join(parent, name))
        for stem in sorted(texts.keys() - {stem for stem, _ in images}):
            self.skipped.add("no image file", os.path.join(parent, stem + texts[stem]))
        return found

    def __len__(self) -> int:
        return len(self._images)

    def encoded(self, index: int) -> Encoded:
        """See FileDataset.encoded."""
        path = self.folder / self._images[index]
        is_json = bool(self._json[index])
        text = read_bytes(path.with_suffix(CAPTION_SUFFIXES[is_json]), str(path))
        return Encoded(
            read_bytes(path, str(path)), str(path), decode_captions(text, is_json, str(path))
        )

    def fingerprint(self) -> str:
        """See ImageDataset.fingerprint."""
        return digest(self._images.ends, self._images.data, self._json)


def has_images(folder: Path) -> bool:
    """Whether there is any image file below a folder."""
    return any(
        os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        for _, _, names in os.walk(folder)
        for name in names
    )
