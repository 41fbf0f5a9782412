"""Fine- and coarse-grained accuracy of one set, by one or more levels of superclasses."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from ..hierarchy import FineAndCoarse, Hierarchy, fine_and_coarse, per_superclass, plot_superclasses
from ..outcome import Outcome, Plot, Table

TASK = "fine_coarse_classification"

READING = (
    "Coarse: the picture is put into the right superclass, whichever of its classes is nearest. "
    "Fine: the right class among those of the true superclass alone. A model may be good at either."
)


def fine_coarse(
    dataset: str,
    image_features: Tensor,  # [N, d]
    class_features: Tensor,  # [C, d]
    labels: Tensor,  # int64 [N]
    levels: Mapping[str, Hierarchy],
    *,
    details: bool = True,
) -> Outcome:
    """fine_acc1/<level> and coarse_acc1/<level>, with details each level's superclasses."""
    ranked = {
        level: fine_and_coarse(image_features, class_features, labels, hierarchy)
        for level, hierarchy in levels.items()
    }
    metrics = {
        f"{name}/{level}": value
        for level, result in ranked.items()
        for name, value in result.metrics((1, 5)).items()
    }
    shown = ranked.items() if details else ()
    return Outcome(
        dataset,
        TASK,
        metrics,
        "Fine and coarse classes",
        READING,
        tuple(_table(level, result) for level, result in shown),
        tuple(_plot(level, result) for level, result in shown),
    )


def _table(level: str, ranked: FineAndCoarse) -> Table:
    results = sorted(per_superclass(ranked), key=lambda result: -result.pictures)
    return Table(
        f"Distribution of the {level}s, largest first",
        (level, "classes", "pictures", "coarse top-1 (%)", "fine top-1 (%)"),
        tuple(
            (
                result.name,
                result.classes,
                result.pictures,
                None if result.coarse_acc1 is None else 100 * result.coarse_acc1,
                None if result.fine_acc1 is None else 100 * result.fine_acc1,
            )
            for result in results
        ),
        f"Fine accuracy of a {level} of one class is 100% by definition.",
    )


def _plot(level: str, ranked: FineAndCoarse) -> Plot:
    return Plot(
        f"fine_coarse_{level}",
        f"Accuracy by {level}: coarse (circles) and fine (diamonds); in brackets its classes and "
        "pictures.",
        partial(plot_superclasses, results=per_superclass(ranked)),
        (6.4, 4.8),
    )
