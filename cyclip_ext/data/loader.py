"""Batches as a pure function of (seed, epoch, step), so that a run can resume at any step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .captions import caption_hash, choose_caption, hash63, other_caption, shorten
from .dataset import ImageDataset, InMemoryDataset
from .seeding import epoch_order, uniforms
from .skips import BadRecord, SkipReport
from .transforms import CROP_DRAWS, CROP_SIDE, Augment, random_crop
from .workers import Workers

Tokenize = Callable[[list[str]], Tensor]

# The draws of view v come from the stream seed ^ _VIEW_STREAM[v]: the first view is the same with
# or without a second one.
_VIEW_STREAM = (0, 0x56494557)

# An image is decoded at no less than this many times the resolution it is resized to. Bicubic
# resizing then hardly differs from that of the full size (docs/data.md).
_DECODE_MARGIN = 2.0

# No change at all: the images of an in-memory dataset as evaluation shows them.
_STILL = Augment(
    shift=0, scale=(1, 1), stretch=1, rotation=0, background=0, contrast=1, brightness=0
)


@dataclass(frozen=True)
class Batch:
    """Images and texts of b records, in v views: first all first views, then all second ones.

    images: [v b, 3, s, s], uint8 from files, a quarter of the bytes to send to a device, where
        transforms.as_input makes them a model's input. Those of in-memory datasets are that
        already.
    texts: [v b]. tokens: int64 [v b, length], if the loader tokenizes.
    indices: int64 [b], into the dataset.
    hashes: int64 [h, 2], if the loader computes them: a row of the batch, and the hash of its image
        or of one of its captions (caption_hash). Rows that share one show the same thing.
    skipped: (reason, where) of the records that belong to this batch and could not be used.
    shortened: captions that were cut before tokenizing, see captions.shorten.
    """

    images: Tensor
    texts: list[str]
    indices: Tensor
    tokens: Tensor | None = None
    hashes: npt.NDArray[np.int64] | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    shortened: int = 0

    def __len__(self) -> int:
        return len(self.indices)

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, from which copies to a GPU are asynchronous."""
        tokens = None if self.tokens is None else self.tokens.pin_memory()
        return replace(self, images=self.images.pin_memory(), tokens=tokens)


class Loader:
    """Augmented batches of a dataset, the same for any number of ranks that share a batch.

    Step k of an epoch takes order[k * B : (k + 1) * B], B = batch_size * world_size, and rank r the
    r-th batch_size of it. A sample's crop and caption depend on (seed, epoch, index) alone. The
    records that do not fill the last batch of an epoch are dropped; the next epoch has others.

    batch_size: records per step of this rank. augment: only for in-memory datasets (None shows the
    images as evaluation does); files always get open_clip's random crop. workers: processes that
    decode files; 0 decodes in this one. views: 2 adds a second view of each record, with an
    augmentation and a caption of its own (other_caption). tokenize: texts -> int64 [n, length],
    called where the batch is made; it must be picklable unless processes are forked. hashes:
    compute Batch.hashes. pin_memory: puts batches in page-locked memory, for copies to a GPU.

    skipped: report of the current epoch, as far as it was read; a new object if it changes.
    shortened: the captions that were cut in it.

    Raises ValueError if a step takes more records than there are, if rank, world_size, views or
    workers is out of range, or if augment or workers does not apply to the dataset.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        image_size: int,
        *,
        seed: int = 0,
        augment: Augment | None = None,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        views: int = 1,
        tokenize: Tokenize | None = None,
        hashes: bool = False,
        pin_memory: bool = False,
    ) -> None:
        if world_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size), got {rank} of {world_size}")
        if not 1 <= batch_size <= len(dataset) // world_size:
            over = f" over {world_size} ranks" if world_size > 1 else ""
            raise ValueError(
                f"batch_size must be between 1 and the {len(dataset):,} records of {dataset.name}"
                f"{over}, got {batch_size}"
            )
        if views not in (1, 2):
            raise ValueError(f"views must be 1 or 2, got {views}")
        if workers < 0:
            raise ValueError(f"workers must be 0 or more, got {workers}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.skipped = SkipReport()
        self.shortened = 0
        views_of = _Views(seed, views, tokenize)
        read: Callable[[_Step], Batch]
        if isinstance(dataset, InMemoryDataset):
            if workers:
                raise ValueError(
                    f"workers must be 0 for {dataset.name}, which is in memory, got {workers}"
                )
            read = _MemoryReader(dataset, image_size, augment or _STILL, views_of, hashes)
        elif augment is None:
            read = _FileReader(dataset, image_size, views_of, hashes)
        else:
            raise ValueError(
                f"augment must be None for {dataset.name}, whose files are cropped, got {augment!r}"
            )
        self._workers = Workers(read, workers, pin_memory=pin_memory)
        self._pin_here = pin_memory and not workers
        self._warned = False

    def __len__(self) -> int:
        """Return the number of steps of an epoch."""
        return len(self.dataset) // (self.batch_size * self.world_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch | None]:
        """Yield the batches of one epoch from step `start` on, the same for each call.

        A batch without a usable record is None, so that step k is the same for every `start`. Only
        the iterator of the last call may be used.

        Raises WorkerDied if a worker process was killed.
        """
        self.skipped = SkipReport()
        self.shortened = 0
        return self._batches(epoch, start)

    def _batches(self, epoch: int, start: int) -> Iterator[Batch | None]:
        order = epoch_order(self.seed, epoch, len(self.dataset)).numpy()
        size = self.batch_size
        firsts = ((k * self.world_size + self.rank) * size for k in range(start, len(self)))
        steps = (_Step(epoch, order[first : first + size]) for first in firsts)
        for batch in self._workers.map(steps):
            if batch.skipped:
                self.skipped = self.skipped.copy()
            for reason, where in batch.skipped:
                self.skipped.add(reason, where)
            self.shortened += batch.shortened
            if batch.shortened and not self._warned:
                self._warned = True
                warnings.warn(
                    f"{self.dataset.name} has captions with extremely long words, which are cut "
                    "before tokenizing; `cyclip-data verify` counts them",
                    stacklevel=3,
                )
            if not len(batch):
                yield None
            else:
                yield batch.pin_memory() if self._pin_here else batch

    def close(self) -> None:
        """End the worker processes; they also end with the loader or the program."""
        self._workers.close()


@dataclass(frozen=True)
class _Step:
    """The records of one batch."""

    epoch: int
    indices: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Views:
    """The texts and random numbers of a batch's views, all first ones before all second ones."""

    seed: int
    count: int
    tokenize: Tokenize | None

    def texts(
        self, captions: list[tuple[str, ...]], step: _Step
    ) -> tuple[list[str], Tensor | None, int]:
        """Return texts, tokens, and the number of texts that were cut."""
        owners = list(zip(captions, step.indices.tolist(), strict=True))
        chosen = [choose_caption(own, self.seed, step.epoch, i) for own, i in owners]
        if self.count == 2:
            chosen += [other_caption(own, self.seed, step.epoch, i) for own, i in owners]
        texts = [shorten(text) for text in chosen]
        tokens = self.tokenize(texts) if self.tokenize is not None and texts else None
        return texts, tokens, sum(map(str.__ne__, texts, chosen))

    def draws(self, step: _Step, count: int) -> list[Tensor]:
        """Return float32 [b, count] in [0, 1) for each view."""
        indices = torch.from_numpy(step.indices)
        streams = _VIEW_STREAM[: self.count]
        return [uniforms(self.seed ^ stream, step.epoch, indices, count) for stream in streams]


@dataclass(frozen=True)
class _MemoryReader:
    """A function that makes batches of an in-memory dataset, augmented as whole tensors."""

    dataset: InMemoryDataset
    image_size: int
    augment: Augment
    views: _Views
    hashes: bool

    def __call__(self, step: _Step) -> Batch:
        indices = torch.from_numpy(step.indices)
        images = [
            self.augment(self.dataset.images[indices], self.image_size, draws)
            for draws in self.views.draws(step, Augment.DRAWS)
        ]
        captions = [self.dataset.captions[i] for i in step.indices]
        texts, tokens, shortened = self.views.texts(captions, step)
        hashes = None
        if self.hashes:
            pixels = self.dataset.images[indices].numpy()
            hashes = _hashes([hash63(image.tobytes()) for image in pixels], captions)
        joined = images[0] if len(images) == 1 else torch.cat(images)
        return Batch(joined, texts, indices, tokens, hashes, shortened=shortened)


@dataclass(frozen=True)
class _FileReader:
    """A function that makes batches of a dataset on disk: it decodes, crops and tokenizes."""

    dataset: ImageDataset
    image_size: int
    views: _Views
    hashes: bool

    def __call__(self, step: _Step) -> Batch:
        size, views = self.image_size, self.views.count
        pixels = np.empty((views, len(step.indices), 3, size, size), dtype=np.uint8)
        draws = [view.tolist() for view in self.views.draws(step, CROP_DRAWS)]
        side = math.ceil(_DECODE_MARGIN * size / CROP_SIDE)
        captions: list[tuple[str, ...]] = []
        hashes: list[int] = []
        good: list[int] = []
        skipped: list[tuple[str, str]] = []
        for row, index in enumerate(step.indices.tolist()):
            try:
                sample = self.dataset.load(index, min_side=side)
            except BadRecord as bad:
                skipped.append((bad.reason, bad.where))
                continue
            except MemoryError:
                skipped.append(("out of memory", f"{self.dataset.name}[{index}]"))
                continue
            if not sample.captions:
                skipped.append(("no caption", sample.key))
                continue
            for view in range(views):
                pixels[view, len(good)] = random_crop(sample.image, size, draws[view][row])
            if self.hashes:
                hashes.append(hash63(sample.image.tobytes()))
            captions.append(sample.captions)
            good.append(row)
        used = replace(step, indices=step.indices[good])
        texts, tokens, shortened = self.views.texts(captions, used)
        images = torch.from_numpy(pixels[:, : len(good)].reshape(-1, 3, size, size))
        indices = torch.from_numpy(used.indices)
        found = _hashes(hashes, captions) if self.hashes else None
        return Batch(images, texts, indices, tokens, found, tuple(skipped), shortened)


def _hashes(images: list[int], captions: list[tuple[str, ...]]) -> npt.NDArray[np.int64]:
    """Return Batch.hashes, from the hash of each image."""
    found = [
        (row, number)
        for row, (image, own) in enumerate(zip(images, captions, strict=True))
        for number in (image, *map(caption_hash, own))
    ]
    return np.array(found, dtype=np.int64).reshape(-1, 2)
