"""Retrieval in both directions on one set."""

from __future__ import annotations

from torch import Tensor

from ..outcome import Outcome
from ..retrieval import retrieve

TASK = "zeroshot_retrieval"

READING = (
    "Text to image: the caption is the query, R@k says how often a picture of its own is among the "
    "k nearest; image to text the other way round. The median rank counts from 1, the best. A tie "
    "counts against the model."
)


def retrieval(
    dataset: str,
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [M, d]
    image_labels: Tensor,  # int64 [N]
    text_labels: Tensor,  # int64 [M]
) -> Outcome:
    """Recalls at 1, 5 and 10 and median ranks; a text is a picture's own where labels are equal."""
    found = retrieve(image_features, text_features, image_labels, text_labels)
    metrics = found.recalls() | found.median_ranks()
    return Outcome(dataset, TASK, metrics, "Retrieval", READING)
