"""evaluation/ applied to a run: which metric on which of its sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data import (
    BadRecord,
    MemoryPairs,
    Pairs,
    PictureData,
    PictureSet,
    SkipReport,
    render,
)
from ..data.transforms import file_transform
from ..evaluation import (
    class_embeddings,
    classification_metrics,
    coarse_accuracy,
    embed_images,
    embed_texts,
    retrieval_metrics,
    text_image_consistency,
)
from ..models import CreatedModel
from .sources import RunData

BATCH = 256

# What "best" means: validation data only, never the test sets.
SELECTION_METRIC = {True: "acc1", False: "text_retrieval_recall@1"}

Metrics = dict[str, float]


@dataclass(frozen=True)
class Assessor:
    """Measures one model.

    autocast: precision context of the image tower, see precision.py. notify: shows a line.
    """

    created: CreatedModel
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]]
    notify: Callable[[str], None] = print

    def validate(self, data: RunData) -> Metrics:
        """The quick measurement between epochs, on the validation set alone."""
        if data.pictures is not None:
            pictures = data.pictures.evaluation["validation"]
            classes = class_embeddings(self.embed, pictures.classes.names)
            return classification_metrics(self.embed_pictures(pictures), classes, pictures.labels)
        assert data.validation is not None
        return self.retrieve_pairs(data.validation)

    def evaluate(self, data: RunData) -> dict[str, Metrics]:
        """Everything, set by set."""
        if data.pictures is not None:
            return self.evaluate_pictures(data.pictures)
        assert data.validation is not None
        return {"validation": self.retrieve_pairs(data.validation)}

    def evaluate_pictures(self, data: PictureData) -> dict[str, Metrics]:
        """Zero-shot, coarse classes, retrieval and consistency with 1-NN on each evaluation set.

        "all_shifted" joins validation and shifted: every drawing style that was not trained on.
        """
        trained = data.evaluation["validation"].classes
        class_features = class_embeddings(self.embed, trained.names)
        # 1-NN needs labels; "debian" trains on pictures that have none.
        neighbours = data.train if isinstance(data.train, PictureSet) else None
        neighbour_features = None if neighbours is None else self.embed_pictures(neighbours)
        results: dict[str, Metrics] = {}
        for name, pictures in data.evaluation.items():
            known = pictures.classes.names == trained.names
            classes = (
                class_features if known else class_embeddings(self.embed, pictures.classes.names)
            )
            features = self.embed_pictures(pictures)
            metrics = self._classify(pictures, features, classes)
            if known and neighbours is not None and neighbour_features is not None:
                metrics["consistency@1"] = text_image_consistency(
                    features, classes, neighbour_features, neighbours.labels
                )
            results[name] = metrics
        joined = [name for name in ("validation", "shifted") if name in results]
        if joined:
            results["all_shifted"] = _weighted_mean(
                [results[name] for name in joined], [len(data.evaluation[name]) for name in joined]
            )
        return results

    def _classify(self, pictures: PictureSet, features: Tensor, classes: Tensor) -> Metrics:
        labels = pictures.labels
        metrics = classification_metrics(features, classes, labels)
        levels = {
            "subgroup_acc1": pictures.classes.subgroup_of_class,
            "group_acc1": pictures.classes.group_of_class,
        }
        for name, coarse in levels.items():
            metrics[name] = coarse_accuracy(features, classes, labels, coarse)
        synonyms = class_embeddings(self.embed, pictures.captions_of_class())
        metrics["acc1_all_names"] = classification_metrics(features, synonyms, labels, (1,))["acc1"]
        if len(pictures.domain_names) > 1:
            for index, domain in enumerate(pictures.domain_names):
                own = pictures.domains == index
                metrics[f"acc1/{domain}"] = classification_metrics(
                    features[own], classes, labels[own], (1,)
                )["acc1"]
        texts, text_labels = unambiguous_captions(pictures)
        metrics |= retrieval_metrics(features, self.embed(texts), labels, text_labels)
        return metrics

    def retrieve_pairs(self, pairs: Pairs) -> Metrics:
        """Retrieval among pairs from files; unreadable ones are left out, counted and shown.

        Raises ValueError where none can be read.
        """
        transform = file_transform(self.created.image_size, train=False)
        captions: list[tuple[str, ...]] = []
        skipped = SkipReport()

        def batches() -> Iterator[Tensor]:
            pending = []
            for index in range(len(pairs)):
                try:
                    record = pairs[index]
                except BadRecord as bad:
                    skipped.add(bad.reason, bad.where)
                    continue
                captions.append(record.captions)
                pending.append(transform(record.image))
                if len(pending) == BATCH:
                    yield torch.stack(pending).to(self.device)
                    pending = []
            if not captions:
                raise ValueError(f"no record of {pairs.source} can be read: {skipped}")
            if pending:
                yield torch.stack(pending).to(self.device)

        model: Any = self.created.model
        images = embed_images(model, batches(), autocast=self.autocast)
        if skipped.total:
            self.notify(f"  validation data: {skipped}")
        texts = [text for entry in captions for text in entry]
        owners = [i for i, entry in enumerate(captions) for _ in entry]
        return retrieval_metrics(
            images, self.embed(texts), torch.arange(len(images)), torch.tensor(owners)
        )

    def embed(self, texts: list[str]) -> Tensor:
        """Unit-length text embeddings, [n, d]."""
        model: Any = self.created.model
        return embed_texts(
            model, lambda batch: self.created.tokenizer(batch).to(self.device), texts
        )

    def embed_pictures(self, pictures: MemoryPairs) -> Tensor:
        """Unit-length embeddings of a set in memory, [n, d]."""
        size = self.created.image_size
        model: Any = self.created.model
        batches = (render(part, size).to(self.device) for part in pictures.images.split(BATCH))
        return embed_images(model, batches, autocast=self.autocast)


def unambiguous_captions(pictures: PictureSet) -> tuple[list[str], Tensor]:
    """The captions that belong to exactly one class of a set, and that class of each."""
    owner: dict[str, int] = {}
    shared = set()
    for label, captions in enumerate(pictures.captions_of_class()):
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
