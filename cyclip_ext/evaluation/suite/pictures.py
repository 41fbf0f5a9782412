"""Everything about a model on a named data set of this package, "emoji" first of all."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import torch

from ...data import DatasetSplits
from ..encoder import Encoder
from ..hierarchy import Hierarchy
from ..outcome import Outcome
from ..pictures import EmbeddedData, EmbeddedSet, embed_data, unambiguous_captions
from ..zero_shot import NAME_ONLY, Classified, class_embeddings, classification_metrics, classify
from . import classification, retrieval, shift
from .data import ClassifiedSet, Labelled
from .tasks import TASKS, in_order, of_classes

BASE, MAIN = "in_domain", "shifted"
SHIFTED = ("validation", MAIN)  # their domains are what the base set is compared with

MEANING = {  # of the sets' names, for a reader
    "in_domain": "trained classes in trained styles, pictures withheld from training",
    "validation": "trained classes in the style on which settings are chosen",
    "shifted": "trained classes in styles never trained on",
    "heldout_in_domain": "classes never trained on, in trained styles",
    "heldout_validation": "classes never trained on, in the style of validation",
    "heldout_shifted": "classes and styles never trained on",
}


def describe_sets(data: DatasetSplits) -> dict[str, str]:
    """Name and meaning of every set, with its counts."""
    return {
        f"{data.name}/{name}": f"{len(pictures):,} pictures, "
        f"{len(pictures.class_names):,} classes: {MEANING[name]}"
        for name, pictures in data.evaluation.items()
    }


def evaluate_picture_data(
    encoder: Encoder,
    data: DatasetSplits,
    tasks: Collection[str] = TASKS,
    *,
    templates: tuple[str, ...] = NAME_ONLY,
    baselines: shift.Baselines | None = None,
    seed: int = 0,
    notify: Callable[[str], None] = lambda line: None,
) -> list[Outcome]:
    """All sets of the data, tables and plots for its shifted set.

    Numbers are those of training's own evaluation, and more of them. Neighbours and probes learn
    from the training pictures, where these have labels. templates: prompts of the class names.
    baselines: as for suite.shift, by domain. notify: shows what is being done.
    """
    notify(f"embedding the pictures of {data.name}")
    embedded = embed_data(encoder, data, templates)
    outcomes: list[Outcome] = []
    for name, subset in embedded.evaluation.items():
        notify(f"measuring {data.name}/{name}")
        classified = _classified_set(f"{data.name}/{name}", subset, _train(embedded, name))
        own = of_classes(classified, tasks, seed=seed, details=name == MAIN)
        outcomes += [_with_all_names(encoder, subset, outcome) for outcome in own]
        if retrieval.TASK in tasks:
            texts, labels = unambiguous_captions(subset.pictures)
            outcomes.append(
                retrieval.retrieval(
                    classified.name,
                    subset.features,
                    encoder.texts(texts),
                    subset.labels,
                    labels,
                )
            )
    if shift.TASK in tasks:
        outcomes.append(_shift(embedded, data.name, baselines))
    return in_order(outcomes)


def _train(embedded: EmbeddedData, name: str) -> Labelled | None:
    train = embedded.train
    if train is None or name not in embedded.known:
        return None
    return Labelled(train.features, train.labels)


def _classified_set(name: str, subset: EmbeddedSet, train: Labelled | None) -> ClassifiedSet:
    pictures = subset.pictures
    return ClassifiedSet(
        name,
        subset.features,
        subset.class_features,
        subset.labels,
        pictures.class_names,
        train,
        {
            name: Hierarchy(pictures.levels[name].names, pictures.levels[name].of_class)
            for name in ("group", "subgroup")
        },
    )


def _with_all_names(encoder: Encoder, subset: EmbeddedSet, outcome: Outcome) -> Outcome:
    """With the accuracy of class embeddings that average all captions of a class."""
    if outcome.task != classification.TASK:
        return outcome
    synonyms = class_embeddings(encoder.texts, subset.pictures.class_captions())
    found = classification_metrics(subset.features, synonyms, subset.labels, (1,))
    return replace(outcome, metrics={**outcome.metrics, "acc1_all_names": found["acc1"]})


def _shift(embedded: EmbeddedData, name: str, baselines: shift.Baselines | None) -> Outcome:
    """Domain by domain. Only classes of the base set count: the others may be easier or harder."""
    base = embedded.evaluation[BASE]
    shared = base.labels.unique()
    shifted = {}
    for key in SHIFTED:
        subset = embedded.evaluation[key]
        pictures = subset.pictures
        classified = _classify(subset)
        comparable = torch.isin(subset.labels, shared)
        for index, domain in enumerate(pictures.domain_names):
            rows = comparable & (pictures.domains == index)
            if bool(rows.any()):
                shifted[domain] = classified.subset(rows)
    note = (
        f"Only pictures of the {len(shared):,} classes that {BASE} has pictures of, so that the "
        "sets differ in style alone."
    )
    return shift.shift(name, (BASE, _classify(base)), shifted, baselines, note=note)


def _classify(subset: EmbeddedSet) -> Classified:
    return classify(subset.features, subset.class_features, subset.labels)
