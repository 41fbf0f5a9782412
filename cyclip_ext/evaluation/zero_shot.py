"""Zero-shot classification: each picture goes to the class whose text is nearest.

Source: Radford et al. 2021, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..checks import require_finite

BLOCK = 2**22  # similarities held at a time: bounds memory, changes no result

NAME_ONLY = ("{}",)


def class_embeddings(
    embed: Callable[[list[str]], Tensor],
    names: Sequence[str] | Sequence[Sequence[str]],
    templates: Sequence[str] = NAME_ONLY,
) -> Tensor:
    """One unit-length text embedding per class, [C, d].

    embed: texts -> unit-length embeddings [n, d] (`embed_texts` with its model bound).
    names: one name, or several synonyms, per class. templates: prompts with "{}" for the name.
    The embeddings of all prompts of a class are averaged and the mean is normalized. Equal prompts
    are embedded once, so that classes of one name tie to the last bit.

    Raises: ValueError where there is no class, or one without a prompt.
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
    """Index of the nearest class of each picture, int64 [N]; of tied classes the first."""
    _check_features(image_features, class_features)
    return torch.cat([part.argmax(1) for part in _similarities(image_features, class_features)])


@dataclass(frozen=True)
class Classified:
    """What one pass over the similarities of pictures and classes keeps of every picture.

    labels: int64 [N], the true classes.
    ranks: int64 [N], how many other classes are at least as near as the true one. rank < k is a hit
        at k, so a tie counts against the model: towers that map everything to one point score 0
        rather than 1. acc<k>, recalls and the accuracies per class follow from these.
    predictions: int64 [N], the nearest class, of tied ones the first: here a tie may count for the
        model. Confusions, which need one predicted class, follow from these.
    num_classes: C.
    """

    labels: Tensor
    ranks: Tensor
    predictions: Tensor
    num_classes: int

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, rows: Tensor) -> Classified:  # bool [N], or int64 indices
        """The same of some of the pictures, of one domain for instance."""
        return Classified(
            self.labels[rows], self.ranks[rows], self.predictions[rows], self.num_classes
        )

    def metrics(self, ks: Sequence[int] = (1, 3, 5, 10)) -> dict[str, float]:
        """acc<k> for each k, and mean_per_class_recall over the classes that have pictures.

        With k >= C acc<k> is 1. Raises ValueError where there is no picture, and for a k below 1.
        """
        if not len(self):
            raise ValueError("no pictures to score: the set, or this part of it, is empty")
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
        """Pictures of each class, int64 [C]."""
        return torch.bincount(self.labels, minlength=self.num_classes)

    def hits(self, k: int) -> Tensor:
        """Pictures of each class whose true class is among the k nearest, int64 [C]."""
        return torch.bincount(self.labels[self.ranks < k], minlength=self.num_classes)


def classify(
    image_features: Tensor,  # [N, d], unit length
    class_features: Tensor,  # [C, d], unit length
    labels: Tensor,  # int64 [N]
) -> Classified:
    """Compare every picture with every class once, in blocks: no N x C matrix is held.

    Raises: ValueError for shapes that do not fit, labels that name no class, and features that are
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
    ks: Sequence[int] = (1, 3, 5, 10),
) -> dict[str, float]:
    """acc<k> for each k, and mean_per_class_recall: `classify` and `Classified.metrics`.

    A tie counts against the model: the true class must beat all but k - 1 of the others. With
    k >= C acc<k> is 1.
    """
    return classify(image_features, class_features, labels).metrics(ks)


def similarity_blocks(
    image_features: Tensor,  # [N, d], unit length
    class_features: Tensor,  # [C, d], unit length
    labels: Tensor,  # int64 [N]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Similarities [n, C] and labels [n] of successive pictures, after the checks of `classify`."""
    _check_features(image_features, class_features)
    if labels.dtype != torch.int64 or labels.shape != image_features.shape[:1]:
        raise ValueError(
            f"labels must be int64 [{len(image_features)}], one per row of image_features, got "
            f"{labels.dtype} {[*labels.shape]}"
        )
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
    """Dot products of successive pictures with all classes, [n, C].

    A matrix product may round equal columns differently, as they stand in blocks of another width;
    each distinct one is computed once, so that equal classes tie.
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
