"""Zero-shot classification: each image is assigned to the class with the nearest text.

Source: Radford et al. 2021, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..._plotting import BLUE, shorten
from ..embeddings import Embeddings
from .base import (
    Gallery,
    Item,
    Metric,
    Plot,
    Table,
    TaskOptions,
    TaskResult,
    Unit,
    choose_rows,
    nearest,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASK = "zeroshot_classification"

BLOCK = 2**22  # similarities held at a time: bounds memory, does not change any result
KS = (1, 3, 5, 10)
LABELS = {f"acc{k}": f"top-{k}" for k in KS} | {"mean_per_class_recall": "per-class recall"}
LARGEST_MATRIX = 20  # classes: with more, names beside a confusion matrix are not readable
EXAMPLES = 12  # images in the gallery
CONFUSED_PAIRS = 20  # bars in the plot that replaces a larger matrix

Confusion = tuple[int, int, int]  # true class, predicted class, number of images


# ------------------------------------------------------------------------------------ metrics


def class_embeddings(
    embed: Callable[[list[str]], Tensor],
    names: Sequence[str] | Sequence[Sequence[str]],
    templates: Sequence[str] = ("{}",),
) -> Tensor:
    """Return one unit-length text embedding per class, [C, d].

    embed: texts -> unit-length embeddings [n, d].
    names: one name, or several synonyms, per class. templates: prompts with "{}" for the name.
    The embeddings of all prompts of a class are averaged and the mean is normalized. Equal prompts
    are embedded once, so that classes with the same name tie to the last bit.

    Raises ValueError for no class, or a class without a prompt.
    """
    if isinstance(names, str) or isinstance(templates, str):
        raise ValueError(
            "names and templates must be lists of texts, got "
            f"{names if isinstance(names, str) else templates!r}; put it into a list"
        )
    if not names:
        raise ValueError("names must have at least one class, got none")
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


def similarity_blocks(
    image_features: Tensor,  # [N, d], unit length
    class_features: Tensor,  # [C, d], unit length
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the dot products of successive images with all classes, [n, C], after their rows.

    A matrix product may round equal columns differently if they lie in blocks of another width, so
    each distinct column is computed once: equal classes tie.
    """
    distinct, index = class_features.unique(dim=0, return_inverse=True)
    step = max(1, BLOCK // len(class_features))
    for start in range(0, len(image_features), step):
        rows = slice(start, start + step)
        yield rows, (image_features[rows] @ distinct.T)[:, index]


@dataclass(frozen=True)
class Classified:
    """Rank and prediction of every image.

    labels: int64 [N], the true classes.
    ranks: int64 [N], how many other classes are at least as near as the true one. rank < k is a hit
        at k, so a tie counts against the model: towers that map everything to one point score 0
        rather than 1. Accuracies and recalls follow from the ranks.
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
        """Select some of the images, for example those of one domain."""
        return Classified(
            self.labels[rows], self.ranks[rows], self.predictions[rows], self.num_classes
        )

    def accuracy(self, k: int = 1) -> float:
        """Return the share of images whose true class is among the k nearest."""
        return (self.ranks < k).double().mean().item()

    def metrics(self, ks: Sequence[int] = KS) -> dict[str, float]:
        """Return acc<k> for each k, and mean_per_class_recall over the classes with images."""
        counts, hits = self.counts(), self.counts(1)
        present = counts > 0
        recalls = hits[present].double() / counts[present]
        values = {f"acc{k}": self.accuracy(k) for k in ks}
        return values | {"mean_per_class_recall": recalls.mean().item()}

    def counts(self, k: int | None = None) -> Tensor:
        """Count the images of each class, int64 [C]; with k, only the hits at k."""
        labels = self.labels if k is None else self.labels[self.ranks < k]
        return torch.bincount(labels, minlength=self.num_classes)

    def confusions(self) -> list[Confusion]:
        """Count the wrong predictions by pair of classes, the most frequent first.

        An image whose true class ties with a later one is neither a hit nor a confusion.
        """
        wrong = self.predictions != self.labels
        pairs = torch.stack([self.labels[wrong], self.predictions[wrong]])
        pairs, counts = pairs.unique(dim=1, return_counts=True)
        order = counts.argsort(descending=True, stable=True)
        return list(zip(*pairs[:, order].tolist(), counts[order].tolist(), strict=True))


def classify(
    image_features: Tensor,  # [N, d], unit length
    class_features: Tensor,  # [C, d], unit length
    labels: Tensor,  # int64 [N]
) -> Classified:
    """Compare every image with every class once, in blocks, without an N x C matrix."""
    ranks, predictions = [], []
    for rows, similarity in similarity_blocks(image_features, class_features):
        target = similarity.gather(1, labels[rows, None])
        ranks.append((similarity >= target).sum(1) - 1)  # the true class itself is among them
        predictions.append(similarity.argmax(1))
    return Classified(labels, torch.cat(ranks), torch.cat(predictions), len(class_features))


# ------------------------------------------------------------------------- table and plots


def class_table(classified: Classified, names: Sequence[str]) -> Table:
    """Tabulate the classes with images, the most accurate first."""
    worst: dict[int, tuple[str, int]] = {}
    for true, predicted, count in classified.confusions():
        worst.setdefault(true, (names[predicted], count))
    counts = torch.stack([classified.counts(), classified.counts(1), classified.counts(5)])
    rows: list[Any] = [
        (names[i], images, 100 * (hits1 / images), 100 * (hits5 / images), *worst.get(i, ("", 0)))
        for i, (images, hits1, hits5) in enumerate(counts.T.tolist())
        if images
    ]
    rows.sort(key=lambda row: -row[2])  # stable: equal ones by label
    return Table(
        "Classes, best first",
        ("class", "images", "top-1 (%)", "top-5 (%)", "most confused with", "confused images"),
        tuple(rows),
        f"Guessing one of {classified.num_classes:,} classes is right in "
        f"{100 / classified.num_classes:.3g}% of the cases.",
    )


def confusion_plot(classified: Classified, embeddings: Embeddings) -> Plot:
    """Plot the confusions of up to 20 classes as a matrix, else the most frequent ones as bars.

    Confusions of more than 20 classes are added up by the superclasses of the coarsest level, if
    there is one.
    """
    names, kind = embeddings.classes, "class"
    levels = embeddings.levels.values()
    if len(names) > LARGEST_MATRIX and levels:
        coarsest = min(levels, key=lambda level: len(level.names))
        names, kind = coarsest.names, "superclass"
        labels, predictions = (
            coarsest.of_class[each] for each in (classified.labels, classified.predictions)
        )
        classified = Classified(labels, classified.ranks, predictions, len(names))
    if len(names) > LARGEST_MATRIX:
        caption = f"The most frequent confusions: the true {kind} and the predicted one."
        draw = partial(plot_confused_pairs, confusions=classified.confusions(), names=names)
        return Plot("confusion", caption, draw, (6.4, 4.8))
    caption = (
        f"Rows: the true {kind}; columns: the predicted one. Colours are the wrong predictions, "
        "in percent of the row's images; the diagonal shows the share of right ones."
    )
    draw = partial(plot_confusion_matrix, classified=classified, names=names)
    return Plot("confusion", caption, draw, (6.4, 5.4))


def plot_confusion_matrix(figure: Figure, classified: Classified, names: Sequence[str]) -> None:
    """Plot wrong predictions as colours, and the shares of right ones as numbers."""
    axes = figure.subplots()
    images, size = classified.counts(), classified.num_classes
    cells = classified.labels * size + classified.predictions
    counts = torch.bincount(cells, minlength=size**2).view(size, size)
    shares = 100 * counts / images.clamp(min=1)[:, None]  # a class without images: zeros
    wrong = shares.clone().fill_diagonal_(0)  # right ones would dominate the colours
    largest = wrong.max().item() or 1.0
    matrix = axes.imshow(wrong.numpy(), vmin=0, vmax=largest, cmap="Blues", aspect="auto")
    figure.colorbar(matrix, ax=axes, label="wrong predictions (% of the true class)")
    for place in images.nonzero().flatten().tolist():
        right = f"{shares[place, place].item():.0f}%"
        axes.text(place, place, right, ha="center", va="center", fontsize=6)
    labels = [shorten(name) for name in names]
    axes.set_xticks(range(size), labels, rotation=90, fontsize=7)
    axes.set_yticks(range(size), labels, fontsize=7)
    axes.set(xlabel="predicted class", ylabel="true class")


def plot_confused_pairs(
    figure: Figure, confusions: Sequence[Confusion], names: Sequence[str]
) -> None:
    """Plot the number of images of the 20 most frequent confusions."""
    axes = figure.subplots()
    shown = confusions[:CONFUSED_PAIRS]
    if not shown:
        axes.text(0.5, 0.5, "no confusions", ha="center", va="center")
        axes.set_axis_off()
        return
    labels = [f"{shorten(names[true])} → {shorten(names[wrong])}" for true, wrong, _ in shown]
    axes.barh(range(len(shown)), [count for *_, count in shown], color=BLUE)
    axes.set_yticks(range(len(shown)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("images (true class → predicted class)")


def galleries(embeddings: Embeddings, seed: int) -> tuple[Gallery, ...]:
    """Return images with the names of their nearest classes; none if no image can be loaded."""
    found, load = embeddings.classification(), embeddings.load_image
    if found is None or load is None:
        return ()
    images, classes, labels = found

    def name(label: int) -> Item:
        return Item(embeddings.classes[label])

    examples = tuple(
        nearest(
            Item(embeddings.classes[int(labels[row])], partial(load, row)),
            images[row] @ classes.T,
            name,
            int(labels[row]).__eq__,
        )
        for row in choose_rows(len(images), EXAMPLES, seed).tolist()
    )
    return (Gallery("Images and their nearest classes", examples),)


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
    measured = {
        Metric(key, LABELS[key], Unit.SHARE, headline=key in ("acc1", "acc5")): value
        for key, value in classified.metrics().items()
    }
    if embeddings.synonym_features is not None:
        by_all_names = classify(images, embeddings.synonym_features, labels)
        measured[Metric("acc1_all_names", "top-1, all names", Unit.SHARE)] = by_all_names.accuracy()
    if embeddings.domains is not None and len(embeddings.domains.unique()) > 1:
        for index in embeddings.domains.unique().tolist():
            domain = embeddings.domain_names[index]
            own = classified.subset(embeddings.domains == index)
            measured[Metric(f"acc1/{domain}", f"top-1, {domain}", Unit.SHARE)] = own.accuracy()
    return TaskResult(
        embeddings.name,
        TASK,
        measured,
        "Zero-shot classification",
        "Each image is assigned to the class whose text is nearest. Top-k is the share of images "
        "whose true class is among the k nearest; it is 100% if there are no more than k classes. "
        "Per-class recall weights all classes equally. A tie counts against the model.",
        (class_table(classified, embeddings.classes),),
        (confusion_plot(classified, embeddings),),
        galleries=galleries(embeddings, options.seed),
    )
