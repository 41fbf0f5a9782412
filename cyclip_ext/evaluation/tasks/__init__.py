"""The tasks of evaluation, one file each, and the registry that every caller uses.

A task is a file with pure metric functions, its plot, and

    run(embeddings: Embeddings, options: TaskOptions) -> TaskResult | None

which returns None if the dataset lacks an array that the task takes. `classification()`,
`captions()` and `pairs()` of Embeddings return the arrays of most tasks, or None; in a dataset with
classes, the text of a pair is the prompt of the image's class. Each number of the result is
declared as a Metric beside the code that computes it: its unit decides how reports show it. To add
a task, write such a file, import it here and add one line to TASKS: the command line and the report
use it without further changes. Add it to SHORT if training should measure it as well. A test
belongs in python_tests/evaluation/tasks/.

The metric functions take arrays of Embeddings, which checks shapes, types and ranges and that the
features are finite: with NaN a comparison is false and would count in favour of the model. The
functions themselves check only their other arguments.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from ..embeddings import Embeddings
from . import (
    composition,
    consistency,
    corners,
    geometry,
    hierarchy,
    margins,
    probes,
    retrieval,
    shift,
    zero_shot,
)
from .base import (
    Baselines,
    Cell,
    Example,
    Gallery,
    Item,
    Metric,
    Plot,
    Run,
    Table,
    TaskOptions,
    TaskResult,
    Unit,
)

TASKS: dict[str, Run] = {  # by name, in the order of the report
    zero_shot.TASK: zero_shot.run,
    shift.TASK: shift.run,
    hierarchy.TASK: hierarchy.run,
    consistency.TASK: consistency.run,
    retrieval.TASK: retrieval.run,
    probes.LINEAR: probes.run_linear,
    probes.KNN: probes.run_knn,
    composition.TASK: composition.run,
    geometry.TASK: geometry.run,
    corners.TASK: corners.run,
    margins.TASK: margins.run,
}

# The tasks of in-training evaluation, and the metrics that it logs under their own keys.
LOGGED = ("acc1", "acc5", "mean_per_class_recall", "acc1_all_names", "consistency@1")
SHORT = (zero_shot.TASK, hierarchy.TASK, consistency.TASK, retrieval.TASK)


def run_tasks(
    embeddings: Embeddings,
    *,
    train: Embeddings | None = None,
    shifted: Sequence[Embeddings] = (),
    baselines: Baselines | None = None,
    tasks: Collection[str] | None = None,
    seed: int = 0,
    details: bool = True,
) -> list[TaskResult]:
    """Run every task for which the dataset has the arrays, in the order of TASKS.

    tasks: names of TASKS; None: all. details: whether results have tables, plots and galleries. The
    other arguments are those of TaskOptions. The result of a task whose package is not installed
    has no values; its explanation names the package.

    Raises: ValueError for an unknown task, training images of other classes, and as the tasks do.
    """
    names = tuple(TASKS) if tasks is None else tuple(tasks)
    if unknown := sorted(set(names) - set(TASKS)):
        raise ValueError(f"tasks must be among {', '.join(TASKS)}, got {', '.join(unknown)}")
    if train is not None:
        require_same_classes(train, embeddings)
        if not train.name.endswith("train"):  # a split of one name may be tested as well
            train = replace(train, name=f"{train.name} (train)")
    options = TaskOptions(train, tuple(shifted), baselines, seed)
    results = []
    for name, run in TASKS.items():
        if name not in names:
            continue
        try:
            result = run(embeddings, options)
        except ImportError as error:
            title = name.replace("_", " ").capitalize()
            result = TaskResult(embeddings.name, name, {}, title, f"Not measured: {error}")
        if result is not None:
            if not details:
                result = replace(result, tables=(), plots=(), galleries=())
            results.append(replace(result, data=(embeddings, *result.data)))
    return results


def require_same_classes(train: Embeddings, tested: Embeddings) -> None:
    """Raise ValueError unless the labels of `train` are indices into the classes of `tested`."""
    if train.labels is None:
        raise ValueError(f"{train.name} has no labels; neighbours and probes learn from labels")
    if (
        train.class_names is not None
        and tested.class_names is not None
        and train.class_names != tested.class_names
    ):
        raise ValueError(
            f"{train.name} and {tested.name} must have the same classes in the same order, because "
            "labels are indices into them"
        )
    width, classes = tested.image_features.shape[1], len(tested.classes)
    if train.image_features.shape[1] != width:
        raise ValueError(
            f"image_features of {train.name} must have {width} columns, as those of {tested.name}, "
            f"got {train.image_features.shape[1]}; encode both with one model"
        )
    if classes and int(train.labels.max()) >= classes:
        raise ValueError(
            f"{train.name}: labels go up to {int(train.labels.max())}, but {tested.name} has "
            f"{classes} classes"
        )


def in_order(results: Iterable[TaskResult]) -> list[TaskResult]:
    """Sort by task as in TASKS, others last, without changing the order within a task."""
    order = {name: place for place, name in enumerate(TASKS)}
    return sorted(results, key=lambda result: order.get(result.task, len(order)))


def training_metrics(results: Iterable[TaskResult]) -> dict[str, float]:
    """Return the numbers of one dataset that a training run logs, under the keys of its log.

    These are acc1, acc5, mean_per_class_recall, acc1_all_names, acc1/<domain>, <level>_acc1 (the
    right superclass), consistency@1 and the recalls of retrieval, as far as they were measured.
    """
    logged = {}
    for result in results:
        for key, value in result.values.items():
            level = key.removeprefix("coarse_acc1/")
            if level != key:
                logged[f"{level}_acc1"] = value
            elif key in LOGGED or key.startswith("acc1/") or "_retrieval_recall@" in key:
                logged[key] = value
    return logged


__all__ = [
    "SHORT",
    "TASKS",
    "Baselines",
    "Cell",
    "Example",
    "Gallery",
    "Item",
    "Metric",
    "Plot",
    "Table",
    "TaskOptions",
    "TaskResult",
    "Unit",
    "in_order",
    "require_same_classes",
    "run_tasks",
    "training_metrics",
]
