"""DatasetSplits embedded, and the metrics of each of its sets that training logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..data import DatasetSplits, InMemoryDataset
from .embeddings import Embeddings
from .encoder import Encoder
from .tasks import SHORT, run_tasks, training_metrics
from .tasks.zero_shot import NAME_ONLY, TASK, class_embeddings

Metrics = dict[str, float]


def embed_data(
    encoder: Encoder, data: DatasetSplits, templates: tuple[str, ...] = NAME_ONLY
) -> tuple[Embeddings | None, dict[str, Embeddings]]:
    """Embed the training images, if they have labels, and every evaluation set."""
    train = None
    if data.train.labels is not None:  # "debian" trains on images that have no labels
        train = _embed(encoder, data.train, f"{data.name}/train", templates, texts=False)
    return train, {
        name: _embed(encoder, images, f"{data.name}/{name}", templates)
        for name, images in data.evaluation.items()
    }


def _embed(
    encoder: Encoder,
    images: InMemoryDataset,
    name: str,
    templates: Sequence[str],
    *,
    texts: bool = True,
) -> Embeddings:
    found: dict[str, Any] = {}
    if texts:
        captions, text_labels = unambiguous_captions(images)
        found = {
            "text_features": encoder.texts(captions),
            "text_labels": text_labels,
            "synonym_features": class_embeddings(encoder.texts, images.class_captions()),
        }
    return Embeddings(
        encoder.pictures(images),
        name=name,
        labels=images.labels,
        class_names=images.class_names,
        class_features=class_embeddings(encoder.texts, images.class_names, templates),
        domains=images.domains,
        domain_names=images.domain_names,
        levels=images.levels,
        **found,
    )


def validate_pictures(encoder: Encoder, data: DatasetSplits) -> Metrics:
    """Measure zero-shot classification on the validation set alone."""
    images = data.evaluation["validation"]
    embedded = _embed(encoder, images, "validation", NAME_ONLY, texts=False)
    metrics = training_metrics(run_tasks(embedded, tasks=(TASK,), details=False))
    return {key: metrics[key] for key in ("acc1", "acc5", "mean_per_class_recall")}


def evaluate_pictures(encoder: Encoder, data: DatasetSplits) -> dict[str, Metrics]:
    """Run the short list of tasks on each evaluation set.

    "all_shifted" joins validation and shifted: every drawing style that was not trained on.
    """
    train, evaluation = embed_data(encoder, data)
    results: dict[str, Metrics] = {}
    for name, subset in evaluation.items():
        known = train is not None and subset.class_names == train.class_names
        measured = run_tasks(subset, train=train if known else None, tasks=SHORT, details=False)
        results[name] = training_metrics(measured)
    joined = [name for name in ("validation", "shifted") if name in results]
    if joined:
        results["all_shifted"] = _weighted_mean(
            [results[name] for name in joined], [len(data.evaluation[name]) for name in joined]
        )
    return results


def unambiguous_captions(pictures: InMemoryDataset) -> tuple[list[str], Tensor]:
    """Return the captions that belong to exactly one class of a set, and that class of each."""
    owner: dict[str, int] = {}
    shared = set()
    for label, captions in enumerate(pictures.class_captions()):
        for caption in captions:
            if owner.setdefault(caption, label) != label:
                shared.add(caption)
    texts = [caption for caption in owner if caption not in shared]
    return texts, torch.tensor([owner[caption] for caption in texts])


def _weighted_mean(parts: list[Metrics], weights: list[int]) -> Metrics:
    """Average over images the metrics that are means over pictures, and that all parts have."""
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
