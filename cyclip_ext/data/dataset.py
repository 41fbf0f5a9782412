"""Datasets of images with captions and labels: `ImageDataset`, the base of every reader."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from hashlib import blake2b
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .images import on_white, open_image
from .skips import SkipReport


@dataclass(frozen=True, slots=True)
class Sample:
    """An image with its captions and labels.

    image: RGB. key: names the record inside its dataset. captions: none of them empty; the first is
    the canonical one. label, domain: indices into the dataset's class_names and domain_names.
    """

    image: Image.Image
    key: str
    captions: tuple[str, ...] = ()
    label: int | None = None
    domain: int | None = None


@dataclass(frozen=True)
class Superclasses:
    """A coarser partition of the classes: names [S], and the index of each class's, int64 [C]."""

    names: tuple[str, ...]
    of_class: Tensor

    @classmethod
    def build(cls, of_class: Sequence[str]) -> Superclasses:
        """Build from the superclass of each class, numbered in order of appearance."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(of_class))}
        return cls(tuple(numbers), torch.tensor([numbers[name] for name in of_class]))


class ImageDataset(Dataset[Sample]):
    """Map-style dataset of images, without a position: records may be read in any order.

    `dataset[i]` raises BadRecord if record i cannot be used. A missing image is never replaced by
    another one. Readers do not apply transforms.

    name: for messages and reports. skipped: records that opening already dropped; they have no
    index. templates: prompts, each with one "{}" for a class name. labels, domains: int64 [N], if
    they are known without decoding an image. levels: coarser partitions of the classes, by name.
    """

    name: str
    skipped: SkipReport
    class_names: tuple[str, ...] = ()
    domain_names: tuple[str, ...] = ()
    templates: tuple[str, ...] = ("{}",)
    labels: Tensor | None = None
    domains: Tensor | None = None
    levels: Mapping[str, Superclasses] = MappingProxyType({})

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...

    def load(self, index: int, *, min_side: int | None = None) -> Sample:
        """Return record `index`, possibly at reduced resolution.

        Use this if you downscale anyway: file-backed datasets decode JPEGs at a fraction of their
        size, as long as neither side falls below min_side pixels.
        """
        return self[index]

    def entries(self, indices: npt.NDArray[np.int64] | None = None) -> int:
        """Return the number of entries of the files that these records consist of; None: all.

        A record that gathers several rows of a table, one for each caption, consists of as many.
        """
        return len(self) if indices is None else len(indices)

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a digest of the records in their order, without times and folders."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A record before decoding: the bytes of its image file, its key and captions."""

    data: bytes
    key: str
    captions: tuple[str, ...] = ()


class FileDataset(ImageDataset):
    """Images that are files, or parts of files."""

    @abstractmethod
    def encoded(self, index: int) -> Encoded:
        """Return record `index` as stored.

        Raises BadRecord if it cannot be read or has no usable caption.
        """

    def __getitem__(self, index: int) -> Sample:
        return self.load(index)

    def load(self, index: int, *, min_side: int | None = None) -> Sample:
        found = self.encoded(index)
        image = open_image(found.data, found.key, min_side=min_side)
        label = None if self.labels is None else int(self.labels[index])
        return Sample(image, found.key, found.captions, label)


class Subset(ImageDataset):
    """Some records of another dataset, by index."""

    def __init__(
        self, dataset: ImageDataset, indices: Sequence[int] | npt.NDArray[np.int64]
    ) -> None:
        self.dataset = dataset
        self.indices = np.asarray(indices, dtype=np.int64)  # 12 million ints are 400 MB in a list
        for name in ("name", "skipped", "class_names", "domain_names", "templates", "levels"):
            setattr(self, name, getattr(dataset, name))
        chosen = torch.from_numpy(self.indices)
        self.labels = None if dataset.labels is None else dataset.labels[chosen]
        self.domains = None if dataset.domains is None else dataset.domains[chosen]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[int(self.indices[index])]

    def load(self, index: int, *, min_side: int | None = None) -> Sample:
        return self.dataset.load(int(self.indices[index]), min_side=min_side)

    def entries(self, indices: npt.NDArray[np.int64] | None = None) -> int:
        return self.dataset.entries(self.indices if indices is None else self.indices[indices])

    def fingerprint(self) -> str:
        return digest(self.dataset.fingerprint(), self.indices)


class InMemoryDataset(ImageDataset):
    """Images with captions, decoded and in memory."""

    def __init__(
        self,
        name: str,
        images: Tensor,  # uint8 [n, 4, size, size], RGBA with straight alpha
        captions: tuple[tuple[str, ...], ...],  # [n], the first of each is the canonical one
        *,
        labels: Tensor | None = None,  # int64 [n], index into class_names
        class_names: tuple[str, ...] = (),
        levels: Mapping[str, Superclasses] = MappingProxyType({}),
        domains: Tensor | None = None,  # int64 [n], index into domain_names
        domain_names: tuple[str, ...] = (),
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 4:
            raise ValueError(
                f"images must be uint8 [n, 4, s, s], got {images.dtype} {[*images.shape]}"
            )
        for what, column in (("captions", captions), ("labels", labels), ("domains", domains)):
            if column is not None and len(column) != len(images):
                raise ValueError(
                    f"{what} must be one for each of the {len(images)} images, got {len(column)}"
                )
        if len(set(class_names)) != len(class_names):
            repeated = sorted({name for name in class_names if class_names.count(name) > 1})
            raise ValueError(f"class_names must be unique, got {repeated[:5]} more than once")
        self.name = name
        self.skipped = SkipReport()
        self.images = images
        self.captions = captions
        self.labels = labels
        self.class_names = class_names
        self.levels = dict(levels)
        self.domains = domains
        self.domain_names = domain_names

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> Sample:
        array = self.images[index].permute(1, 2, 0).contiguous().numpy()
        return Sample(
            on_white(Image.fromarray(array)),
            f"{self.name}[{index}]",
            self.captions[index],
            None if self.labels is None else int(self.labels[index]),
            None if self.domains is None else int(self.domains[index]),
        )

    def fingerprint(self) -> str:
        return digest(self.images.numpy(), repr(self.captions))

    def subset(self, indices: npt.NDArray[np.int64]) -> InMemoryDataset:
        """Return a part of the images, with their captions and labels, in memory."""
        part = copy(self)
        chosen = torch.from_numpy(indices)
        part.images, part.captions = self.images[chosen], tuple(self.captions[i] for i in indices)
        part.labels = None if self.labels is None else self.labels[chosen]
        part.domains = None if self.domains is None else self.domains[chosen]
        return part

    def class_captions(self) -> tuple[tuple[str, ...], ...]:
        """Return all captions of each class, canonical first, [C]: a prompt ensemble.

        A class without an image in this dataset has only its name.
        """
        labels = [] if self.labels is None else self.labels.tolist()
        found: dict[int, tuple[str, ...]] = {}
        for label, captions in zip(labels, self.captions, strict=False):
            found.setdefault(label, captions)
        return tuple(found.get(i, (name,)) for i, name in enumerate(self.class_names))


@dataclass(frozen=True)
class DatasetSplits:
    """A training dataset with the evaluation datasets that belong to it.

    evaluation holds, for every built-in dataset:
        in_domain            training domains, trained classes, images withheld from training
        validation           trained classes in the validation domain: choose settings here
        shifted              trained classes in the test domains: report this
        heldout_in_domain    classes never trained on, training domains
        heldout_validation   classes never trained on, validation domain
        heldout_shifted      classes never trained on, test domains
    """

    name: str
    train: InMemoryDataset
    evaluation: dict[str, InMemoryDataset]
    skipped: SkipReport = field(default_factory=SkipReport)

    def describe(self) -> str:
        """Return counts per dataset and what was skipped, as lines for the log."""
        lines = [
            f"{self.name}: {len(self.train):,} training images with "
            f"{sum(map(len, self.train.captions)):,} captions"
        ]
        for name, dataset in self.evaluation.items():
            assert dataset.domains is not None
            domains = ", ".join(
                f"{domain} {int((dataset.domains == i).sum()):,}"
                for i, domain in enumerate(dataset.domain_names)
            )
            lines.append(
                f"  {name:<19} {len(dataset):>6,} images, "
                f"{len(dataset.class_names):>5,} classes  ({domains})"
            )
        lines.append(f"  {self.skipped}")
        return "\n".join(lines)


def digest(*parts: str | bytes | npt.NDArray[Any]) -> str:
    """Return a hexadecimal digest of texts, bytes and arrays, for `fingerprint`."""
    hashed = blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        view = memoryview(data if isinstance(data, bytes) else np.ascontiguousarray(data).data)
        hashed.update(view.nbytes.to_bytes(8, "little"))
        hashed.update(view)
    return hashed.hexdigest()
