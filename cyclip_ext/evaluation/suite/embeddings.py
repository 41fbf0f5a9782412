"""Embeddings that another program has computed, from .npz files."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch

from ..embeddings import Embeddings, load_embeddings
from ..outcome import Outcome
from .data import CaptionedSet, ClassifiedSet, HierarchyOf, Labelled
from .tasks import TASKS, in_order, of_captions, of_classes


def evaluate_embeddings(
    path: Path,
    tasks: Collection[str] = TASKS,
    *,
    train: Path | None = None,
    hierarchy_of: HierarchyOf | None = None,
    seed: int = 0,
) -> list[Outcome]:
    """All tasks that the arrays of a file allow; see Embeddings for the arrays.

    Labels and class_features: classification, geometry, margins. text_features: retrieval, and
    geometry and margins of the captions where there are no classes. train: a file of the same form
    whose image_features and labels neighbours and probes learn from. hierarchy_of: of the
    class names, which it needs.

    Raises ValueError, naming the file, where there is nothing to measure and for files that do not
    fit; see load_embeddings.
    """
    arrays = load_embeddings(path)
    outcomes: list[Outcome] = []
    if arrays.labels is not None and arrays.class_features is not None:
        classified = _classified(path, arrays, train, hierarchy_of)
        outcomes += of_classes(classified, tasks, seed=seed)
    if arrays.text_features is not None and arrays.text_owners is not None:
        captioned = CaptionedSet(
            path.stem,
            arrays.image_features,
            arrays.text_features,
            torch.arange(len(arrays.image_features)),
            arrays.text_owners,
        )
        # Of a file with classes and captions, the geometry of the pairs is measured once.
        left = set(tasks) - {outcome.task for outcome in outcomes}
        outcomes += of_captions(captioned, left, seed=seed)
    if not outcomes:
        raise ValueError(
            f"{path}: none of {', '.join(tasks)} can be measured; labels with class_features, or "
            "text_features, must stand beside image_features"
        )
    return in_order(outcomes)


def _classified(
    path: Path, arrays: Embeddings, train: Path | None, hierarchy_of: HierarchyOf | None
) -> ClassifiedSet:
    assert arrays.labels is not None
    assert arrays.class_features is not None
    count = len(arrays.class_features)
    names = arrays.class_names or tuple(f"class {label}" for label in range(count))
    levels = {}
    if hierarchy_of is not None:
        levels["superclass"] = hierarchy_of(names)
    return ClassifiedSet(
        path.stem,
        arrays.image_features,
        arrays.class_features,
        arrays.labels,
        names,
        None if train is None else _labelled(train, arrays),
        levels,
    )


def _labelled(path: Path, tested: Embeddings) -> Labelled:
    arrays = load_embeddings(path)
    if arrays.labels is None:
        raise ValueError(
            f"{path} has no labels: neighbours and probes learn from labelled pictures"
        )
    if None not in (arrays.class_names, tested.class_names) and (
        arrays.class_names != tested.class_names
    ):
        raise ValueError(
            f"{path}: class_names must be those of the tested file, in their order: labels are "
            "indices into them"
        )
    width, classes = tested.image_features.shape[1], tested.class_features
    assert classes is not None
    if arrays.image_features.shape[1] != width:
        raise ValueError(
            f"{path}: image_features has {arrays.image_features.shape[1]} columns, the tested "
            f"{width}"
        )
    if int(arrays.labels.max()) >= len(classes):
        raise ValueError(
            f"{path}: labels go up to {int(arrays.labels.max())}, but there are {len(classes)} "
            "classes"
        )
    return Labelled(arrays.image_features, arrays.labels)
