"""Retrieval in both directions; pictures may have several captions, captions several pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..checks import require_finite
from ..functional import retrieval_ranks


@dataclass(frozen=True)
class Retrieved:
    """Ranks of all queries of both directions that have something to find.

    text_to_image: int64 [n], per caption, how many foreign pictures are at least as near as the
    best of its own. image_to_text: int64 [m], per picture, the same of captions. rank < k is a hit
    at k; a tie with a foreign candidate counts against the model.
    """

    text_to_image: Tensor
    image_to_text: Tensor

    def recalls(self, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
        """image_retrieval_recall@k (text to image) and text_retrieval_recall@k (image to text).

        The share of queries with at least one of their own candidates among the k nearest.
        """
        metrics = {}
        for name, ranks in self._directions():
            for k in ks:
                if k < 1:
                    raise ValueError(f"ks must be 1 or more, got {k}")
                metrics[f"{name}_recall@{k}"] = (ranks < k).double().mean().item()
        return metrics

    def median_ranks(self) -> dict[str, float]:
        """image_retrieval_median_rank and text_retrieval_median_rank, counted from 1, the best.

        Positions, not shares. Of an even number of queries the mean of the two in the middle.
        """
        return {f"{name}_median_rank": 1 + _median(ranks) for name, ranks in self._directions()}

    def _directions(self) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
        return ("image_retrieval", self.text_to_image), ("text_retrieval", self.image_to_text)


def retrieve(
    image_features: Tensor,  # [N, d], unit length
    text_features: Tensor,  # [M, d], unit length
    image_labels: Tensor,  # int64 [N]
    text_labels: Tensor,  # int64 [M]
) -> Retrieved:
    """Compare all pictures with all captions once.

    Memory O((N + M) d) with the native backend, see cyclip_ext.functional.retrieval_ranks; where
    that is missing, an N x M matrix.

    A text belongs to a picture where their labels are equal. All captions are queries and
    candidates, none is skipped; queries without any candidate of their own are left out.

    Raises: ValueError where no text belongs to any picture, and for features that are not finite.
    """
    require_finite(image_features=image_features, text_features=text_features)
    text_rank_of_image, image_rank_of_text = retrieval_ranks(
        image_features, text_features, image_labels, text_labels
    )
    text_to_image = image_rank_of_text[image_rank_of_text >= 0]
    image_to_text = text_rank_of_image[text_rank_of_image >= 0]
    if not len(text_to_image):  # then no picture has a text either
        raise ValueError("no text shares a label with any picture: nothing to retrieve")
    return Retrieved(text_to_image, image_to_text)


def retrieval_metrics(
    image_features: Tensor,  # [N, d], unit length
    text_features: Tensor,  # [M, d], unit length
    image_labels: Tensor,  # int64 [N]
    text_labels: Tensor,  # int64 [M]
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """image_retrieval_recall@k and text_retrieval_recall@k: `retrieve` and `Retrieved.recalls`."""
    return retrieve(image_features, text_features, image_labels, text_labels).recalls(ks)


def _median(ranks: Tensor) -> float:
    ordered = ranks.sort().values
    middle = len(ordered) // 2
    return (ordered[middle] + ordered[-middle - 1]).item() / 2
