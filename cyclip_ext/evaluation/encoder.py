"""A model with all it takes to turn pictures and texts into its embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..data import InMemoryDataset, file_transform, render
from .embed import TwoTowers, embed_images, embed_texts
from .embed_sets import Embedded, Set, embed_set

BATCH = 256


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto": cuda where there is one, else the CPU.

    Raises ValueError where there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used: {reason}; try --device auto") from error
    return device


@dataclass(frozen=True)
class Encoder:
    """Embeds with one model; see embed_images and embed_texts for what comes out.

    image_size: width of the square pictures it takes, in pixels. autocast: makes the context of
    reduced precision of the image tower. transform: of a single picture, PIL -> [3, image_size,
    image_size]; None: as this package trains (file_transform, and render for sets in memory).
    """

    model: TwoTowers
    tokenizer: Callable[[list[str]], Tensor]
    image_size: int
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    transform: Callable[[Image.Image], Tensor] | None = None
    batch_size: int = BATCH

    def texts(self, texts: list[str]) -> Tensor:
        """[len(texts), d]."""
        return embed_texts(self.model, lambda batch: self.tokenizer(batch).to(self.device), texts)

    def opened(self, data: Set) -> Embedded[Set]:
        """A set whose pictures are opened one by one; see embed_set."""
        return embed_set(
            self.model,
            data,
            self.transform or file_transform(self.image_size),
            device=self.device,
            batch_size=self.batch_size,
            autocast=self.autocast,
        )

    def pictures(self, pictures: InMemoryDataset) -> Tensor:
        """[len(pictures), d], of a set in memory."""
        return embed_images(self.model, self._batches(pictures), autocast=self.autocast)

    def _batches(self, pictures: InMemoryDataset) -> Iterator[Tensor]:
        if self.transform is None:
            for part in pictures.images.split(self.batch_size):
                yield render(part, self.image_size).to(self.device)
            return
        for start in range(0, len(pictures), self.batch_size):
            indices = range(start, min(start + self.batch_size, len(pictures)))
            parts = [self.transform(pictures[index].image) for index in indices]
            yield torch.stack(parts).to(self.device)
