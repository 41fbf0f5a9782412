"""k-NN probe: the nearest training rows vote."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .result import (
    Probe,
    Rows,
    Scores,
    SweepPoint,
    best_value,
    check_rows,
    joined,
    number_of_classes,
    scored,
    sklearn,
    split_rows,
)

KS = (1, 3, 5, 10, 20)


def knn_probe(
    train_features: Tensor,  # [T, d]
    train_labels: Tensor,  # int64 [T]
    test_features: Tensor,  # [N, d]
    test_labels: Tensor,  # int64 [N]
    *,
    ks: Sequence[int] = KS,
    validation: Rows | None = None,
    validation_share: float = 0.1,
    seed: int = 0,
) -> Probe:
    """Majority among the k training rows of largest cosine (scikit-learn's neighbours).

    Of classes with equally many votes the one with the nearest row wins; classes without a vote
    tie, which counts against the model. k is chosen from ks on validation rows, of equally good
    ones the smallest; those beyond the training rows are left out. All rows, validation included,
    are searched in the end. validation, validation_share, seed: see linear_probe.

    Where every class has a single row k is the smallest of ks, and notes say so. Raises: as
    linear_probe, and ValueError where no k, or one below 1, is possible.
    """
    train, test = (train_features, train_labels), (test_features, test_labels)
    check_rows(train, test, validation)
    part, held_out = split_rows(train, validation, validation_share, seed)
    possible = sorted({k for k in ks if k <= len(part[1])})
    if not possible or possible[0] < 1:
        raise ValueError(f"ks must be in 1 .. {len(part[1])} (training rows), got {[*ks]}")
    classes = number_of_classes(part, held_out, test)
    accuracy: dict[float, float] = {}
    notes: tuple[str, ...] = ()
    chosen = possible[0]
    if len(held_out[1]):
        nearest = _neighbours(part, held_out[0], possible[-1])
        for k in possible:
            result = scored(held_out[1], classes, _votes(nearest[:, :k], classes))
            accuracy[k] = result.metrics((1,))["acc1"]
        chosen = int(best_value(accuracy))
    else:
        notes = (f"every class has a single training row: k was not chosen, it is {chosen}",)
    nearest = _neighbours(joined(part, held_out), test_features, chosen)
    result = scored(test_labels, classes, _votes(nearest, classes))
    return Probe(
        result.metrics((1, 5)),
        "k",
        chosen,
        tuple(SweepPoint(k, accuracy[k]) for k in sorted(accuracy)),
        result.predictions,
        notes,
    )


def _neighbours(train: Rows, queries: Tensor, k: int) -> Tensor:
    """Labels of the k nearest training rows of each query, nearest first, [n, k]."""
    search = sklearn().neighbors.NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute")
    search.fit(train[0].double().numpy())
    indices = search.kneighbors(queries.double().numpy(), return_distance=False)
    return train[1][torch.from_numpy(indices)]


def _votes(neighbours: Tensor, classes: int) -> Scores:
    """Number of votes, plus less than one by how near the nearest of them is."""
    k = neighbours.shape[1]

    def scores(rows: slice) -> Tensor:
        labels = neighbours[rows]
        votes = torch.zeros(len(labels), classes)
        votes.scatter_add_(1, labels, torch.ones(labels.shape))
        nearness = torch.zeros(len(labels), classes)
        for place in reversed(range(k)):  # the nearest row of a class writes last
            nearness.scatter_(1, labels[:, place : place + 1], (k - place) / (k + 1))
        return votes + nearness

    return scores
