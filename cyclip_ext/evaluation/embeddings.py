"""Embeddings of a dataset: the arrays that every task takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..data import SkipReport, Superclasses
from ..data.skips import printable

BLOCK = 2048  # rows and columns of similarities held at once, 32 MiB; does not change any result

LEVEL = "levels/"  # names of levels in the file and in messages: "levels/<name>"


class NotFiniteError(ValueError):
    """Features with NaN or infinity. The function that computed or read them adds the remedy."""


@dataclass(frozen=True, eq=False)  # tensors have no truth value
class Embeddings:
    """One dataset as arrays, computed by a run or an open_clip model, or read from a file.

    Only image_features is required; a task runs if the arrays that it takes are there.
    An image's own captions are given by text_owners or by text_labels. With neither of them M must
    be N, and caption i belongs to image i. With quadruple_tags, rows 2i and 2i + 1 of
    image_features and text_features are the two images and two captions of quadruple i
    (Winoground).

    Features of any floating-point type and length are converted to float32 and unit length,
    because every metric is one of cosines; float32 rows of unit length do not change.
    Indices may be of any integer type.

    Raises NotFiniteError for NaN or infinity; ValueError, naming the array, for other types, shapes
    that do not fit together, rows of zeros, indices out of range, and a wrong total.
    """

    image_features: Tensor  # float [N, d]
    name: str = "embeddings"  # of the dataset, for reports
    image_ids: tuple[str, ...] | None = None  # [N]
    text_features: Tensor | None = None  # float [M, d], captions
    text_owners: Tensor | None = None  # int [M], the image of each caption
    text_labels: Tensor | None = None  # int [M], the class of each caption
    labels: Tensor | None = None  # int [N], the class of each image
    class_features: Tensor | None = None  # float [C, d], one prompt ensemble per class
    class_names: tuple[str, ...] | None = None  # [C]
    synonym_features: Tensor | None = None  # float [C, d], from every known name or caption
    domains: Tensor | None = None  # int [N], the style or origin of each image
    domain_names: tuple[str, ...] = ()
    levels: Mapping[str, Superclasses] = field(default_factory=dict)  # by name of the level
    quadruple_tags: tuple[str, ...] | None = None  # [N / 2]; "" for none
    logit_scale: float | None = None  # factor of the logits (100, not its logarithm)
    skipped: SkipReport = field(default_factory=SkipReport)  # records without a row
    total: int | None = None  # records, skipped ones included; default: the sum of both
    # For examples in reports; files have neither.
    texts: tuple[str, ...] | None = field(default=None, repr=False)  # [M], the captions
    load_image: Callable[[int], Image.Image] | None = field(default=None, repr=False)  # by row

    def __post_init__(self) -> None:
        self._set("name", printable(self.name))
        for name in ("image_features", "text_features", "class_features", "synonym_features"):
            if getattr(self, name) is not None:
                self._set_unit_rows(name)
        count = len(self.image_features)
        if self.image_ids is not None and len(self.image_ids) != count:
            raise ValueError(
                f"image_ids must have one entry per image, got {len(self.image_ids)} for {count} "
                "images"
            )
        self._check_classes(count)
        self._check_texts(count)
        if len(set(self.domain_names)) < len(self.domain_names):
            raise ValueError(f"domain_names must differ, got {self.domain_names}")
        self._set_index("domains", count, "image", len(self.domain_names), "domain_names")
        tags, texts = self.quadruple_tags, self.text_features
        captions = 0 if texts is None else len(texts)
        if tags is not None and not count == captions == 2 * len(tags):
            raise ValueError(
                f"quadruple_tags has {len(tags)} entries, so image_features and text_features must "
                f"have twice as many rows, got {count} and {captions}"
            )
        if self.logit_scale is not None and not 0 < self.logit_scale < float("inf"):
            raise ValueError(
                f"logit_scale must be above 0 and finite, got {self.logit_scale}; it is the "
                "factor, not its logarithm"
            )
        known = self.used + self.skipped.total
        if self.total is None:
            self._set("total", known)
        elif self.total != known:
            raise ValueError(
                f"total is {self.total}, but {self.used} records are used and "
                f"{self.skipped.total} skipped; count every record that has no row in skipped"
            )

    @property
    def used(self) -> int:
        """Number of records with a row: images, or quadruples."""
        tags = self.quadruple_tags
        return len(self.image_features) if tags is None else len(tags)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the C classes: class_names, or "class 0" and so on; empty without classes."""
        count = 0 if self.class_features is None else len(self.class_features)
        return self.class_names or tuple(f"class {label}" for label in range(count))

    def classification(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return image_features, class_features and labels, or None unless there are all three."""
        if self.class_features is None or self.labels is None:
            return None
        return self.image_features, self.class_features, self.labels

    def captions(self) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Return image_features, text_features, and int64 labels [N] and [M] that match own pairs.

        None without captions, and for quadruples, whose captions belong to a task of their own.
        """
        if self.text_features is None or self.quadruple_tags is not None:
            return None
        if self.text_labels is not None:
            assert self.labels is not None
            return self.image_features, self.text_features, self.labels, self.text_labels
        assert self.text_owners is not None
        own = torch.arange(len(self.image_features))
        return self.image_features, self.text_features, own, self.text_owners

    def pairs(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return images and texts row by row [n, d], and int64 [n] labels: not negatives if equal.

        With classes the text is the prompt of the image's class, else its first caption; images
        without a caption have no row. None if there are fewer than two different labels.
        """
        found = self.classification()
        captions = self.captions()
        if found is not None:
            images, classes, labels = found
            texts = classes[labels]
        elif captions is not None:
            images, texts, labels, text_labels = captions
            rows, first = _first_texts(labels, text_labels)
            images, texts, labels = images[rows], texts[first], labels[rows]
        else:
            return None
        return (images, texts, labels) if len(labels.unique()) > 1 else None

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _set_unit_rows(self, name: str) -> None:
        features: Tensor = getattr(self, name)
        if features.ndim != 2 or not features.numel() or not features.is_floating_point():
            raise ValueError(
                f"{name} must be float [n, d], neither of them 0, got {features.dtype} "
                f"{[*features.shape]}"
            )
        width = self.image_features.shape[1]
        if features.shape[1] != width:
            raise ValueError(
                f"{name} must have the width of image_features, {width}, got {features.shape[1]}"
            )
        features = features.detach().cpu()
        if unusable := int((~features.isfinite()).any(1).sum()):
            raise NotFiniteError(
                f"{name} must be finite, got NaN or infinity in {unusable} of {len(features)} rows"
            )
        if unusable := int((features == 0).all(1).sum()):
            raise ValueError(
                f"{name} has {unusable} of {len(features)} rows of zeros, which have no "
                "direction; remove the records that could not be embedded"
            )
        if features.dtype != torch.float32 or (features.norm(dim=1) - 1).abs().max() >= 1e-5:
            features = unit_rows(features).float()
        self._set(name, features)

    def _set_index(self, name: str, rows: int, entry: str, size: int, target: str) -> None:
        values: Tensor | None = getattr(self, name)
        if values is not None:
            self._set(name, _index(name, values, rows, entry, size, target))

    def _check_classes(self, images: int) -> None:
        named = {
            "class_features": self.class_features,
            "class_names": self.class_names,
            "synonym_features": self.synonym_features,
            **{f"{LEVEL}{name}": level.of_class for name, level in self.levels.items()},
        }
        counts = {name: len(entries) for name, entries in named.items() if entries is not None}
        if len(set(counts.values())) > 1:
            raise ValueError(f"all arrays of classes must have one length, got {counts}")
        for level, superclasses in self.levels.items():
            of_class, size = superclasses.of_class, len(superclasses.names)
            _index(f"{LEVEL}{level}", of_class, len(of_class), "class", size, "superclasses")
        if self.labels is not None and not counts:
            raise ValueError(
                "labels without class_features or class_names: the number of classes is unknown; "
                "add one of them"
            )
        self._set_index("labels", images, "image", max(counts.values(), default=0), "classes")

    def _check_texts(self, images: int) -> None:
        given = [name for name in ("text_owners", "text_labels") if getattr(self, name) is not None]
        if self.text_features is None:
            if given:
                raise ValueError(f"{given[0]} without text_features: add the captions' features")
            return
        if len(given) == 2:
            raise ValueError("text_owners and text_labels exclude each other: remove one of them")
        texts = len(self.text_features)
        if not given:
            if texts != images:
                raise ValueError(
                    f"text_features has {texts} rows for {images} images: text_owners must give "
                    "the image each belongs to"
                )
            self._set("text_owners", torch.arange(images))
        if self.text_labels is not None and self.labels is None:
            raise ValueError("text_labels without labels: no image has a class; add labels")
        self._set_index("text_owners", texts, "caption", images, "images")
        self._set_index("text_labels", texts, "caption", len(self.classes), "classes")


def _index(name: str, values: Tensor, rows: int, entry: str, size: int, target: str) -> Tensor:
    """Check an index array [rows], one index per `entry`, and convert it to int64."""
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"{name} must be integers, got {values.dtype}")
    values = values.detach().cpu().to(torch.int64)
    if values.shape != (rows,):
        raise ValueError(f"{name} must be [{rows}], one per {entry}, got {[*values.shape]}")
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) < size:
        raise ValueError(
            f"{name} must be in 0 .. {size - 1} ({target}), got {int(values.min())} .. "
            f"{int(values.max())}"
        )
    return values


def unit_rows(features: Tensor) -> Tensor:
    """Return rows [N, d], finite and not zero, of any floating-point type as float64 unit rows."""
    rows: Tensor = features.double()
    rows = rows / rows.abs().amax(1, keepdim=True)  # its squares must neither over- nor underflow
    rows /= rows.norm(dim=1, keepdim=True)
    return rows


def _first_texts(image_labels: Tensor, text_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of the images that have a text, and the first text of each, int64 [n]."""
    count = int(torch.cat([image_labels, text_labels]).max()) + 1
    none = len(text_labels)
    first = torch.full((count,), none).scatter_reduce(0, text_labels, torch.arange(none), "amin")
    texts = first[image_labels]
    rows = torch.nonzero(texts < none).squeeze(1)
    return rows, texts[rows]
