"""Retrieval in both directions; pictures may have several captions, captions several pictures."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..functional import retrieval_ranks
from .checks import require_finite


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
    text_rank_of_image, image_rank_of_text = retrieval_ranks(
        image_features, text_features, image_labels, text_labels
    )
    metrics = {}
    for name, ranks in (
        ("image_retrieval", image_rank_of_text),
        ("text_retrieval", text_rank_of_image),
    ):
        ranks = ranks[ranks >= 0]  # the others have nothing to find
        if not len(ranks):
            raise ValueError("no text shares a label with any picture: nothing to retrieve")
        for k in ks:
            metrics[f"{name}_recall@{k}"] = (ranks < k).double().mean().item()
    return metrics
