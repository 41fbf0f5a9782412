"""Equal captions and images: in a batch they are each other's negatives, falsely."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

Hashes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Groups:
    """Records that share a hash, by hash.

    order: int64, members of all groups, group by group, records ascending. starts: int64
    [groups + 1] into order. Only groups of two and more records, the largest first.
    """

    order: Ints
    starts: Ints

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def records(self) -> int:
        """Number of records that have a double (counted once per group they are in)."""
        return len(self.order)

    def largest(self, count: int) -> list[Ints]:
        """The members of the largest groups."""
        return [self.order[self.starts[i] : self.starts[i + 1]] for i in range(len(self))[:count]]


def group(hashes: Hashes, records: Ints) -> Groups:
    """Records of equal hash: uint64 [n], int64 [n] -> Groups.

    A record may have several hashes (one per caption), or the same twice: it counts once.
    """
    by_hash = np.lexsort((records, hashes))
    hashes, records = hashes[by_hash], records[by_hash]
    if len(hashes):
        again = (hashes[1:] == hashes[:-1]) & (records[1:] == records[:-1])
        first = np.concatenate([[True], ~again])
        hashes, records = hashes[first], records[first]
    starts, sizes = _runs(hashes)
    several = np.flatnonzero(sizes > 1)
    several = several[np.argsort(-sizes[several], kind="stable")]
    members = [records[starts[i] : starts[i] + sizes[i]] for i in several]
    order = np.concatenate(members) if members else np.empty(0, dtype=np.int64)
    return Groups(order, np.cumsum([0, *sizes[several]], dtype=np.int64))


def expected_pairs(
    hashes: Hashes, records: Ints, weights: Floats, batch_size: int, count: int
) -> float:
    """Expected number of pairs of records with the same hash in a random batch.

    hashes: uint64 [n], of record records[i] (int64 [n]) with probability weights[i] (float64 [n]:
    1 for an image, 1/c for each of c captions of which one is drawn per epoch). count: records in
    all; a batch takes batch_size of them without replacement.

        sum over hashes and pairs r < s of p_r p_s  times  B (B - 1) / (count (count - 1))
    """
    batch_size = min(batch_size, count)
    if batch_size < 2:
        return 0.0
    by_hash = np.lexsort((records, hashes))
    hashes, records, weights = hashes[by_hash], records[by_hash], weights[by_hash]
    # The same caption twice in one record: its probabilities add up.
    change = (hashes[1:] != hashes[:-1]) | (records[1:] != records[:-1])
    first = np.concatenate([[0], np.flatnonzero(change) + 1])
    weights = np.add.reduceat(weights, first)
    starts, _ = _runs(hashes[first])
    sums = np.add.reduceat(weights, starts)
    squares = np.add.reduceat(weights**2, starts)
    # Groups of one would leave rounding errors of many millions of zeros.
    pairs = float(((sums**2 - squares) / 2)[_runs(hashes[first])[1] > 1].sum())
    return pairs * (batch_size * (batch_size - 1)) / (count * (count - 1))


def mixed(one: Hashes, two: Hashes) -> Hashes:
    """One hash of two: equal only where both are."""
    state = one * np.uint64(0x9E3779B97F4A7C15) ^ (two + np.uint64(0x632BE59BD9B4E019))
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixture: Hashes = state ^ (state >> np.uint64(31))
    return mixture


def difference_hash(image: Image.Image) -> int:
    """64 bits that survive scaling and mild compression: where brightness rises along a row.

    0 for pictures of one colour, of which it tells nothing. Source: dHash, Krawetz 2013.
    """
    grey = image.convert("L").resize((9, 8), Image.Resampling.BOX, reducing_gap=2.0)
    pixels = np.asarray(grey)
    return int.from_bytes(np.packbits(pixels[:, 1:] > pixels[:, :-1]).tobytes(), "big")


def _runs(hashes: Hashes) -> tuple[Ints, Ints]:
    """(start, length) of each run of equal values."""
    if not len(hashes):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    starts = np.concatenate([[0], np.flatnonzero(hashes[1:] != hashes[:-1]) + 1])
    return starts, np.diff(np.append(starts, len(hashes)))
