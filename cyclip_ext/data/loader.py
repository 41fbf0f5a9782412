"""Batches as a pure function of (seed, epoch, step): nothing to save but the step for a resume."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import RawArray
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .captions import choose_caption, other_caption
from .dataset import ImageDataset, InMemoryDataset
from .processes import AHEAD, ordered_map
from .seeding import epoch_order, uniforms
from .skips import BadRecord, SkipReport
from .transforms import CROP_DRAWS, CROP_SIDE, Augment, random_crop

# The draws of view v come from the stream seed ^ _VIEW_STREAM[v]: view 0 is the same with or
# without another beside it.
_VIEW_STREAM = (0, 0x56494557)

# A picture is decoded at no less than this many times the resolution it is resized to; then bicubic
# hardly differs from that of the full size (docs/data.md).
_DECODE_MARGIN = 2.0


@dataclass(frozen=True)
class Batch:
    """images [b, 3, s, s], texts [b], indices int64 [b] into the source.

    Pictures of files are uint8, a quarter of the bytes to send to a device, and become a model's
    input there by transforms.as_input; those of sets in memory are that already.

    skipped: (reason, where) of the records that should have been in this batch and are left out.
    other_images [b, 3, s, s], other_texts [b]: the second view of each pair, if asked for.
    """

    images: Tensor
    texts: list[str]
    indices: Tensor
    skipped: tuple[tuple[str, str], ...] = ()
    other_images: Tensor | None = None
    other_texts: list[str] | None = None


class Loader(Protocol):
    """What training sees of either loader."""

    skipped: SkipReport  # of the epoch last asked for, as far as it was read

    def __len__(self) -> int:
        """Steps per epoch; the incomplete last batch is dropped."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch | None]:
        """The batches of one epoch from step `start` on, the same each time they are asked for.

        None stands for a batch of which no record could be read: it is a step all the same.
        """
        ...


@dataclass(frozen=True)
class Share:
    """Which part of each step's batch is this rank's.

    Step k of an epoch takes order[k * B : (k + 1) * B], B = batch_size * world_size, and rank r the
    r-th batch_size of it: over all ranks nothing is lost or seen twice, and the whole batch of a
    step is the same for each way of dividing B.
    """

    batch_size: int
    rank: int = 0
    world_size: int = 1

    def steps(self, count: int) -> int:
        """Whole steps in an epoch of `count` records."""
        return count // (self.batch_size * self.world_size)

    def of(self, order: Tensor, step: int) -> Tensor:
        """This rank's indices of one step; int64 [batch_size]."""
        start = (step * self.world_size + self.rank) * self.batch_size
        return order[start : start + self.batch_size]


def make_loader(
    pairs: ImageDataset,
    batch_size: int,
    image_size: int,
    *,
    seed: int = 0,
    augment: Augment | None = None,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    views: int = 1,
) -> Loader:
    """The loader that suits the source: whole tensors in memory, worker processes for files.

    batch_size: pairs per step of this rank; see Share for how ranks divide a step. augment: for a
    set in memory, None shows the pictures as evaluation does; files always get open_clip's random
    crop. workers: processes that decode files; 0 decodes in this one. views: 2 adds a second one
    of each pair, the picture augmented by draws of its own and another caption (other_caption).

    Raises ValueError where there are fewer records than a step takes, where rank, world_size or
    views is out of range, or where augment or workers does not apply to the source.
    """
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, world_size), got {rank} of {world_size}")
    if not 1 <= batch_size <= len(pairs) // world_size:
        over = f" over {world_size} ranks" if world_size > 1 else ""
        raise ValueError(
            f"batch_size must be between 1 and the {len(pairs):,} records of {pairs.name}{over}, "
            f"got {batch_size}"
        )
    if views not in (1, 2):
        raise ValueError(f"views must be 1 or 2, got {views}")
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}")
    share = Share(batch_size, rank, world_size)
    if isinstance(pairs, InMemoryDataset):
        if workers:
            raise ValueError(f"workers must be 0 for {pairs.name}, held in memory; got {workers}")
        return MemoryLoader(pairs, share, image_size, seed, augment or STILL, views)
    if augment is not None:
        raise ValueError(f"augment must be None for files ({pairs.name}): open_clip's is used")
    return FileLoader(pairs, share, image_size, seed, workers, views)


# No change at all: what `make_loader` uses where augment is None.
STILL = Augment(
    shift=0, scale=(1, 1), stretch=1, rotation=0, background=0, contrast=1, brightness=0
)


class MemoryLoader:
    """Batches of a set in memory, augmented as whole tensors in this process."""

    def __init__(
        self,
        pictures: InMemoryDataset,
        share: Share,
        image_size: int,
        seed: int,
        augment: Augment,
        views: int,
    ) -> None:
        self.pictures = pictures
        self.share = share
        self.image_size = image_size
        self.seed = seed
        self.augment = augment
        self.views = views
        self.skipped = SkipReport()

    def __len__(self) -> int:
        return self.share.steps(len(self.pictures))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """See Loader.epoch."""
        self.skipped = SkipReport()
        return self._batches(epoch, start)

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        order = epoch_order(self.seed, epoch, len(self.pictures))
        for step in range(start, len(self)):
            indices = self.share.of(order, step)
            images = [
                self.augment(
                    self.pictures.images[indices],
                    self.image_size,
                    uniforms(self.seed ^ stream, epoch, indices, Augment.DRAWS),
                )
                for stream in _VIEW_STREAM[: self.views]
            ]
            records = [(self.pictures.captions[index], index) for index in indices.tolist()]
            texts = [choose_caption(captions, self.seed, epoch, i) for captions, i in records]
            if self.views == 1:
                yield Batch(images[0], texts, indices)
                continue
            others = [other_caption(captions, self.seed, epoch, i) for captions, i in records]
            yield Batch(images[0], texts, indices, (), images[1], others)


class FileLoader:
    """Batches of any dataset, decoded and cropped in worker processes.

    A record that turns out bad is left out of its batch and counted; a batch of bad records only is
    None, so that the steps of an epoch are the same however it is entered.

    Workers write 8-bit pixels into memory they share with this process: nothing is sent.
    """

    def __init__(
        self,
        pairs: ImageDataset,
        share: Share,
        image_size: int,
        seed: int,
        workers: int,
        views: int,
    ) -> None:
        self.pairs = pairs
        self.share = share
        self.image_size = image_size
        self.seed = seed
        self.workers = workers
        self.views = views
        self.skipped = SkipReport()

    def __len__(self) -> int:
        return self.share.steps(len(self.pairs))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch | None]:
        """See Loader.epoch. Raises WorkerDied where a worker process was killed."""
        self.skipped = SkipReport()
        return self._batches(epoch, start, self.skipped)

    def _batches(self, epoch: int, start: int, skipped: SkipReport) -> Iterator[Batch | None]:
        # One slot more than there are items under way: the one whose batch is being taken.
        slots = AHEAD * self.workers + 1
        shape = (slots, self.views, self.share.batch_size, 3, self.image_size, self.image_size)
        size = math.prod(shape)
        memory = RawArray("B", size) if self.workers else bytearray(size)
        order = epoch_order(self.seed, epoch, len(self.pairs))
        read = _Reader(self.pairs, self.share, order, self.seed, epoch, shape, memory)
        for taken in ordered_map(read, range(start, len(self)), self.workers):
            for reason, where in taken.skipped:
                skipped.add(reason, where)
            count = len(taken.texts)
            if not count:
                yield None
                continue
            # Copied: the slot is written to again.
            images = [torch.from_numpy(view[:count].copy()) for view in read.pixels()[taken.slot]]
            indices = torch.tensor(taken.indices)
            others = images[1] if self.views == 2 else None
            yield Batch(images[0], taken.texts, indices, taken.skipped, others, taken.other_texts)


@dataclass(frozen=True)
class _Taken:
    """What a worker answers: where in the shared memory the pictures are, and all the rest."""

    slot: int
    texts: list[str]
    other_texts: list[str] | None
    indices: list[int]
    skipped: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Reader:
    """Reads this rank's batch of a step; what a worker process executes. Draws no random numbers.

    shape: of the pixels in memory, [slots, views, batch_size, 3, s, s]. Steps take slots in turn.
    """

    pairs: ImageDataset
    share: Share
    order: Tensor
    seed: int
    epoch: int
    shape: tuple[int, ...]
    memory: Any

    def pixels(self) -> npt.NDArray[np.uint8]:
        return np.frombuffer(self.memory, dtype=np.uint8).reshape(self.shape)

    def __call__(self, step: int) -> _Taken:
        slots, views, _, _, _, size = self.shape
        slot = step % slots
        pixels = self.pixels()[slot]
        indices = self.share.of(self.order, step)
        draws = [
            uniforms(self.seed ^ stream, self.epoch, indices, CROP_DRAWS).tolist()
            for stream in _VIEW_STREAM[:views]
        ]
        side = math.ceil(_DECODE_MARGIN * size / CROP_SIDE)
        texts: list[str] = []
        others: list[str] = []
        kept: list[int] = []
        skipped: list[tuple[str, str]] = []
        for row, index in enumerate(indices.tolist()):
            try:
                record = self.pairs.load(index, min_side=side)
            except BadRecord as bad:
                skipped.append((bad.reason, bad.where))
                continue
            for view in range(views):
                pixels[view, len(kept)] = random_crop(record.image, size, draws[view][row])
            texts.append(choose_caption(record.captions, self.seed, self.epoch, index))
            if views == 2:
                others.append(other_caption(record.captions, self.seed, self.epoch, index))
            kept.append(index)
        return _Taken(slot, texts, others if views == 2 else None, kept, tuple(skipped))
