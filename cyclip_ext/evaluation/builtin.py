"""Built-in datasets such as "emoji": their parts as embeddings, and their tasks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from ..data import DatasetSplits
from .embeddings import Embeddings
from .encode import encode
from .encoder import Encoder
from .prompts import Prompts
from .tasks import SHORT, TASKS, Baselines, TaskResult, in_order, run_tasks, shift

BASE, MAIN = "in_domain", "shifted"
SHIFTED = ("validation", MAIN)  # their domains are compared with the base

MEANING = {  # of the names of the parts, for a reader
    "in_domain": "trained classes in trained styles, images withheld from training",
    "validation": "trained classes in the style on which settings are chosen",
    "shifted": "trained classes in styles never trained on",
    "heldout_in_domain": "classes never trained on, in trained styles",
    "heldout_validation": "classes never trained on, in the style of validation",
    "heldout_shifted": "classes and styles never trained on",
}


def encode_splits(
    splits: DatasetSplits, encoder: Encoder, templates: tuple[str, ...] | None = None
) -> tuple[Embeddings | None, dict[str, Embeddings]]:
    """Embed the training images, if they have labels, and every evaluation dataset.

    Returns both; the full names of the datasets are "emoji/train" and so on.
    """
    encoded: dict[str, Embeddings] = {}
    by_classes: dict[tuple[str, ...], Embeddings] = {}
    for name, dataset in {"train": splits.train, **splits.evaluation}.items():
        if name == "train" and dataset.labels is None:  # "debian" trains on images without labels
            continue
        found = encode(
            dataset,
            encoder,
            prompts=Prompts(templates=templates),
            captions=name != "train",
            classes_of=by_classes.get(dataset.class_names),
        )
        encoded[name] = replace(found, name=f"{splits.name}/{name}")
        by_classes.setdefault(dataset.class_names, encoded[name])
    return encoded.pop("train", None), encoded


def evaluate_splits(
    train: Embeddings | None,
    evaluation: Mapping[str, Embeddings],
    *,
    tasks: Collection[str] | None = None,
    baselines: Baselines | None = None,
    seed: int = 0,
    details: bool = True,
) -> list[TaskResult]:
    """Run tasks on the evaluation datasets of a built-in dataset, as `encode_splits` returns them.

    Every dataset goes through the tasks of SHORT. "shifted" goes through all tasks, and has
    tables and plots, unless `details` is false. Distribution shift compares "in_domain" with the
    domains of "validation" and "shifted". Neighbours and probes learn from the training images, if
    a dataset has the same classes.
    """
    chosen = set(TASKS if tasks is None else tasks)
    results: list[TaskResult] = []
    for name, dataset in evaluation.items():
        whole = details and name == MAIN
        known = train is not None and train.class_names == dataset.class_names
        results += run_tasks(
            dataset,
            train=train if known else None,
            tasks=chosen - {shift.TASK} if whole else chosen & set(SHORT),
            seed=seed,
            details=whole,
        )
    if shift.TASK in chosen:
        results += run_tasks(
            evaluation[BASE],
            shifted=[evaluation[name] for name in SHIFTED],
            baselines=baselines,
            tasks=(shift.TASK,),
        )
    return in_order(results)
