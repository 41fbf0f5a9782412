"""Zero-shot classification of one set."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ..confusion import LARGEST_MATRIX, confusion_counts, per_class, plot_confusion
from ..hierarchy import Hierarchy
from ..outcome import Outcome, Plot, Table
from ..zero_shot import Classified

TASK = "zeroshot_classification"
MATRIX = LARGEST_MATRIX  # classes whose confusions are shown one by one

READING = (
    "Each picture goes to the class whose text is nearest. Top-k: the true class is among the k "
    "nearest, which of no more than k classes is always so. Per-class recall counts every class "
    "alike, however many pictures it has. A tie counts against the model."
)


def zero_shot(
    dataset: str,
    classified: Classified,
    class_names: Sequence[str],  # [C]
    *,
    superclasses: Hierarchy | None = None,
    details: bool = True,
) -> Outcome:
    """Accuracies; with details the table of classes and the confusions, of superclasses if given.

    Raises ValueError where the set is empty.
    """
    chance = 100 / classified.num_classes
    return Outcome(
        dataset,
        TASK,
        classified.metrics(),
        "Zero-shot classification",
        READING,
        (_classes(classified, class_names, chance),) if details else (),
        (_confusion(classified, class_names, superclasses),) if details else (),
    )


def _classes(classified: Classified, names: Sequence[str], chance: float) -> Table:
    results = [result for result in per_class(classified) if result.count]
    results.sort(key=lambda result: -(result.acc1 or 0))  # stable: else in the order of the labels
    return Table(
        "Classes, best first",
        ("class", "pictures", "top-1 (%)", "top-5 (%)", "most often taken for", "that often"),
        tuple(
            (
                names[result.label],
                result.count,
                100 * (result.acc1 or 0.0),
                100 * (result.acc5 or 0.0),
                "" if result.confused_with is None else names[result.confused_with],
                result.confused,
            )
            for result in results
        ),
        f"Guessing one of {classified.num_classes:,} classes would be right in {chance:.3g}%.",
    )


def _confusion(
    classified: Classified, names: Sequence[str], superclasses: Hierarchy | None
) -> Plot:
    counts = confusion_counts(classified)
    if superclasses is not None:
        counts, names = superclasses.confusion_counts(counts), superclasses.superclass_names
    what = "class" if superclasses is None else "superclass"
    many = len(names) > MATRIX
    caption = (
        f"The most frequent confusions: true {what} and the one predicted instead."
        if many
        else f"Rows: the true {what}; columns: the predicted one. Colours are the wrong "
        "predictions, in percent of the row's pictures; on the diagonal stands the share of right "
        "ones."
    )
    draw = partial(plot_confusion, counts=counts, names=names)
    size = (6.4, 4.8) if many else (6.4, 5.4)
    return Plot("confusion", caption, draw, size)
