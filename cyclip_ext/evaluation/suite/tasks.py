"""Which tasks there are, and which of them a set is fit for."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ..outcome import Outcome
from ..zero_shot import classify
from . import (
    classification,
    completeness,
    composition,
    geometry,
    hierarchy,
    margins,
    neighbours,
    probes,
    retrieval,
    shift,
)
from .data import CaptionedSet, ClassifiedSet

# In the order of the report.
TASKS = (
    classification.TASK,
    shift.TASK,
    hierarchy.TASK,
    neighbours.TASK,
    retrieval.TASK,
    probes.LINEAR,
    probes.KNN,
    composition.TASK,
    geometry.TASK,
    geometry.CORNERS,
    margins.TASK,
    completeness.TASK,
)


def in_order(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """By task as in TASKS; data sets stay in the order they came in."""
    return sorted(outcomes, key=lambda outcome: TASKS.index(outcome.task))


def of_classes(
    data: ClassifiedSet, tasks: Collection[str], *, seed: int = 0, details: bool = True
) -> list[Outcome]:
    """The tasks for pictures with classes, of those asked for.

    Left out are those that lack something: superclasses, labelled pictures to learn from, a second
    class among these or among the pictures. details: tables and plots of the set, not its numbers
    alone.
    """
    name, images, classes, labels = data.name, data.image_features, data.class_features, data.labels
    outcomes = []
    if classification.TASK in tasks:
        coarsest = next(iter(data.levels.values()), None)
        outcomes.append(
            classification.zero_shot(
                name,
                classify(images, classes, labels),
                data.class_names,
                superclasses=coarsest if len(classes) > classification.MATRIX else None,
                details=details,
            )
        )
    if hierarchy.TASK in tasks and data.levels:
        outcomes.append(
            hierarchy.fine_coarse(name, images, classes, labels, data.levels, details=details)
        )
    if data.train is not None:
        train = data.train
        if neighbours.TASK in tasks:
            outcomes.append(
                neighbours.consistency(name, images, classes, train.features, train.labels)
            )
        learnable = details and len(train.labels.unique()) > 1
        if learnable and probes.LINEAR in tasks:
            outcomes.append(probes.linear(name, images, labels, train, seed=seed))
        if learnable and probes.KNN in tasks:
            outcomes.append(probes.knn(name, images, labels, train, seed=seed))
    if details and len(labels.unique()) > 1:
        if geometry.TASK in tasks:
            outcomes.append(geometry.prompts_geometry(name, images, classes, labels))
        outcomes += _of_pairs(name, images, classes[labels], labels, tasks, seed)
    return outcomes


def of_captions(data: CaptionedSet, tasks: Collection[str], *, seed: int = 0) -> list[Outcome]:
    """The tasks for pictures with captions, of those asked for.

    Geometry, corners and margins take the first caption of each picture that has one.
    """
    outcomes = []
    if retrieval.TASK in tasks:
        outcomes.append(
            retrieval.retrieval(
                data.name,
                data.image_features,
                data.text_features,
                data.image_labels,
                data.text_labels,
            )
        )
    rows, texts = _first_texts(data.image_labels, data.text_labels)
    labels = data.image_labels[rows]
    if len(labels.unique()) > 1:
        images, own = data.image_features[rows], data.text_features[texts]
        if geometry.TASK in tasks:
            outcomes.append(geometry.captions_geometry(data.name, images, own, labels))
        outcomes += _of_pairs(data.name, images, own, labels, tasks, seed)
    return outcomes


def _of_pairs(
    name: str, images: Tensor, texts: Tensor, labels: Tensor, tasks: Collection[str], seed: int
) -> list[Outcome]:
    outcomes = []
    if geometry.CORNERS in tasks:
        outcomes.append(geometry.four_corners(name, images, texts, seed=seed))
    if margins.TASK in tasks:
        outcomes.append(margins.margins(name, images, texts, labels, seed=seed))
    return outcomes


def _first_texts(image_labels: Tensor, text_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the pictures that have a text, and the first text of each: int64 [n] both."""
    count = int(torch.cat([image_labels, text_labels]).max()) + 1
    none = len(text_labels)
    first = torch.full((count,), none).scatter_reduce(0, text_labels, torch.arange(none), "amin")
    texts = first[image_labels]
    rows = torch.nonzero(texts < none).squeeze(1)
    return rows, texts[rows]
