"""Classification class by class: accuracy of each, and what it is taken for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._plotting import BLUE, shorten
from .zero_shot import Classified

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST_MATRIX = 20  # classes: with more, names beside a matrix cannot be read
PAIRS = 20


@dataclass(frozen=True)
class ClassResult:
    """One class of a classification.

    label: its index. count: its pictures. acc1, acc5: shares of them, None without pictures.
    confused_with: the wrong class that most of its pictures were put into, of equals the first;
    None where there was no wrong prediction. confused: how many pictures that were.
    """

    label: int
    count: int
    acc1: float | None
    acc5: float | None
    confused_with: int | None
    confused: int


def per_class(classified: Classified) -> tuple[ClassResult, ...]:
    """Results of all C classes, those without pictures included, in memory O(N + C).

    A picture whose true class ties with a later one is neither a hit nor a confusion, see
    `Classified`.
    """
    worst: dict[int, tuple[int, int]] = {}
    for label, predicted, count in _confusions(classified):
        if count > worst.get(label, (0, 0))[1]:
            worst[label] = predicted, count
    results = []
    for label, (count, hits1, hits5) in enumerate(
        zip(
            classified.counts().tolist(),
            classified.hits(1).tolist(),
            classified.hits(5).tolist(),
            strict=True,
        )
    ):
        confused_with, confused = worst.get(label, (None, 0))
        results.append(
            ClassResult(
                label,
                count,
                hits1 / count if count else None,
                hits5 / count if count else None,
                confused_with,
                confused,
            )
        )
    return tuple(results)


def confusion_counts(classified: Classified) -> Tensor:
    """How many pictures of a true class (row) were put into a predicted one (column), int64 [C, C].

    Of tied classes the first is predicted, so the diagonal may exceed the hits that acc1 counts:
    for acc1 a tie counts against the model.
    """
    size = classified.num_classes
    cells = classified.labels * size + classified.predictions
    return torch.bincount(cells, minlength=size * size).view(size, size)


def plot_confusion(
    figure: Figure,
    counts: Tensor,  # int64 [C, C], rows true, columns predicted
    names: Sequence[str],  # [C]
) -> None:
    """The matrix, each row as shares of its class, for up to 20 classes.

    Colour shows the confusions; right predictions are numbers on the diagonal. With more classes:
    the 20 most frequent confusions as bars. To see all of many classes, add up counts by
    superclass first, `Hierarchy.confusion_counts`.
    Raises: ValueError where counts is not [C, C] for C names.
    """
    if counts.shape != (len(names), len(names)):
        raise ValueError(
            f"counts must be [C, C] for {len(names)} names, got {[*counts.shape]}; use "
            "confusion_counts"
        )
    figure.set_layout_engine("constrained")
    if len(names) <= LARGEST_MATRIX:
        _draw_matrix(figure, counts, names)
    else:
        _draw_pairs(figure, counts, names)


def _draw_matrix(figure: Figure, counts: Tensor, names: Sequence[str]) -> None:
    axes = figure.subplots()
    pictures = counts.sum(1)
    shares = 100 * counts / pictures.clamp(min=1)[:, None]  # a class without pictures: zeros
    wrong = shares.clone().fill_diagonal_(0)  # the right ones would outshine all others
    largest = wrong.max().item() or 1.0
    image = axes.imshow(wrong.numpy(), vmin=0, vmax=largest, cmap="Blues", aspect="auto")
    figure.colorbar(image, ax=axes, label="wrong predictions (% of the true class)")
    for place in pictures.nonzero().flatten().tolist():
        right = f"{shares[place, place].item():.0f}%"
        axes.text(place, place, right, ha="center", va="center", fontsize=6)
    ticks = range(len(names))
    labels = [shorten(name) for name in names]
    axes.set_xticks(ticks, labels, rotation=90, fontsize=7)
    axes.set_yticks(ticks, labels, fontsize=7)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")


def _draw_pairs(figure: Figure, counts: Tensor, names: Sequence[str]) -> None:
    axes = figure.subplots()
    wrong = counts.clone().fill_diagonal_(0).flatten()
    order = wrong.argsort(descending=True, stable=True)[:PAIRS]
    order = order[wrong[order] > 0]
    if not len(order):
        axes.text(0.5, 0.5, "no confusions", ha="center", va="center")
        axes.set_axis_off()
        return
    axes.barh(range(len(order)), wrong[order].tolist(), color=BLUE)
    pairs = [divmod(cell, len(names)) for cell in order.tolist()]
    labels = [f"{shorten(names[true])} → {shorten(names[predicted])}" for true, predicted in pairs]
    axes.set_yticks(range(len(order)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("pictures (true class → predicted class)")


def _confusions(classified: Classified) -> list[tuple[int, int, int]]:
    """(true, predicted, pictures) of all wrong predictions, ordered by true, then by predicted."""
    size = classified.num_classes
    wrong = classified.predictions != classified.labels
    cells = classified.labels[wrong] * size + classified.predictions[wrong]
    found, counts = cells.unique(return_counts=True)
    return [
        (*divmod(cell, size), count)
        for cell, count in zip(found.tolist(), counts.tolist(), strict=True)
    ]
