"""Batches as a pure function of (seed, epoch, step): nothing to save but the step for a resume."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .pictures import MemoryPairs
from .records import BadRecord, Pairs, SkipReport
from .seeding import epoch_order, sample_seed, uniforms
from .transforms import Augment, file_transform

# Draws for the augmentation must not repeat the one that picks the caption.
_CAPTION_STREAM = 0x43415054


@dataclass(frozen=True)
class Batch:
    """images float32 [b, 3, s, s], texts [b], indices int64 [b] into the source.

    skipped: (reason, where) of the records that should have been in this batch and are left out.
    """

    images: Tensor
    texts: list[str]
    indices: Tensor
    skipped: tuple[tuple[str, str], ...] = ()


class Loader(Protocol):
    """What training sees of either loader."""

    skipped: SkipReport

    def __len__(self) -> int:
        """Steps per epoch; the incomplete last batch is dropped."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch | None]:
        """The batches of one epoch from step `start` on, the same each time they are asked for.

        None stands for a batch of which no record could be read: it is a step all the same.
        """
        ...


def make_loader(
    pairs: Pairs,
    batch_size: int,
    image_size: int,
    *,
    seed: int = 0,
    augment: Augment | None = None,
    workers: int = 0,
) -> Loader:
    """The loader that suits the source: whole tensors in memory, torch's DataLoader for files.

    augment: for a set in memory, None shows the pictures as evaluation does; files always get
    open_clip's random crop. workers: processes that decode files; 0 decodes in this one.

    Raises ValueError where there are fewer records than batch_size, or where augment or workers
    does not apply to the source.
    """
    if not 1 <= batch_size <= len(pairs):
        raise ValueError(
            f"batch_size must be between 1 and the {len(pairs):,} records of {pairs.source}, "
            f"got {batch_size}"
        )
    if isinstance(pairs, MemoryPairs):
        if workers:
            raise ValueError(f"workers must be 0 for {pairs.source}, held in memory; got {workers}")
        return MemoryLoader(pairs, batch_size, image_size, seed, augment or STILL)
    if augment is not None:
        raise ValueError(f"augment must be None for files ({pairs.source}): open_clip's is used")
    return FileLoader(pairs, batch_size, file_transform(image_size, train=True), seed, workers)


# No change at all: what `make_loader` uses where augment is None.
STILL = Augment(
    shift=0, scale=(1, 1), stretch=1, rotation=0, background=0, contrast=1, brightness=0
)


class MemoryLoader:
    """Batches of a set in memory, augmented as whole tensors in this process."""

    def __init__(
        self, pictures: MemoryPairs, batch_size: int, image_size: int, seed: int, augment: Augment
    ) -> None:
        self.pictures = pictures
        self.batch_size = batch_size
        self.image_size = image_size
        self.seed = seed
        self.augment = augment
        self.skipped = SkipReport()

    def __len__(self) -> int:
        return len(self.pictures) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """See Loader.epoch."""
        for indices in _batches(self.pictures, self.seed, epoch, self.batch_size, start):
            draws = uniforms(self.seed, epoch, indices, Augment.DRAWS)
            images = self.augment(self.pictures.images[indices], self.image_size, draws)
            texts = [
                choose_caption(self.pictures.captions[index], self.seed, epoch, index)
                for index in indices.tolist()
            ]
            yield Batch(images, texts, indices)


class FileLoader:
    """Batches of any Pairs, decoded and transformed by torch's DataLoader.

    A record that turns out bad is left out of its batch and counted; a batch of bad records only is
    None, so that the steps of an epoch are the same however it is entered.
    """

    def __init__(
        self,
        pairs: Pairs,
        batch_size: int,
        transform: Callable[[Image.Image], Tensor],
        seed: int,
        workers: int,
    ) -> None:
        self.pairs = pairs
        self.batch_size = batch_size
        self.transform = transform
        self.seed = seed
        self.workers = workers
        self.skipped = SkipReport()

    def __len__(self) -> int:
        return len(self.pairs) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch | None]:
        """See Loader.epoch."""
        order = [
            indices.tolist()
            for indices in _batches(self.pairs, self.seed, epoch, self.batch_size, start)
        ]
        batches: DataLoader[Batch] = DataLoader(
            _Samples(self.pairs, self.transform, self.seed, epoch),  # type: ignore[arg-type]
            batch_sampler=order,
            num_workers=self.workers,
            collate_fn=_collate,
            # Otherwise the DataLoader draws a seed for its workers from the training's generator.
            generator=torch.Generator(),
        )
        for batch in batches:
            for reason, where in batch.skipped:
                self.skipped.add(reason, where)
            yield batch if batch.texts else None


def choose_caption(captions: tuple[str, ...], seed: int, epoch: int, index: int) -> str:
    """One of a record's captions, each equally likely, drawn anew every epoch."""
    if len(captions) == 1:
        return captions[0]
    return captions[sample_seed(seed ^ _CAPTION_STREAM, epoch, index) % len(captions)]


def _batches(
    pairs: Pairs, seed: int, epoch: int, batch_size: int, start: int
) -> tuple[Tensor, ...]:
    """The index batches of an epoch from step `start` on; the incomplete last one is dropped."""
    steps = len(pairs) // batch_size
    order = epoch_order(seed, epoch, len(pairs))[start * batch_size : steps * batch_size]
    return torch.split(order, batch_size) if len(order) else ()


@dataclass(frozen=True)
class _Sample:
    image: Tensor
    text: str
    index: int


class _Samples(Dataset[_Sample | BadRecord]):
    """One epoch of a source: what a worker process executes."""

    def __init__(
        self, pairs: Pairs, transform: Callable[[Image.Image], Tensor], seed: int, epoch: int
    ) -> None:
        self.pairs = pairs
        self.transform = transform
        self.seed = seed
        self.epoch = epoch

    def __getitem__(self, index: int) -> _Sample | BadRecord:
        try:
            record = self.pairs[index]
        except BadRecord as bad:
            return bad
        # torchvision draws from the global generators: seed them for this sample, then put them
        # back, since with workers=0 they are the training's own.
        python_state = random.getstate()
        with torch.random.fork_rng(devices=[]):
            value = sample_seed(self.seed, self.epoch, index)
            torch.manual_seed(value)
            random.seed(value)
            image = self.transform(record.image)
        random.setstate(python_state)
        text = choose_caption(record.captions, self.seed, self.epoch, index)
        return _Sample(image, text, index)


def _collate(samples: list[_Sample | BadRecord]) -> Batch:
    good = [sample for sample in samples if isinstance(sample, _Sample)]
    return Batch(
        images=torch.stack([sample.image for sample in good]) if good else torch.empty(0),
        texts=[sample.text for sample in good],
        indices=torch.tensor([sample.index for sample in good], dtype=torch.int64),
        skipped=tuple((s.reason, s.where) for s in samples if isinstance(s, BadRecord)),
    )
