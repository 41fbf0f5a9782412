"""Groups of duplicate pairs in a batch, which are not each other's negatives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def group_labels(batches: Sequence[tuple[npt.NDArray[np.int64], int]], rank: int) -> Tensor:
    """Return the labels of the pairs of one rank: int64 [pairs], on the CPU.

    Pairs that share a hash, of the image or of any of its captions, are in one group, and so are
    two pairs that each share one with a third. The label is the group's first row in the batch of
    all ranks.

    batches: of each rank, Batch.hashes and the number of pairs.
    """
    parts = [hashes for hashes, _ in batches]
    starts = np.cumsum([0, *(pairs for _, pairs in batches)])
    rows = np.concatenate([part[:, 0] + starts[k] for k, part in enumerate(parts)])
    _, hashes = np.unique(np.concatenate(parts)[:, 1], return_inverse=True)
    labels = np.arange(starts[-1])
    while True:
        first = np.full(len(rows), starts[-1])  # row of each hash
        np.minimum.at(first, hashes, labels[rows])
        joined = labels.copy()
        np.minimum.at(joined, rows, first[hashes])
        if np.array_equal(joined, labels):
            return torch.from_numpy(labels[starts[rank] : starts[rank + 1]])
        labels = joined
