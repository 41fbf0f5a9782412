"""Do image space and text space agree? The consistency score of Goel et al. 2022."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import require_finite
from ..functional import similarity_top_k
from .zero_shot import zero_shot_predict

QUERIES = 4096  # pictures per search: bounds memory where the native backend is missing
VOTES = 2**22  # comparisons of neighbours held at a time


def knn_predictions(
    image_features: Tensor,  # [N, d], unit length
    train_features: Tensor,  # [T, d], unit length
    train_labels: Tensor,  # int64 [T]
    ks: Sequence[int] = (1, 3, 5, 10),
) -> dict[int, Tensor]:
    """For each k the most frequent label among the k nearest training pictures, int64 [N].

    Between equally frequent labels the nearest picture decides; of equally near pictures the first
    comes first. One search serves every k; it never holds an N x T matrix.

    Raises: ValueError for a k outside of 1 .. T, for labels that do not match the training
    pictures, and for features that are not finite.
    """
    if not ks:
        raise ValueError("ks is empty: name at least one number of neighbours")
    for k in ks:
        if not 1 <= k <= len(train_features):
            raise ValueError(
                f"k must be in 1 .. {len(train_features)} (training pictures), got {k}"
            )
    if train_labels.dtype != torch.int64 or train_labels.shape != train_features.shape[:1]:
        raise ValueError(
            f"train_labels must be int64 [{len(train_features)}], one per row of train_features, "
            f"got {train_labels.dtype} {[*train_labels.shape]}"
        )
    require_finite(image_features=image_features, train_features=train_features)
    nearest = [
        train_labels[similarity_top_k(rows, train_features, max(ks))[1]]
        for rows in image_features.split(QUERIES)
    ]
    neighbours = torch.cat(nearest)  # labels [N, max(ks)], nearest first
    return {k: _vote(neighbours[:, :k]) for k in ks}


def knn_predict(
    image_features: Tensor,  # [N, d], unit length
    train_features: Tensor,  # [T, d], unit length
    train_labels: Tensor,  # int64 [T]
    k: int = 1,
) -> Tensor:
    """`knn_predictions` for one k, int64 [N]."""
    return knn_predictions(image_features, train_features, train_labels, (k,))[k]


def consistency_metrics(
    image_features: Tensor,  # [N, d], unit length
    class_features: Tensor,  # [C, d], unit length
    train_features: Tensor,  # [T, d], unit length
    train_labels: Tensor,  # int64 [T], index into class_features
    ks: Sequence[int] = (1, 3, 5, 10),
) -> dict[str, float]:
    """consistency@k: share of pictures whose zero-shot class is the class of their k neighbours.

    It does not ask whether either is right. Ties: of classes the first, see `zero_shot_predict`; of
    neighbours the nearest, see `knn_predictions`, whose errors these are, too. Source: Goel et al.
    2022, whose tables have k = 1, 3, 5, 10.
    """
    by_text = zero_shot_predict(image_features, class_features)
    if not len(by_text):
        raise ValueError("image_features is empty: there are no pictures to compare")
    by_image = knn_predictions(image_features, train_features, train_labels, ks)
    return {
        f"consistency@{k}": (by_text == predictions).double().mean().item()
        for k, predictions in by_image.items()
    }


def text_image_consistency(
    image_features: Tensor,  # [N, d], unit length
    class_features: Tensor,  # [C, d], unit length
    train_features: Tensor,  # [T, d], unit length
    train_labels: Tensor,  # int64 [T], index into class_features
    k: int = 1,
) -> float:
    """`consistency_metrics` for one k."""
    (share,) = consistency_metrics(
        image_features, class_features, train_features, train_labels, (k,)
    ).values()
    return share


def _vote(neighbours: Tensor) -> Tensor:
    """Most frequent label of each row [N, k], nearest first: int64 [N]."""
    winners = []
    for rows in neighbours.split(max(1, VOTES // neighbours.shape[1] ** 2)):
        votes = (rows[:, :, None] == rows[:, None, :]).sum(2)
        first_of_most = votes.argmax(1, keepdim=True)  # argmax: the first of equals, the nearest
        winners.append(rows.gather(1, first_of_most).squeeze(1))
    return torch.cat(winners)
