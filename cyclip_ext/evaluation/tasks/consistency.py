"""Agreement of image space and text space: the consistency score of Goel et al. 2022."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...functional import similarity_top_k
from ..embeddings import Embeddings
from .base import Metric, TaskOptions, TaskResult, Unit
from .zero_shot import similarity_blocks

TASK = "consistency"

KS = (1, 3, 5, 10)
QUERIES = 4096  # images per search: bounds memory without the native backend
VOTES = 2**22  # comparisons of neighbours held at a time


def knn_predictions(
    image_features: Tensor,  # [N, d]
    train_features: Tensor,  # [T, d]
    train_labels: Tensor,  # int64 [T]
    ks: Sequence[int] = KS,
) -> dict[int, Tensor]:
    """Return the most frequent label among the k nearest training images, int64 [N], for each k.

    Nearness is the cosine. Between equally frequent labels the nearest image decides; of equally
    near images the first comes first. One search serves every k, without an N x T matrix.

    Raises ValueError for a k outside of 1 .. T.
    """
    for k in ks:
        if not 1 <= k <= len(train_features):
            raise ValueError(f"k must be in 1 .. {len(train_features)} (training images), got {k}")
    nearest = [
        train_labels[similarity_top_k(rows, train_features, max(ks))[1]]
        for rows in image_features.split(QUERIES)
    ]
    neighbours = torch.cat(nearest)  # labels [N, max(ks)], nearest first
    return {k: _vote(neighbours[:, :k]) for k in ks}


def _vote(neighbours: Tensor) -> Tensor:
    """Return the most frequent label of each row [N, k], nearest first: int64 [N]."""
    winners = []
    for rows in neighbours.split(max(1, VOTES // neighbours.shape[1] ** 2)):
        votes = (rows[:, :, None] == rows[:, None, :]).sum(2)
        first_of_most = votes.argmax(1, keepdim=True)  # argmax: the first of equals, the nearest
        winners.append(rows.gather(1, first_of_most).squeeze(1))
    return torch.cat(winners)


def consistency_metrics(
    image_features: Tensor,  # [N, d], unit length
    class_features: Tensor,  # [C, d], unit length
    train_features: Tensor,  # [T, d], unit length
    train_labels: Tensor,  # int64 [T], index into class_features
    ks: Sequence[int] = KS,
) -> dict[str, float]:
    """Return consistency@k: the share of images whose zero-shot class is that of k neighbours.

    Whether either class is right does not matter. The first of tied classes is the nearest.
    """
    blocks = similarity_blocks(image_features, class_features)
    by_text = torch.cat([similarity.argmax(1) for _, similarity in blocks])
    by_image = knn_predictions(image_features, train_features, train_labels, ks)
    return {
        f"consistency@{k}": (by_text == predictions).double().mean().item()
        for k, predictions in by_image.items()
    }


def run(embeddings: Embeddings, options: TaskOptions) -> TaskResult | None:
    """Measure consistency@k for k = 1, 3, 5, 10, up to the number of training images."""
    found, train = embeddings.classification(), options.train
    if found is None or train is None:
        return None
    assert train.labels is not None  # run_tasks checks it
    images, classes, _ = found
    ks = [k for k in KS if k <= train.used]
    values = consistency_metrics(images, classes, train.image_features, train.labels, ks)
    return TaskResult(
        embeddings.name,
        TASK,
        {
            Metric(key, f"consistency, k\u00a0=\u00a0{k}", Unit.SHARE, headline=k == 1): value
            for k, (key, value) in zip(ks, values.items(), strict=True)
        },
        "Consistency of image and text space",
        "How often the class of the nearest text is also the class of the k nearest labelled "
        "training images. Whether either is right does not matter: the score measures whether the "
        "two spaces agree (CyCLIP).",
        data=(train,),
    )
