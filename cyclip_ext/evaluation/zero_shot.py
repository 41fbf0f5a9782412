"""Zero-shot classification: each picture goes to the class whose text is nearest.

Source: Radford et al. 2021, section 3.1; coarse classes: Goel et al. 2022, section 4.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .checks import require_finite

CHUNK = 4096  # pictures per similarity block: bounds memory, changes no result

NAME_ONLY = ("{}",)


def class_embeddings(
    embed: Callable[[list[str]], Tensor],
    names: Sequence[str] | Sequence[Sequence[str]],
    templates: Sequence[str] = NAME_ONLY,
) -> Tensor:
    """One unit-length text embedding per class, [C, d].

    embed: texts -> unit-length embeddings [n, d] (`embed_texts` with its model bound).
    names: one name, or several synonyms, per class. templates: prompts with "{}" for the name.
    The embeddings of all prompts of a class are averaged and the mean is normalized.
    """
    if not names:
        raise ValueError("names is empty: zero-shot classification needs at least one class")
    prompts, owners = [], []
    for index, entry in enumerate(names):
        for name in (entry,) if isinstance(entry, str) else entry:
            for template in templates:
                prompts.append(template.format(name))
                owners.append(index)
    rows = embed(prompts)
    sums = torch.zeros(len(names), rows.shape[1], dtype=rows.dtype)
    return normalize(sums.index_add_(0, torch.tensor(owners), rows), dim=-1)


def zero_shot_predict(
    image_features: Tensor,  # [N, d], unit length
    class_features: Tensor,  # [C, d], unit length
) -> Tensor:
    """Index of the nearest class of each picture, int64 [N]; of tied classes the first."""
    _check(image_features, class_features)
    return torch.cat([(rows @ class_features.T).argmax(1) for rows in image_features.split(CHUNK)])


def classification_metrics(
    image_features: Tensor,  # [N, d], unit length
    class_features: Tensor,  # [C, d], unit length
    labels: Tensor,  # int64 [N]
    ks: Sequence[int] = (1, 5),
) -> dict[str, float]:
    """acc<k> for each k, and mean_per_class_recall over the classes that have pictures.

    A tie counts against the model: the true class must beat all but k - 1 of the others, so towers
    that map everything to one point score 0 rather than 1. With k >= C acc<k> is 1.
    """
    _check(image_features, class_features, labels)
    ranks = []
    for rows, truth in zip(image_features.split(CHUNK), labels.split(CHUNK), strict=True):
        similarity = rows @ class_features.T
        target = similarity.gather(1, truth[:, None])
        ranks.append((similarity >= target).sum(1) - 1)  # the true class itself is among them
    rank = torch.cat(ranks)
    metrics = {f"acc{k}": (rank < k).double().mean().item() for k in ks}
    hits = torch.zeros(len(class_features), dtype=torch.float64)
    hits.index_add_(0, labels, (rank < 1).double())
    counts = torch.bincount(labels, minlength=len(class_features))
    present = counts > 0
    metrics["mean_per_class_recall"] = (hits[present] / counts[present]).mean().item()
    return metrics


def coarse_accuracy(
    image_features: Tensor,  # [N, d], unit length
    class_features: Tensor,  # [C, d], unit length
    labels: Tensor,  # int64 [N], fine labels
    coarse_of_class: Tensor,  # int64 [C]
) -> float:
    """Share of pictures put into the right superclass.

    A superclass scores the maximum over its classes, so the best class decides; which of its
    classes that is does not matter. A tie with another superclass counts against the model.
    """
    _check(image_features, class_features, labels)
    hits = []
    for rows, truth in zip(image_features.split(CHUNK), labels.split(CHUNK), strict=True):
        similarity = rows @ class_features.T
        own = coarse_of_class[truth][:, None] == coarse_of_class[None, :]
        best_own = similarity.masked_fill(~own, -torch.inf).amax(1)
        best_other = similarity.masked_fill(own, -torch.inf).amax(1)
        hits.append(best_own > best_other)
    return torch.cat(hits).double().mean().item()


def _check(image_features: Tensor, class_features: Tensor, labels: Tensor | None = None) -> None:
    if image_features.ndim != 2 or image_features.shape[1:] != class_features.shape[1:]:
        raise ValueError(
            "image_features and class_features must be [N, d] and [C, d] with one d, got "
            f"{[*image_features.shape]} and {[*class_features.shape]}"
        )
    if labels is not None and len(labels) != len(image_features):
        raise ValueError(f"labels has {len(labels)} entries for {len(image_features)} pictures")
    require_finite(image_features=image_features, class_features=class_features)
