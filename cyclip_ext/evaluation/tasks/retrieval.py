"""Retrieval in both directions; images may have several captions, and captions several images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...functional import retrieval_ranks
from ..embeddings import Embeddings
from .base import Gallery, Item, Metric, TaskOptions, TaskResult, Unit, choose_rows, nearest

TASK = "zeroshot_retrieval"

KS = (1, 5, 10)
EXAMPLES = 6  # in the gallery of each direction


@dataclass(frozen=True)
class Retrieved:
    """Ranks of the queries of one direction that have a match, int64 [n].

    The rank is the number of foreign candidates that are at least as near as the nearest match.
    rank < k is a hit at k; a tie with a foreign candidate counts against the model.
    """

    ranks: Tensor

    def recalls(self, ks: Sequence[int] = KS) -> dict[int, float]:
        """Return the share of queries with a match among the k nearest candidates, for each k."""
        return {k: (self.ranks < k).double().mean().item() for k in ks}

    def median_rank(self) -> float:
        """Return the median rank, counted from 1."""
        return 1 + float(np.median(self.ranks.numpy()))


def retrieve(
    image_features: Tensor,  # [N, d], unit length
    text_features: Tensor,  # [M, d], unit length
    image_labels: Tensor,  # int64 [N]
    text_labels: Tensor,  # int64 [M]
) -> dict[str, Retrieved]:
    """Compare all images with all captions once: "image_retrieval" is text to image.

    A text matches an image if their labels are equal. All captions are queries and candidates;
    only queries without a match are not scored. Memory is O((N + M) d) with the native backend, see
    cyclip_ext.functional.retrieval_ranks, and an N x M matrix without it.

    Raises ValueError if no text matches any image.
    """
    of_images, of_texts = retrieval_ranks(image_features, text_features, image_labels, text_labels)
    if not (of_texts >= 0).any():  # then no image has a text either
        raise ValueError("no text shares a label with any image; check the labels of both")
    return {
        "image_retrieval": Retrieved(of_texts[of_texts >= 0]),
        "text_retrieval": Retrieved(of_images[of_images >= 0]),
    }


def galleries(embeddings: Embeddings, seed: int) -> tuple[Gallery, ...]:
    """Return examples of both directions, of queries that have a match.

    There are none unless the images can be loaded and the texts are known.
    """
    found, texts, load = embeddings.captions(), embeddings.texts, embeddings.load_image
    if found is None or texts is None or load is None:
        return ()
    images, captions, image_labels, text_labels = found

    def image(row: int) -> Item:
        own = (text_labels == image_labels[row]).nonzero().flatten().tolist()
        return Item(texts[own[0]] if own else "", partial(load, row))

    def text(row: int) -> Item:
        return Item(texts[row])

    def draw(title: str, query: _Side, candidate: _Side) -> Gallery:
        matched = torch.isin(query.labels, candidate.labels).nonzero().flatten()
        rows = matched[choose_rows(len(matched), EXAMPLES, seed)].tolist()
        return Gallery(
            title,
            tuple(
                nearest(
                    query.item(row),
                    query.features[row] @ candidate.features.T,
                    candidate.item,
                    (candidate.labels == query.labels[row]).tolist().__getitem__,
                )
                for row in rows
            ),
        )

    sides = (_Side(images, image_labels, image), _Side(captions, text_labels, text))
    return (
        draw("Images and their nearest captions", *sides),
        draw("Captions and their nearest images", *reversed(sides)),
    )


@dataclass(frozen=True)
class _Side:
    """Images or captions with their features and labels."""

    features: Tensor  # [n, d]
    labels: Tensor  # int64 [n]
    item: Callable[[int], Item]


def run(embeddings: Embeddings, options: TaskOptions) -> TaskResult | None:
    """Measure recalls at 1, 5 and 10 and median ranks in both directions."""
    captions = embeddings.captions()
    if captions is None:
        return None
    found = retrieve(*captions)
    labels = {"image_retrieval": "text to image", "text_retrieval": "image to text"}
    recalls = {
        Metric(f"{name}_recall@{k}", f"{labels[name]} R@{k}", Unit.SHARE, headline=k == 5): value
        for name, retrieved in found.items()
        for k, value in retrieved.recalls().items()
    }
    medians = {
        Metric(f"{name}_median_rank", f"{labels[name]} median rank"): retrieved.median_rank()
        for name, retrieved in found.items()
    }
    return TaskResult(
        embeddings.name,
        TASK,
        recalls | medians,
        "Retrieval",
        "Text to image: the caption is the query, and R@k is how often one of its own images is "
        "among the k nearest. Image to text is the reverse. The median rank counts from 1, the "
        "best. A tie counts against the model.",
        galleries=galleries(embeddings, options.seed),
    )
