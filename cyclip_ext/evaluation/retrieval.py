"""Retrieval in both directions; pictures may have several captions, captions several pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import require_finite

CHUNK = 1024  # queries per similarity block: memory is CHUNK x candidates, never N x M


def retrieval_metrics(
    image_features: Tensor,  # [N, d], unit length
    text_features: Tensor,  # [M, d], unit length
    image_labels: Tensor,  # int64 [N]
    text_labels: Tensor,  # int64 [M]
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """image_retrieval_recall@k (text to image) and text_retrieval_recall@k (image to text).

    A text belongs to a picture where their labels are equal. A query counts as a hit at k where at
    least one of its own candidates is among the k nearest; queries without any are left out.
    All captions are queries and candidates, none is skipped. A tie with a foreign candidate counts
    against the model.
    """
    require_finite(image_features=image_features, text_features=text_features)
    directions = {
        "image_retrieval": (text_features, image_features, text_labels, image_labels),
        "text_retrieval": (image_features, text_features, image_labels, text_labels),
    }
    metrics = {}
    for name, arguments in directions.items():
        ranks = _ranks(*arguments)
        if not len(ranks):
            raise ValueError("no text shares a label with any picture: nothing to retrieve")
        for k in ks:
            metrics[f"{name}_recall@{k}"] = (ranks < k).double().mean().item()
    return metrics


def _ranks(
    queries: Tensor, candidates: Tensor, query_labels: Tensor, candidate_labels: Tensor
) -> Tensor:
    """For each query with a candidate of its own: how many foreign ones are at least as near."""
    ranks = []
    for rows, labels in zip(queries.split(CHUNK), query_labels.split(CHUNK), strict=True):
        similarity = rows @ candidates.T
        own = labels[:, None] == candidate_labels[None, :]
        best = similarity.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        foreign_nearer = ((similarity >= best) & ~own).sum(1)
        ranks.append(foreign_nearer[own.any(1)])
    return torch.cat(ranks)
