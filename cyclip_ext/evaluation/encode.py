"""Embeddings of a dataset: the only place in which evaluation applies a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..data import (
    BadRecord,
    ImageDataset,
    InMemoryDataset,
    Sample,
    SkipReport,
    file_transform,
    render,
)
from ..data.skips import printable
from .datasets.winoground import Quadruples
from .embeddings import Embeddings
from .encoder import Encoder
from .prompts import Prompts
from .tasks.base import THUMBNAIL
from .tasks.zero_shot import class_embeddings


def encode(
    dataset: ImageDataset | Quadruples,
    encoder: Encoder,
    *,
    prompts: Prompts | None = None,
    captions: bool = True,
    classes_of: Embeddings | None = None,
) -> Embeddings:
    """Embed the images of a dataset, its captions and the prompts of its classes.

    Images that cannot be read have no row; they are counted in `skipped`, together with the records
    that opening the dataset skipped. If one image of a quadruple
    cannot be read, the whole quadruple is skipped.

    In a dataset in memory with classes, captions belong to classes rather than to images. Then
    text_features are the captions that belong to exactly one class, and synonym_features average
    all captions of each class.

    Args:
        dataset: The dataset; samples may have labels, captions or both.
        encoder: The model.
        prompts: Class names and templates that replace those of the dataset.
        captions: Whether to embed captions; without them only the classes have texts.
        classes_of: Embeddings whose class_features are taken over if they are of the same class
            names, with the same prompts.

    Raises:
        ValueError: If no image can be read (with the reasons), or an image is not RGB.
    """
    if isinstance(dataset, Quadruples):
        return _encode_quadruples(dataset, encoder)
    found: dict[str, Any] = {}
    if dataset.class_names:  # before the images: errors in prompts are found early
        found |= _classes(dataset, encoder, prompts or Prompts(), classes_of)
    read = _read_images(dataset, encoder)
    if dataset.class_names:
        found["labels"] = read.labels(dataset)
        found["levels"] = dataset.levels
    if dataset.domains is not None:
        found |= {"domains": dataset.domains[read.kept], "domain_names": dataset.domain_names}
    if captions:
        found |= _captions(dataset, encoder, read)
    return Embeddings(
        read.features,
        name=dataset.name,
        image_ids=read.keys,
        logit_scale=encoder.logit_scale,
        skipped=read.skipped,
        load_image=partial(_load_image, dataset, read.kept),
        **found,
    )


def _load_image(dataset: ImageDataset, kept: Tensor, row: int) -> Image.Image:
    return dataset.load(int(kept[row]), min_side=THUMBNAIL).image


@dataclass
class _Read:
    """The images of a dataset that could be read, and the rest of their samples."""

    features: Tensor = field(default_factory=lambda: torch.empty(0))
    kept: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    samples: list[Sample] | None = None  # without their images; None: all of them, in memory
    skipped: SkipReport = field(default_factory=SkipReport)

    @property
    def keys(self) -> tuple[str, ...] | None:
        if self.samples is None:
            return None
        return tuple(printable(sample.key) for sample in self.samples)

    def labels(self, dataset: ImageDataset) -> Tensor | None:
        """Return the labels of the rows, or None if they have none."""
        if dataset.labels is not None:
            return dataset.labels[self.kept]
        labels = [sample.label for sample in self.samples or ()]
        known = [label for label in labels if label is not None]
        return torch.tensor(known) if known and len(known) == len(labels) else None


_NO_IMAGE = Image.new("RGB", (1, 1))  # in place of images that have been embedded


def _read_images(dataset: ImageDataset, encoder: Encoder, views: int = 1) -> _Read:
    """Read, transform and embed all images; of each group of `views` all must be readable."""
    read = _Read()
    read.skipped.merge(dataset.skipped)
    with tqdm(
        total=len(dataset),
        desc=dataset.name,
        unit="image",
        disable=None if encoder.progress else True,  # None: unless stderr is not a terminal
    ) as bar:
        if isinstance(dataset, InMemoryDataset) and encoder.transform is None:
            read.kept = torch.arange(len(dataset))
            read.features = encoder.images(_rendered(dataset, encoder, bar))
            return read
        read.samples = []
        kept: list[int] = []
        batches = _transformed(dataset, encoder, views, read, kept, bar)
        read.features = encoder.images(batches)
        read.kept = torch.tensor(kept)
    return read


def _rendered(
    dataset: InMemoryDataset, encoder: Encoder, bar: tqdm[Any]
) -> Iterator[Tensor]:  # [b, 3, s, s]
    for part in dataset.images.split(encoder.batch_size):
        yield render(part, encoder.image_size)
        bar.update(len(part))


def _transformed(
    dataset: ImageDataset,
    encoder: Encoder,
    views: int,
    read: _Read,
    kept: list[int],  # grows: positions of the groups that could be read
    bar: tqdm[Any],
) -> Iterator[Tensor]:
    transform = encoder.transform or file_transform(encoder.image_size)
    samples = read.samples
    assert samples is not None

    def load(group: int) -> list[tuple[Sample, Tensor]] | BadRecord:
        try:
            found = [dataset[index] for index in range(views * group, views * (group + 1))]
        except BadRecord as bad:
            return bad
        for sample in found:
            _require_rgb(dataset.name, sample)
        return [(replace(sample, image=_NO_IMAGE), transform(sample.image)) for sample in found]

    pending: list[Tensor] = []
    for group, result in _loaded_ahead(load, len(dataset) // views, encoder.batch_size):
        bar.update(views)
        if isinstance(result, BadRecord):
            read.skipped.add(result.reason, result.where)
            continue
        kept.append(group)
        for sample, image in result:
            samples.append(sample)
            pending.append(image)
        if len(pending) >= encoder.batch_size:
            yield torch.stack(pending)
            pending = []
    if not kept:
        raise ValueError(f"no image of {dataset.name} can be read: {read.skipped}")
    if pending:
        yield torch.stack(pending)


def _loaded_ahead(
    load: Callable[[int], list[tuple[Sample, Tensor]] | BadRecord], count: int, batch_size: int
) -> Iterator[tuple[int, list[tuple[Sample, Tensor]] | BadRecord]]:
    """Yield results with their indices, in order; threads are one batch ahead.

    Threads suffice, because Pillow decodes and resizes without holding the interpreter lock.
    """
    with ThreadPoolExecutor() as pool:
        ahead: list[tuple[int, Future[list[tuple[Sample, Tensor]] | BadRecord]]] = []
        for start in range(0, count, batch_size):
            indices = range(start, min(start + batch_size, count))
            current, ahead = ahead, [(index, pool.submit(load, index)) for index in indices]
            for index, future in current:
                yield index, future.result()
        for index, future in ahead:
            yield index, future.result()


def _require_rgb(name: str, sample: Sample) -> None:
    image = sample.image
    mode = image.mode if isinstance(image, Image.Image) else type(image).__name__
    if mode != "RGB":
        raise ValueError(
            f"{name}: image {sample.key} must be an RGB PIL image, got {mode}; "
            'convert("RGB") it in the __getitem__ of the dataset'
        )


def _classes(
    dataset: ImageDataset, encoder: Encoder, prompts: Prompts, classes_of: Embeddings | None
) -> dict[str, Any]:
    names = prompts.names_for(dataset)
    shown = tuple(entry[0] for entry in names)
    if classes_of is not None and classes_of.class_names == shown:
        features = classes_of.class_features
    else:
        templates = prompts.templates or dataset.templates
        features = class_embeddings(encoder.texts, names, templates)
    return {"class_names": shown, "class_features": features}


def _captions(dataset: ImageDataset, encoder: Encoder, read: _Read) -> dict[str, Any]:
    if isinstance(dataset, InMemoryDataset) and dataset.labels is not None:
        texts, labels = unambiguous_captions(dataset)
        return {
            "synonym_features": class_embeddings(encoder.texts, dataset.class_captions()),
            "text_features": encoder.texts(texts),
            "text_labels": labels,
            "texts": tuple(texts),
        }
    if read.samples is not None:
        captions = [sample.captions for sample in read.samples]
    elif isinstance(dataset, InMemoryDataset):
        captions = list(dataset.captions)
    texts = [caption for entry in captions for caption in entry]
    if not texts:
        return {}
    owners = torch.tensor([image for image, entry in enumerate(captions) for _ in entry])
    return {"text_features": encoder.texts(texts), "text_owners": owners, "texts": tuple(texts)}


def unambiguous_captions(dataset: InMemoryDataset) -> tuple[list[str], Tensor]:
    """Return the captions that belong to exactly one class, and that class of each."""
    owner: dict[str, int] = {}
    shared = set()
    for label, captions in enumerate(dataset.class_captions()):
        for caption in captions:
            if owner.setdefault(caption, label) != label:
                shared.add(caption)
    texts = [caption for caption in owner if caption not in shared]
    return texts, torch.tensor([owner[caption] for caption in texts])


def _encode_quadruples(dataset: Quadruples, encoder: Encoder) -> Embeddings:
    read = _read_images(dataset.images, encoder, views=2)
    groups = read.kept.tolist()
    first, second = (
        encoder.texts([dataset.captions[group][which] for group in groups]) for which in (0, 1)
    )
    return Embeddings(
        read.features,
        name=dataset.name,
        image_ids=read.keys,
        text_features=torch.stack([first, second], dim=1).flatten(0, 1),
        quadruple_tags=tuple(dataset.tags[group] for group in groups),
        logit_scale=encoder.logit_scale,
        skipped=read.skipped,
    )
