"""Zero-shot classification: each image is assigned to the class whose text is nearest.

Source: Radford et al. 2021, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..._plotting import BLUE, shorten
from ...data import Superclasses
from ..embeddings import Embeddings, check_labels, require_finite
from .base import Metric, Plot, Table, TaskOptions, TaskResult, Unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASK = "zeroshot_classification"

BLOCK = 2**22  # similarities held at a time: bounds memory, does not change any result
KS = (1, 3, 5, 10)
NAME_ONLY = ("{}",)
LARGEST_MATRIX = 20  # classes: with more, names beside a confusion matrix are not readable
CONFUSED_PAIRS = 20  # bars in the plot that replaces a larger matrix


# ------------------------------------------------------------------------------------ metrics


def class_embeddings(
    embed: Callable[[list[str]], Tensor],
    names: Sequence[str] | Sequence[Sequence[str]],
    templates: Sequence[str] = NAME_ONLY,
) -> Tensor:
    """Return one unit-length text embedding per class, [C, d].

    embed: texts -> unit-length embeddings [n, d] (`embed_texts` with its model bound).
    names: one name, or several synonyms, per class. templates: prompts with "{}" for the name.
    The embeddings of all prompts of a class are averaged and the mean is normalized. Equal prompts
    are embedded once, so that classes with the same name tie to the last bit.

    Raises ValueError for no class, or a class without a prompt.
    """
    if isinstance(names, str) or isinstance(templates, str):
        raise ValueError("names and templates must be lists of texts, got one text")
    if not names:
        raise ValueError("names is empty: zero-shot classification needs at least one class")
    prompts, owners = [], []
    for index, entry in enumerate(names):
        for name in (entry,) if isinstance(entry, str) else entry:
            for template in templates:
                prompts.append(template.format(name))
                owners.append(index)
    if missing := sorted({*range(len(names))} - {*owners}):
        raise ValueError(
            f"{len(missing)} classes, the first of them {missing[0]}, have no prompt: each needs a "
            "name, and templates at least one entry"
        )
    distinct = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    rows = embed(list(distinct))[[distinct[prompt] for prompt in prompts]]
    sums = torch.zeros(len(names), rows.shape[1], dtype=rows.dtype)
    return normalize(sums.index_add_(0, torch.tensor(owners), rows), dim=-1)


def zero_shot_predict(
    image_features: Tensor,  # [N, d], unit length
    class_features: Tensor,  # [C, d], unit length
) -> Tensor:
    """Return the index of each image's nearest class, int64 [N]; the first of tied classes."""
    _check_features(image_features, class_features)
    return torch.cat([part.argmax(1) for part in _similarities(image_features, class_features)])


@dataclass(frozen=True)
class Classified:
    """Rank and prediction of every image, from one pass over the similarities with the classes.

    labels: int64 [N], the true classes.
    ranks: int64 [N], how many other classes are at least as near as the true one. rank < k is a hit
        at k, so a tie counts against the model: towers that map everything to one point score 0
        rather than 1. acc<k>, recalls and the accuracies per class follow from the ranks.
    predictions: int64 [N], the nearest class, the first of tied ones: here a tie may count for the
        model. Confusions, which need one predicted class, follow from the predictions.
    num_classes: C.
    """

    labels: Tensor
    ranks: Tensor
    predictions: Tensor
    num_classes: int

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, rows: Tensor) -> Classified:  # bool [N], or int64 indices
        """Return the same of some of the images, for example of one domain."""
        return Classified(
            self.labels[rows], self.ranks[rows], self.predictions[rows], self.num_classes
        )

    def metrics(self, ks: Sequence[int] = KS) -> dict[str, float]:
        """Return acc<k> for each k, and mean_per_class_recall over the classes with images.

        With k >= C acc<k> is 1. Raises ValueError without images, and for a k below 1.
        """
        if not len(self):
            raise ValueError("no images to score: the dataset, or this part of it, is empty")
        metrics = {}
        for k in ks:
            if k < 1:
                raise ValueError(f"ks must be 1 or more, got {k}")
            metrics[f"acc{k}"] = (self.ranks < k).double().mean().item()
        counts = self.counts()
        present = counts > 0
        recalls = self.hits(1)[present].double() / counts[present]
        metrics["mean_per_class_recall"] = recalls.mean().item()
        return metrics

    def counts(self) -> Tensor:
        """Return the number of images of each class, int64 [C]."""
        return torch.bincount(self.labels, minlength=self.num_classes)

    def hits(self, k: int) -> Tensor:
        """Count the images of each class with the true class among the k nearest, int64 [C]."""
        return torch.bincount(self.labels[self.ranks < k], minlength=self.num_classes)


def classify(
    image_features: Tensor,  # [N, d], unit length
    class_features: Tensor,  # [C, d], unit length
    labels: Tensor,  # int64 [N]
) -> Classified:
    """Compare every image with every class once, in blocks, without an N x C matrix.

    Raises ValueError for shapes that do not fit, labels without a class, and features that are
    not finite.
    """
    ranks, predictions = [], []
    for similarity, truth in similarity_blocks(image_features, class_features, labels):
        target = similarity.gather(1, truth[:, None])
        ranks.append((similarity >= target).sum(1) - 1)  # the true class itself is among them
        predictions.append(similarity.argmax(1))
    return Classified(labels, torch.cat(ranks), torch.cat(predictions), len(class_features))


def classification_metrics(
    image_features: Tensor,  # [N, d], unit length
    class_features: Tensor,  # [C, d], unit length
    labels: Tensor,  # int64 [N]
    ks: Sequence[int] = KS,
) -> dict[str, float]:
    """Return acc<k> for each k, and mean_per_class_recall: `classify` and `Classified.metrics`.

    A tie counts against the model: the true class must beat all but k - 1 of the others.
    """
    return classify(image_features, class_features, labels).metrics(ks)


@dataclass(frozen=True)
class ClassResult:
    """One class of a classification.

    label: its index. count: its images. acc1, acc5: shares of them, None without images.
    confused_with: the wrong class that most of its images were assigned to, the first of equals;
    None without a wrong prediction. confused: the number of these images.
    """

    label: int
    count: int
    acc1: float | None
    acc5: float | None
    confused_with: int | None
    confused: int


def per_class(classified: Classified) -> tuple[ClassResult, ...]:
    """Return the results of all C classes, those without images included, in memory O(N + C).

    An image whose true class ties with a later one is neither a hit nor a confusion, see
    `Classified`.
    """
    wrong = classified.predictions != classified.labels
    cells = classified.labels[wrong] * classified.num_classes + classified.predictions[wrong]
    worst: dict[int, tuple[int, int]] = {}
    for cell, count in zip(*(x.tolist() for x in cells.unique(return_counts=True)), strict=True):
        label, predicted = divmod(cell, classified.num_classes)
        if count > worst.get(label, (0, 0))[1]:
            worst[label] = predicted, count
    numbers = (classified.counts(), classified.hits(1), classified.hits(5))
    return tuple(
        ClassResult(
            label,
            count,
            hits1 / count if count else None,
            hits5 / count if count else None,
            *worst.get(label, (None, 0)),
        )
        for label, (count, hits1, hits5) in enumerate(
            zip(*(each.tolist() for each in numbers), strict=True)
        )
    )


def confusion_counts(
    classified: Classified,
    superclasses: Superclasses | None = None,
) -> Tensor:  # int64 [C, C], with superclasses [S, S]
    """Count the images of each true class (row) that were assigned to each class (column).

    Of tied classes the first is predicted, so the diagonal may exceed the hits that acc1 counts,
    where a tie counts against the model. superclasses: the counts are added up by superclass.
    """
    size = classified.num_classes
    rows, columns = classified.labels, classified.predictions
    if superclasses is not None:
        size = len(superclasses.names)
        rows, columns = superclasses.of_class[rows], superclasses.of_class[columns]
    return torch.bincount(rows * size + columns, minlength=size * size).view(size, size)


def similarity_blocks(
    image_features: Tensor,  # [N, d], unit length
    class_features: Tensor,  # [C, d], unit length
    labels: Tensor,  # int64 [N]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield similarities [n, C] and labels [n] of successive images, after classify's checks."""
    _check_features(image_features, class_features)
    check_labels(labels, "labels", image_features, "image_features")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(class_features):
        raise ValueError(
            f"labels must be in 0 .. {len(class_features) - 1}, the rows of class_features, got "
            f"{int(labels.min())} .. {int(labels.max())}"
        )
    start = 0
    for similarity in _similarities(image_features, class_features):
        yield similarity, labels[start : start + len(similarity)]
        start += len(similarity)


def _similarities(image_features: Tensor, class_features: Tensor) -> Iterator[Tensor]:
    """Yield the dot products of successive images with all classes, [n, C].

    A matrix product may round equal columns differently if they lie in blocks of another width;
    each distinct column is computed once, so that equal classes tie.
    """
    distinct, index = class_features.unique(dim=0, return_inverse=True)
    for part in image_features.split(max(1, BLOCK // len(class_features))):
        yield (part @ distinct.T)[:, index]


def _check_features(image_features: Tensor, class_features: Tensor) -> None:
    if (
        image_features.ndim != 2
        or not len(class_features)
        or image_features.shape[1:] != class_features.shape[1:]
    ):
        raise ValueError(
            "image_features and class_features must be [N, d] and [C, d] with one d and C >= 1, "
            f"got {[*image_features.shape]} and {[*class_features.shape]}"
        )
    if image_features.dtype != class_features.dtype:
        raise ValueError(
            "image_features and class_features must have one dtype, got "
            f"{image_features.dtype} and {class_features.dtype}; use .float() on both"
        )
    require_finite(image_features=image_features, class_features=class_features)


# --------------------------------------------------------------------------------------- plot


def plot_confusion(
    figure: Figure,
    counts: Tensor,  # int64 [C, C], rows true, columns predicted
    names: Sequence[str],  # [C]
) -> None:
    """Plot the confusion matrix of up to 20 classes, each row as shares of its class.

    Colours show the confusions; the shares of right predictions are numbers on the diagonal. With
    more classes: the 20 most frequent confusions as bars. To see all of many classes, add up the
    counts by superclass first, see `confusion_counts`.
    Raises ValueError unless counts is [C, C] for C names.
    """
    if counts.shape != (len(names), len(names)):
        raise ValueError(
            f"counts must be [C, C] for {len(names)} names, got {[*counts.shape]}; use "
            "confusion_counts"
        )
    figure.set_layout_engine("constrained")
    if len(names) <= LARGEST_MATRIX:
        _plot_matrix(figure, counts, names)
    else:
        _plot_pairs(figure, counts, names)


def _plot_matrix(figure: Figure, counts: Tensor, names: Sequence[str]) -> None:
    axes = figure.subplots()
    images = counts.sum(1)
    shares = 100 * counts / images.clamp(min=1)[:, None]  # a class without images: zeros
    wrong = shares.clone().fill_diagonal_(0)  # the right ones would outshine all others
    largest = wrong.max().item() or 1.0
    matrix = axes.imshow(wrong.numpy(), vmin=0, vmax=largest, cmap="Blues", aspect="auto")
    figure.colorbar(matrix, ax=axes, label="wrong predictions (% of the true class)")
    for place in images.nonzero().flatten().tolist():
        right = f"{shares[place, place].item():.0f}%"
        axes.text(place, place, right, ha="center", va="center", fontsize=6)
    ticks = range(len(names))
    labels = [shorten(name) for name in names]
    axes.set_xticks(ticks, labels, rotation=90, fontsize=7)
    axes.set_yticks(ticks, labels, fontsize=7)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")


def _plot_pairs(figure: Figure, counts: Tensor, names: Sequence[str]) -> None:
    axes = figure.subplots()
    wrong = counts.clone().fill_diagonal_(0).flatten()
    order = wrong.argsort(descending=True, stable=True)[:CONFUSED_PAIRS]
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
    axes.set_xlabel("images (true class → predicted class)")


# --------------------------------------------------------------------------------------- task


def run(embeddings: Embeddings, options: TaskOptions) -> TaskResult | None:
    """Score labels against class_features.

    The values are acc1, acc3, acc5, acc10 and mean_per_class_recall; with synonym_features
    acc1_all_names, and with images of several domains acc1/<domain>.
    """
    found = embeddings.classification()
    if found is None:
        return None
    images, _, labels = found
    classified = classify(*found)
    values = classified.metrics(KS)
    metrics = [Metric(f"acc{k}", f"top-{k}", Unit.SHARE, headline=k in (1, 5)) for k in KS]
    metrics.append(Metric("mean_per_class_recall", "per-class recall", Unit.SHARE))
    if embeddings.synonym_features is not None:
        by_all_names = classify(images, embeddings.synonym_features, labels)
        values["acc1_all_names"] = by_all_names.metrics((1,))["acc1"]
        metrics.append(Metric("acc1_all_names", "top-1, all names", Unit.SHARE))
    if embeddings.domains is not None and len(embeddings.domains.unique()) > 1:
        for index in embeddings.domains.unique().tolist():
            domain = embeddings.domain_names[index]
            own = classified.subset(embeddings.domains == index)
            values[f"acc1/{domain}"] = own.metrics((1,))["acc1"]
            metrics.append(Metric(f"acc1/{domain}", f"top-1, {domain}", Unit.SHARE))
    return TaskResult(
        embeddings.name,
        TASK,
        values,
        tuple(metrics),
        "Zero-shot classification",
        "Each image is assigned to the class whose text is nearest. Top-k is the share of images "
        "whose true class is among the k nearest; it is 100% if there are no more than k classes. "
        "Per-class recall weights all classes equally. A tie counts against the model.",
        (_class_table(classified, embeddings.classes),) if options.details else (),
        (_confusion_plot(classified, embeddings),) if options.details else (),
    )


def _class_table(classified: Classified, names: Sequence[str]) -> Table:
    results = [result for result in per_class(classified) if result.count]
    results.sort(key=lambda result: -(result.acc1 or 0))  # stable: equal ones by label
    return Table(
        "Classes, best first",
        ("class", "images", "top-1 (%)", "top-5 (%)", "most confused with", "confused images"),
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
        f"Guessing one of {classified.num_classes:,} classes is right in "
        f"{100 / classified.num_classes:.3g}% of the cases.",
    )


def _confusion_plot(classified: Classified, embeddings: Embeddings) -> Plot:
    names, what = embeddings.classes, "class"
    levels = embeddings.levels.values()
    coarsest = min(levels, key=lambda level: len(level.names), default=None)
    superclasses = coarsest if len(names) > LARGEST_MATRIX else None
    if superclasses is not None:
        names, what = superclasses.names, "superclass"
    many = len(names) > LARGEST_MATRIX
    caption = (
        f"The most frequent confusions: the true {what} and the predicted one."
        if many
        else f"Rows: the true {what}; columns: the predicted one. Colours are the wrong "
        "predictions, in percent of the row's images; the diagonal shows the share of right ones."
    )
    counts = confusion_counts(classified, superclasses)
    draw = partial(plot_confusion, counts=counts, names=names)
    return Plot("confusion", caption, draw, (6.4, 4.8) if many else (6.4, 5.4))
