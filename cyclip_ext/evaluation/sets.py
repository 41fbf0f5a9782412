"""Evaluation sets: pictures that are opened one by one, with what they are scored against.

Where a data set comes from is no matter of this file: see datasets/, or fill the classes yourself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from string import Formatter
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from ..data import SkipReport
from ..data.captions import is_text


class Images(Protocol):
    """Pictures by index.

    `images[i]` is an RGB picture, or raises cyclip_ext.data.BadRecord where it cannot be read;
    threads may ask for several at once.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Image.Image: ...


@dataclass(frozen=True)
class ClassifiedImages:
    """Pictures with one class each.

    labels: int64 [N], index into class_names [C]; a class may have no picture.
    templates: prompts with one "{}" for the class name, as class_embeddings takes them.
    skipped: what opening the set, or embed_set, had to leave out.

    Raises: ValueError for lengths that differ, labels that are not int64 or name no class, class
    names that are empty, and templates without a place for the name.
    """

    name: str
    images: Images
    labels: Tensor
    class_names: tuple[str, ...]
    templates: tuple[str, ...] = ("{}",)
    skipped: SkipReport = field(default_factory=SkipReport)

    def __post_init__(self) -> None:
        require_labels(self.name, self.labels, len(self.class_names))
        _require_length(self.name, "labels", len(self.labels), len(self.images))
        for label, name in enumerate(self.class_names):
            if not _is_text(name):
                raise ValueError(
                    f"{self.name}: class_names[{label}] must be a text, in UTF-8 and not empty, "
                    f"got {name!r}"
                )
        if not self.templates:
            raise ValueError(f'{self.name}: templates is empty; ("{{}}",) is the name alone')
        for template in self.templates:
            _require_template(self.name, template)

    def __len__(self) -> int:
        return len(self.images)

    def part(self, kept: Tensor, skipped: SkipReport) -> ClassifiedImages:
        """The pictures `kept`, int64 [n], and why others were skipped, added to the report."""
        return replace(
            self,
            images=ChosenImages(self.images, kept.tolist()),
            labels=self.labels[kept],
            skipped=_joined(self.skipped, skipped),
        )


@dataclass(frozen=True)
class CaptionedImages:
    """Pictures with one or several captions each.

    captions: [N], the captions of each picture. skipped: as of ClassifiedImages.

    Raises: ValueError for lengths that differ, a picture without caption and an empty caption.
    """

    name: str
    images: Images
    captions: tuple[tuple[str, ...], ...]
    skipped: SkipReport = field(default_factory=SkipReport)

    def __post_init__(self) -> None:
        _require_length(self.name, "captions", len(self.captions), len(self.images))
        for index, entry in enumerate(self.captions):
            if not isinstance(entry, tuple) or not entry or not all(map(_is_text, entry)):
                raise ValueError(
                    f"{self.name}: captions[{index}] must be one or more texts in a tuple, none of "
                    f"them empty, got {entry!r}; leave out pictures that have none"
                )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def texts(self) -> list[str]:
        """All captions, [M], picture by picture."""
        return [caption for entry in self.captions for caption in entry]

    @property
    def text_owners(self) -> Tensor:
        """int64 [M]: the picture each caption belongs to."""
        counts = torch.tensor([len(entry) for entry in self.captions], dtype=torch.int64)
        return torch.arange(len(self.captions)).repeat_interleave(counts)

    def part(self, kept: Tensor, skipped: SkipReport) -> CaptionedImages:
        """See ClassifiedImages.part."""
        return replace(
            self,
            images=ChosenImages(self.images, kept.tolist()),
            captions=tuple(self.captions[index] for index in kept.tolist()),
            skipped=_joined(self.skipped, skipped),
        )


@dataclass(frozen=True)
class Quadruples:
    """Two pictures and two captions each, the first caption being that of the first picture.

    captions: [N] pairs. tags: [N], the kind of each quadruple, "" for none. skipped: as of
    ClassifiedImages.

    Raises: ValueError for lengths that differ and for captions that are no pair of texts.
    """

    name: str
    first_images: Images
    second_images: Images
    captions: tuple[tuple[str, str], ...]
    tags: tuple[str, ...]
    skipped: SkipReport = field(default_factory=SkipReport)

    def __post_init__(self) -> None:
        count = len(self.first_images)
        _require_length(self.name, "second_images", len(self.second_images), count)
        _require_length(self.name, "captions", len(self.captions), count)
        _require_length(self.name, "tags", len(self.tags), count)
        for index, pair in enumerate(self.captions):
            if not isinstance(pair, tuple) or len(pair) != 2 or not all(map(_is_text, pair)):
                raise ValueError(
                    f"{self.name}: captions[{index}] must be two texts in a tuple, neither of them "
                    f"empty, got {pair!r}"
                )

    def __len__(self) -> int:
        return len(self.first_images)

    def part(self, kept: Tensor, skipped: SkipReport) -> Quadruples:
        """See ClassifiedImages.part."""
        indices = kept.tolist()
        return replace(
            self,
            first_images=ChosenImages(self.first_images, indices),
            second_images=ChosenImages(self.second_images, indices),
            captions=tuple(self.captions[index] for index in indices),
            tags=tuple(self.tags[index] for index in indices),
            skipped=_joined(self.skipped, skipped),
        )


@dataclass(frozen=True)
class ChosenImages:
    """Some of other pictures, by index."""

    images: Images
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Image.Image:
        return self.images[self.indices[index]]


def require_labels(name: str, labels: Tensor, classes: int) -> None:
    """Raises ValueError, naming the set, where labels is not int64 [N] with values below classes.

    Shared with embeddings from files.
    """
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise ValueError(
            f"{name}: labels must be int64 [N], got {labels.dtype} {[*labels.shape]}; "
            "torch.tensor(labels) of a list of int is"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"{name}: labels must be in 0 .. {classes - 1}, as there are {classes} classes, got "
            f"{int(labels.min())} .. {int(labels.max())}"
        )


def _require_length(name: str, argument: str, got: int, images: int) -> None:
    if got != images:
        raise ValueError(f"{name}: {argument} has {got} entries for {images} pictures")


def _require_template(name: str, template: str) -> None:
    try:
        fields = [key for _, key, _, _ in Formatter().parse(template) if key is not None]
    except ValueError:  # a single brace
        fields = []
    if fields != [""]:
        raise ValueError(
            f'{name}: a template must have exactly one "{{}}" for the class name, got {template!r}'
        )


def _is_text(text: object) -> bool:
    return isinstance(text, str) and bool(text.strip()) and is_text(text)


def _joined(first: SkipReport, second: SkipReport) -> SkipReport:
    both = SkipReport()
    both.merge(first)
    both.merge(second)
    return both
