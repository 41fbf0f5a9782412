"""Evaluation datasets whose images are files of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...data import FileDataset, SkipReport
from ...data.dataset import Encoded, digest
from ...data.images import read_bytes


class ImageFiles(FileDataset):
    """Images by path, with a label or captions each.

    Accessing a file that is missing or damaged raises BadRecord; see cyclip_ext.data.images.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        *,
        captions: Sequence[tuple[str, ...]] | None = None,  # [N]
        labels: Sequence[int] | Tensor | None = None,  # [N], index into class_names
        class_names: tuple[str, ...] = (),
        skipped: SkipReport | None = None,
    ) -> None:
        self.name = name
        self.paths = tuple(paths)
        self.captions = captions
        self.labels = None if labels is None else torch.as_tensor(labels, dtype=torch.int64)
        self.class_names = class_names
        self.skipped = skipped or SkipReport()

    def __len__(self) -> int:
        return len(self.paths)

    def encoded(self, index: int) -> Encoded:
        """See FileDataset.encoded."""
        path = self.paths[index]
        captions = () if self.captions is None else self.captions[index]
        return Encoded(read_bytes(path, str(path)), str(path), captions)

    def fingerprint(self) -> str:
        """See ImageDataset.fingerprint."""
        sizes = [path.stat().st_size if path.is_file() else -1 for path in self.paths]
        names = [path.name for path in self.paths]
        labels = () if self.labels is None else self.labels.tolist()
        return digest(repr((names, sizes, self.captions, labels, self.class_names)))
