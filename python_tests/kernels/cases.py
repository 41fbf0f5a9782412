"""Precisions, shapes, labels, and layouts of features in memory."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from losses.inputs import Towers, make_features
from torch import Tensor


@dataclass(frozen=True)
class Precision:
    """Precision of the features and of their products."""

    name: str
    dtype: torch.dtype
    allow_tf32: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def accumulation(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def operands(self) -> float:
        """Relative rounding of an operand of a product that is not one of the features."""
        if self.allow_tf32:
            return 2.0**-11
        return torch.finfo(self.dtype).eps / 2


PRECISIONS = [
    Precision("bfloat16", torch.bfloat16),
    Precision("float16", torch.float16),
    Precision("tf32", torch.float32, allow_tf32=True),
    Precision("float32", torch.float32),
    Precision("float64", torch.float64),
]

# (n, m, d): single entries, ragged in one dimension at a time, whole tiles, several tiles.
SMALL = [(1, 1, 1), (5, 3, 7), (3, 65, 16), (70, 2, 33)]
MIDDLE = [(77, 130, 72), (128, 128, 64)]
LARGE = [(129, 257, 513)]


def rectangle(
    kind: str, n: int, m: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> Towers:
    """Return n images and m texts of one kind, rounded to `dtype`."""
    image, text = make_features(kind, max(n, m), d, seed, dtype)
    return image[:n], text[:m]


Labels = tuple[Tensor, Tensor]  # int64, of the rows and of the columns

LABELS = {
    "none": None,
    "some": lambda i: i // 3 % 17,  # on both sides of every edge of a tile
    "few": lambda i: 2 * i,  # most threads hold no equal ones
    "one": lambda i: 0 * i,
}

# At the edge of a matrix, with positives off the diagonal, and in large tiles.
LABELLED_SHAPES = pytest.mark.parametrize(
    ("n", "m", "offset", "large_tiles"),
    [(5, 9, 4, None), (70, 130, -30, None), (130, 140, 3, 0)],
    ids=["edge", "offset", "large"],
)


def labels_of(kind: str, n: int, m: int) -> Labels | None:
    """Return labels of one of the kinds of LABELS; some differ in their upper halves alone."""
    of = LABELS[kind]
    if of is None:
        return None
    rows, cols = of(torch.arange(n)), of(torch.arange(m) + 1)
    return (rows << 32) + rows // 2, (cols << 32) + cols // 2


def of_labels(labels: Labels | None) -> dict[str, Tensor]:
    """Return the arguments of an operator."""
    return {} if labels is None else {"row_labels": labels[0], "col_labels": labels[1]}


# Numbers of NaN elements to the left and right of the rows, for several alignments and pitches.
SURROUNDINGS = [(8, 8), (0, 1), (1, 0), (1, 7), (3, 2)]


def surrounded(features: Tensor, left: int, right: int) -> Tensor:
    """Return the same rows surrounded by NaN, `left` elements after an aligned address."""
    n, d = features.shape
    whole = torch.full((n + 2, left + d + right), torch.nan, dtype=features.dtype)
    whole[1:-1, left : left + d] = features
    return whole[1:-1, left : left + d]


def as_double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
