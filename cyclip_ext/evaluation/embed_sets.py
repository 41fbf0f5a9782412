"""Embeddings of the pictures of a set; those that cannot be read leave it, counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from PIL import Image
from torch import Tensor

from ..data import BadRecord, SkipReport
from ..data.workers import cores
from .embed import TwoTowers, embed_images
from .sets import CaptionedImages, ClassifiedImages, Images, Quadruples

Set = TypeVar("Set", ClassifiedImages, CaptionedImages, Quadruples)

BATCH = 256


@dataclass(frozen=True)
class Embedded(Generic[Set]):
    """A set with the embeddings of its pictures.

    data: the set without what could not be read: labels, captions and tags belong to the rows of
        image_features, and data.skipped counts what is missing.
    image_features: float32 [n, d], unit length; of Quadruples [n, 2, d], first and second picture.
    kept: int64 [n], positions in the set that was embedded. skipped: what embedding left out.
    """

    data: Set
    image_features: Tensor
    kept: Tensor
    skipped: SkipReport


def embed_set(
    model: TwoTowers,
    data: Set,
    transform: Callable[[Image.Image], Tensor],
    *,
    device: torch.device | str = "cpu",
    batch_size: int = BATCH,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Embedded[Set]:
    """Open, transform and embed every picture, in batches, on a device.

    transform: an RGB picture -> [3, h, w], as open_clip's; threads open and transform the next
    batch meanwhile, so it must not change anything. batch_size: pictures, of Quadruples pairs.
    autocast: see embed_images.

    A picture that raises BadRecord is left out, of Quadruples with the other picture and both
    captions. Raises ValueError where no picture can be read (with the reasons) and for one that is
    not RGB.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    views: tuple[Images, ...] = (
        (data.first_images, data.second_images) if isinstance(data, Quadruples) else (data.images,)
    )
    kept: list[int] = []
    skipped = SkipReport()

    def load(index: int) -> Tensor | BadRecord:
        try:
            pictures = [images[index] for images in views]
        except BadRecord as bad:
            return bad
        for picture in pictures:
            _require_rgb(data.name, index, picture)
        return torch.stack([transform(picture) for picture in pictures])

    def batches() -> Iterator[Tensor]:
        for loaded in _loaded_ahead(load, len(data), batch_size):
            good = []
            for index, result in loaded:
                if isinstance(result, BadRecord):
                    skipped.add(result.reason, result.where)
                else:
                    kept.append(index)
                    good.append(result)
            if good:
                yield torch.cat(good).to(device)  # [b * views, 3, h, w]
        if not kept:
            raise ValueError(f"no picture of {data.name} can be read: {skipped}")

    rows = embed_images(model, batches(), autocast=autocast)
    features = rows if len(views) == 1 else rows.unflatten(0, (-1, len(views)))
    indices = torch.tensor(kept)
    return Embedded(data.part(indices, skipped), features, indices, skipped)


def _loaded_ahead(
    load: Callable[[int], Tensor | BadRecord], count: int, batch_size: int
) -> Iterator[list[tuple[int, Tensor | BadRecord]]]:
    """Results with their indices, a batch at a time, in order; threads are one batch ahead.

    Threads suffice: Pillow decodes and resizes without holding the interpreter lock.
    """
    with ThreadPoolExecutor(cores()) as pool:
        ahead: list[tuple[int, Future[Tensor | BadRecord]]] = []
        for start in range(0, count, batch_size):
            indices = range(start, min(start + batch_size, count))
            current, ahead = ahead, [(index, pool.submit(load, index)) for index in indices]
            if current:
                yield [(index, future.result()) for index, future in current]
        yield [(index, future.result()) for index, future in ahead]


def _require_rgb(name: str, index: int, picture: Image.Image) -> None:
    mode = picture.mode if isinstance(picture, Image.Image) else type(picture).__name__
    if mode != "RGB":
        raise ValueError(
            f'{name}: picture {index} must be an RGB PIL image, got {mode}; convert it ("RGB") in '
            "the set's __getitem__"
        )
