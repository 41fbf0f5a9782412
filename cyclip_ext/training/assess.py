"""Evaluation of a model in training by some of the tasks of `cyclip_ext.evaluation`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..data import ImageDataset
from ..evaluation import (
    SHORT,
    Encoder,
    TaskResult,
    encode,
    encode_splits,
    evaluate_splits,
    run_tasks,
    training_metrics,
)
from ..evaluation.report import describe_data
from .data import RunData, record_counts

Metrics = dict[str, float]

# The best checkpoint is chosen on validation data only, never on the test sets.
SELECTION_METRIC = {True: "acc1", False: "text_retrieval_recall@1"}


@dataclass(frozen=True)
class Assessor:
    """Measures one model.

    counts: records used and skipped of each dataset that was measured, as of its last measurement.
    """

    encoder: Encoder
    counts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def validate(self, data: RunData) -> Metrics:
        """Measure the validation dataset alone, between epochs."""
        if data.splits is None:
            assert data.validation is not None
            return self.retrieve(data.validation)
        dataset = data.splits.evaluation["validation"]
        embeddings = encode(dataset, self.encoder, captions=False)
        return training_metrics(run_tasks(embeddings, tasks=SHORT[:1], details=False))

    def evaluate(self, data: RunData) -> dict[str, Metrics]:
        """Measure every evaluation dataset.

        "all_shifted" joins validation and shifted: every drawing style that was not trained on.
        """
        if data.splits is None:
            assert data.validation is not None
            return {"validation": self.retrieve(data.validation)}
        train, sets = encode_splits(data.splits, self.encoder)
        for name, embeddings in sets.items():
            self.counts[name] = record_counts(embeddings.used, embeddings.skipped)
        found = evaluate_splits(train, sets, tasks=SHORT, details=False)
        by_dataset: dict[str, list[TaskResult]] = {}
        for result in found:
            by_dataset.setdefault(result.dataset, []).append(result)
        results = {name: training_metrics(by_dataset[each.name]) for name, each in sets.items()}
        joined = [name for name in ("validation", "shifted") if name in results]
        if joined:
            results["all_shifted"] = _weighted_mean(
                [results[name] for name in joined], [sets[name].used for name in joined]
            )
        return results

    def retrieve(self, dataset: ImageDataset) -> Metrics:
        """Measure retrieval among pairs from files; unreadable ones are skipped, counted and shown.

        Raises ValueError if none can be read.
        """
        embeddings = encode(dataset, self.encoder)
        self.counts["validation"] = record_counts(embeddings.used, embeddings.skipped)
        if embeddings.skipped.total:
            self.encoder.notify(f"  validation data: {describe_data(embeddings)}")
        return training_metrics(run_tasks(embeddings, tasks=SHORT, details=False))


def _weighted_mean(parts: list[Metrics], weights: list[int]) -> Metrics:
    """Average the metrics that are means over images, and that all parts have, over the images."""
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
