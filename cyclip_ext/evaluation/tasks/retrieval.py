"""Retrieval in both directions. Images may have several captions, and captions several images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...functional import retrieval_ranks
from ..embeddings import Embeddings, require_finite
from .base import Metric, TaskOptions, TaskResult, Unit

TASK = "zeroshot_retrieval"

KS = (1, 5, 10)
DIRECTIONS = {"image_retrieval": "text to image", "text_retrieval": "image to text"}


@dataclass(frozen=True)
class Retrieved:
    """Ranks of all queries of both directions that have a match.

    text_to_image: int64 [n], per caption, how many foreign images are at least as near as the
    nearest of its own. image_to_text: int64 [m], per image, the same for captions. rank < k is a
    hit at k; a tie with a foreign candidate counts against the model.
    """

    text_to_image: Tensor
    image_to_text: Tensor

    def recalls(self, ks: Sequence[int] = KS) -> dict[str, float]:
        """Return image_retrieval_recall@k (text to image) and text_retrieval_recall@k.

        A recall is the share of queries with at least one match among the k nearest candidates.
        """
        metrics = {}
        for name, ranks in self._directions():
            for k in ks:
                if k < 1:
                    raise ValueError(f"ks must be 1 or more, got {k}")
                metrics[f"{name}_recall@{k}"] = (ranks < k).double().mean().item()
        return metrics

    def median_ranks(self) -> dict[str, float]:
        """Return image_retrieval_median_rank and text_retrieval_median_rank; the best is 1.

        The median of an even number of queries is the mean of the two in the middle.
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
    """Compare all images with all captions once.

    Memory is O((N + M) d) with the native backend, see cyclip_ext.functional.retrieval_ranks, and
    an N x M matrix without it.

    A text matches an image if their labels are equal. All captions are queries and candidates;
    only queries without a match are not scored.

    Raises ValueError if no text matches any image, and for features that are not finite.
    """
    require_finite(image_features=image_features, text_features=text_features)
    text_rank_of_image, image_rank_of_text = retrieval_ranks(
        image_features, text_features, image_labels, text_labels
    )
    text_to_image = image_rank_of_text[image_rank_of_text >= 0]
    image_to_text = text_rank_of_image[text_rank_of_image >= 0]
    if not len(text_to_image):  # then no image has a text either
        raise ValueError("no text shares a label with any image: nothing to retrieve")
    return Retrieved(text_to_image, image_to_text)


def retrieval_metrics(
    image_features: Tensor,  # [N, d], unit length
    text_features: Tensor,  # [M, d], unit length
    image_labels: Tensor,  # int64 [N]
    text_labels: Tensor,  # int64 [M]
    ks: Sequence[int] = KS,
) -> dict[str, float]:
    """Return the recalls of both directions: `retrieve` and `Retrieved.recalls`."""
    return retrieve(image_features, text_features, image_labels, text_labels).recalls(ks)


def _median(ranks: Tensor) -> float:
    ordered = ranks.sort().values
    middle = len(ordered) // 2
    return (ordered[middle] + ordered[-middle - 1]).item() / 2


def run(embeddings: Embeddings, options: TaskOptions) -> TaskResult | None:
    """Measure recalls at 1, 5 and 10 and median ranks in both directions."""
    captions = embeddings.captions()
    if captions is None:
        return None
    found = retrieve(*captions)
    metrics = [
        Metric(f"{name}_recall@{k}", f"{label} R@{k}", Unit.SHARE, headline=k == 5)
        for name, label in DIRECTIONS.items()
        for k in KS
    ] + [
        Metric(f"{name}_median_rank", f"{label} median rank") for name, label in DIRECTIONS.items()
    ]
    return TaskResult(
        embeddings.name,
        TASK,
        found.recalls(KS) | found.median_ranks(),
        tuple(metrics),
        "Retrieval",
        "Text to image: the caption is the query, and R@k is how often one of its own images is "
        "among the k nearest. Image to text is the reverse. The median rank counts from 1, the "
        "best. A tie counts against the model.",
    )
