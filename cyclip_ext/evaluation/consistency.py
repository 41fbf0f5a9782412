"""Do image space and text space agree? Goel et al. 2022, section 4.2 (consistency score)."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import require_finite
from .zero_shot import zero_shot_predict

CHUNK = 1024


def knn_predict(
    image_features: Tensor,  # [N, d], unit length
    train_features: Tensor,  # [T, d], unit length
    train_labels: Tensor,  # int64 [T]
    k: int = 1,
) -> Tensor:
    """Most frequent label among the k nearest training pictures, int64 [N].

    Between equally frequent labels the nearest picture decides.
    """
    if not 1 <= k <= len(train_features):
        raise ValueError(f"k must be in 1 .. {len(train_features)} (training pictures), got {k}")
    require_finite(image_features=image_features, train_features=train_features)
    predictions = []
    for rows in image_features.split(CHUNK):
        neighbours = train_labels[(rows @ train_features.T).topk(k).indices]  # nearest first
        votes = (neighbours[:, :, None] == neighbours[:, None, :]).sum(2)
        first_of_most = votes.argmax(1, keepdim=True)  # argmax: the first of equals, the nearest
        predictions.append(neighbours.gather(1, first_of_most).squeeze(1))
    return torch.cat(predictions)


def text_image_consistency(
    image_features: Tensor,  # [N, d], unit length
    class_features: Tensor,  # [C, d], unit length
    train_features: Tensor,  # [T, d], unit length
    train_labels: Tensor,  # int64 [T], index into class_features
    k: int = 1,
) -> float:
    """Share of pictures whose zero-shot class equals the class of their k nearest neighbours.

    It does not ask whether either is right.
    """
    by_text = zero_shot_predict(image_features, class_features)
    by_image = knn_predict(image_features, train_features, train_labels, k)
    return (by_text == by_image).double().mean().item()
