"""A data set as embeddings: what the tasks take, wherever it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..hierarchy import Hierarchy

HierarchyOf = Callable[[Sequence[str]], Hierarchy]  # class names of a set -> their superclasses


@dataclass(frozen=True)
class Labelled:
    """Labelled pictures that neighbours and probes learn from."""

    features: Tensor  # [T, d], unit length
    labels: Tensor  # int64 [T], index into the classes of the set that is tested


@dataclass(frozen=True)
class ClassifiedSet:
    """Pictures with classes. levels: name of a level of superclasses to what it groups."""

    name: str
    image_features: Tensor  # [N, d], unit length
    class_features: Tensor  # [C, d], unit length
    labels: Tensor  # int64 [N]
    class_names: tuple[str, ...]  # [C]
    train: Labelled | None = None
    levels: Mapping[str, Hierarchy] = field(default_factory=dict)


@dataclass(frozen=True)
class CaptionedSet:
    """Pictures with captions; a caption is a picture's own where their labels are equal."""

    name: str
    image_features: Tensor  # [N, d], unit length
    text_features: Tensor  # [M, d], unit length
    image_labels: Tensor  # int64 [N]
    text_labels: Tensor  # int64 [M]
