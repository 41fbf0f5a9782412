"""Rows, their split, scoring, the result and its plot: what the probes have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ... import needs
from ...checks import require_finite
from ..._plotting import BLUE, VERMILION
from ..zero_shot import Classified
from .split import validation_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = tuple[Tensor, Tensor]  # features [n, d], labels int64 [n]

Scores = Callable[[slice], Tensor]  # some of the rows to classify -> [n, classes], larger is better

_BLOCK = 2**22  # scores held at a time


@dataclass(frozen=True)
class SweepPoint:
    """Accuracy on the validation rows, from 0 to 1, with one value of the setting."""

    value: float
    validation_acc1: float


@dataclass(frozen=True)
class Probe:
    """What a probe found.

    metrics: acc1, acc5 and mean_per_class_recall on the test rows; acc5 is 1 with 5 classes or
        fewer. setting: what was chosen, "C" or "k"; chosen: its value.
    sweep: what it was chosen by, in the order of values; empty where nothing was compared.
    predictions: int64 [N], of the test rows. notes: what a reader of the numbers should know.
    """

    metrics: dict[str, float]
    setting: str
    chosen: float
    sweep: tuple[SweepPoint, ...]
    predictions: Tensor
    notes: tuple[str, ...]


def plot_sweep(figure: Figure, probe: Probe) -> None:
    """Validation accuracy against the setting, the chosen value marked.

    Raises ValueError for a probe without a sweep.
    """
    if not probe.sweep:
        raise ValueError(
            f"probe has no sweep to draw: {'; '.join(probe.notes) or 'its setting was given'}"
        )
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    values = [point.value for point in probe.sweep]
    axes.plot(values, [100 * point.validation_acc1 for point in probe.sweep], "o-", color=BLUE)
    best = next(point for point in probe.sweep if point.value == probe.chosen)
    axes.plot(
        [best.value],
        [100 * best.validation_acc1],
        "D",
        color=VERMILION,
        markersize=9,
        label=f"chosen: {probe.setting} = {probe.chosen:.3g}",
    )
    axes.set_xscale("log")
    if probe.setting == "k":
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
        axes.set_xlabel("k, neighbours that vote")
    else:
        axes.set_xlabel("C, inverse strength of regularization")
    axes.set_ylabel("accuracy on validation rows, %")
    axes.grid(alpha=0.3)
    axes.legend()


def check_rows(train: Rows, test: Rows, validation: Rows | None) -> None:
    """Raises ValueError, naming the argument, for rows and labels that no probe can take."""
    parts = {"train": train, "test": test}
    if validation is not None:
        parts["validation"] = validation
    for name, (features, labels) in parts.items():
        if features.ndim != 2 or not len(features) or features.shape[1:] != train[0].shape[1:]:
            raise ValueError(
                f"{name}_features must be [n, d], n above 0 and d as of train_features, got "
                f"{[*features.shape]} (train_features is {[*train[0].shape]})"
            )
        if labels.dtype != torch.int64 or labels.shape != features.shape[:1]:
            raise ValueError(
                f"{name}_labels must be int64 [{len(features)}], one per row of {name}_features, "
                f"got {labels.dtype} {[*labels.shape]}"
            )
        if int(labels.min()) < 0:
            raise ValueError(f"{name}_labels must be 0 or more, got {int(labels.min())}")
        require_finite(**{f"{name}_features": features})


def split_rows(train: Rows, validation: Rows | None, share: float, seed: int) -> tuple[Rows, Rows]:
    """Rows to train on while choosing, and rows to choose on, which may be none."""
    if validation is not None:
        return train, validation
    held_out = validation_rows(train[1], share, seed)
    return (train[0][~held_out], train[1][~held_out]), (train[0][held_out], train[1][held_out])


def joined(first: Rows, second: Rows) -> Rows:
    """The rows of both."""
    return torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])


def number_of_classes(*parts: Rows | None) -> int:
    """One more than the largest label."""
    return 1 + max(int(labels.max()) for _, labels in filter(None, parts) if len(labels))


def best_value(accuracy: dict[float, float]) -> float:
    """The value of largest accuracy, of equals the smallest: the more regular classifier."""
    return min(accuracy, key=lambda value: (-accuracy[value], value))


def scored(labels: Tensor, classes: int, scores: Scores) -> Classified:
    """Ranks and predictions of rows with these labels, in blocks; ties count against the model."""
    step = max(1, _BLOCK // classes)
    ranks, predictions = [], []
    for start in range(0, len(labels), step):
        rows = slice(start, start + step)
        every = scores(rows)
        ranks.append((every >= every.gather(1, labels[rows, None])).sum(1) - 1)
        predictions.append(every.argmax(1))
    return Classified(labels, torch.cat(ranks), torch.cat(predictions), classes)


def sklearn() -> Any:
    """The module, with what probes take of it; MissingDependency where it does not import."""
    try:
        import sklearn.exceptions
        import sklearn.linear_model
        import sklearn.neighbors
    except Exception as error:
        raise needs.MissingDependency(
            'probes need scikit-learn (pip install "cyclip_ext[eval]"); importing it failed with: '
            f"{error}"
        ) from error
    return sklearn
