"""DatasetSplits embedded, and the metrics of each of its sets that training logs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import DatasetSplits, InMemoryDataset
from .consistency import text_image_consistency
from .encoder import Encoder
from .hierarchy import coarse_accuracy
from .retrieval import retrieval_metrics
from .zero_shot import NAME_ONLY, class_embeddings, classification_metrics

Metrics = dict[str, float]

KS = (1, 5)  # the accuracies that a run logs; the suite has more


@dataclass(frozen=True)
class EmbeddedSet:
    """A set with its embeddings."""

    pictures: InMemoryDataset
    features: Tensor  # [n, d], unit length
    class_features: Tensor  # [C, d], unit length: of the class names alone

    @property
    def labels(self) -> Tensor:
        """int64 [n], index into the class names."""
        assert self.pictures.labels is not None
        return self.pictures.labels


@dataclass(frozen=True)
class EmbeddedData:
    """All sets with their embeddings.

    train: None where the training pictures have no labels. known: the sets whose classes are those
    trained on.
    """

    train: EmbeddedSet | None
    evaluation: dict[str, EmbeddedSet]
    known: frozenset[str]


def embed_data(
    encoder: Encoder, data: DatasetSplits, templates: tuple[str, ...] = NAME_ONLY
) -> EmbeddedData:
    """Embed every picture once, and the names of every set's classes, in each of the templates."""
    trained = data.evaluation["validation"].class_names
    class_features = class_embeddings(encoder.texts, trained, templates)
    train = None
    if data.train.labels is not None:  # "debian" trains on pictures that have no labels
        train = EmbeddedSet(data.train, encoder.pictures(data.train), class_features)
    known = frozenset(name for name, each in data.evaluation.items() if each.class_names == trained)
    evaluation = {}
    for name, pictures in data.evaluation.items():
        classes = (
            class_features
            if name in known
            else class_embeddings(encoder.texts, pictures.class_names, templates)
        )
        evaluation[name] = EmbeddedSet(pictures, encoder.pictures(pictures), classes)
    return EmbeddedData(train, evaluation, known)


def validate_pictures(encoder: Encoder, data: DatasetSplits) -> Metrics:
    """acc1, acc5 and mean_per_class_recall on the validation set alone."""
    pictures = data.evaluation["validation"]
    assert pictures.labels is not None
    classes = class_embeddings(encoder.texts, pictures.class_names)
    return classification_metrics(encoder.pictures(pictures), classes, pictures.labels, KS)


def evaluate_pictures(encoder: Encoder, data: DatasetSplits) -> dict[str, Metrics]:
    """Zero-shot, coarse classes, retrieval and consistency with 1-NN on each evaluation set.

    "all_shifted" joins validation and shifted: every drawing style that was not trained on.
    """
    embedded = embed_data(encoder, data)
    results: dict[str, Metrics] = {}
    for name, subset in embedded.evaluation.items():
        results[name] = _set_metrics(encoder, subset)
        train = embedded.train
        if train is not None and name in embedded.known:
            results[name]["consistency@1"] = text_image_consistency(
                subset.features, subset.class_features, train.features, train.labels
            )
    joined = [name for name in ("validation", "shifted") if name in results]
    if joined:
        results["all_shifted"] = _weighted_mean(
            [results[name] for name in joined], [len(data.evaluation[name]) for name in joined]
        )
    return results


def _set_metrics(encoder: Encoder, subset: EmbeddedSet) -> Metrics:
    pictures, features, classes = subset.pictures, subset.features, subset.class_features
    labels = subset.labels
    metrics = classification_metrics(features, classes, labels, KS)
    for name, level in pictures.levels.items():
        metrics[f"{name}_acc1"] = coarse_accuracy(features, classes, labels, level.of_class)
    synonyms = class_embeddings(encoder.texts, pictures.class_captions())
    metrics["acc1_all_names"] = classification_metrics(features, synonyms, labels, (1,))["acc1"]
    if len(pictures.domain_names) > 1:
        for index, domain in enumerate(pictures.domain_names):
            assert pictures.domains is not None
            own = pictures.domains == index
            metrics[f"acc1/{domain}"] = classification_metrics(
                features[own], classes, labels[own], (1,)
            )["acc1"]
    texts, text_labels = unambiguous_captions(pictures)
    return metrics | retrieval_metrics(features, encoder.texts(texts), labels, text_labels)


def unambiguous_captions(pictures: InMemoryDataset) -> tuple[list[str], Tensor]:
    """The captions that belong to exactly one class of a set, and that class of each."""
    owner: dict[str, int] = {}
    shared = set()
    for label, captions in enumerate(pictures.class_captions()):
        for caption in captions:
            if owner.setdefault(caption, label) != label:
                shared.add(caption)
    texts = [caption for caption in owner if caption not in shared]
    return texts, torch.tensor([owner[caption] for caption in texts])


def _weighted_mean(parts: list[Metrics], weights: list[int]) -> Metrics:
    """Mean over pictures of the metrics that are means over pictures, and that all parts have."""
    total = sum(weights)
    shared = [
        name
        for name in parts[0]
        if all(name in part for part in parts)
        and (name.startswith(("acc", "consistency")) or name.endswith("_acc1"))
    ]
    return {
        name: sum(p[name] * w for p, w in zip(parts, weights, strict=True)) / total
        for name in shared
    }
