"""What every analysis does with its embeddings first: check them, keep their directions."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import require_finite

BLOCK = 2048  # rows and columns of similarities held at once, 32 MiB: changes no result


def unit_rows(**features: Tensor) -> list[Tensor]:
    """The features, given by name, each [N, d], as unit rows in float64.

    Raises ValueError, naming the argument, where they are not [N, d] with one d, are empty, not
    finite, or have a row of zeros, which has no direction.
    """
    widths = set()
    for name, rows in features.items():
        if rows.ndim != 2 or 0 in rows.shape:
            raise ValueError(f"{name} must be [N, d] and not empty, got shape {[*rows.shape]}")
        widths.add(rows.shape[1])
    if len(widths) > 1:
        shapes = " and ".join(str([*rows.shape]) for rows in features.values())
        raise ValueError(f"{' and '.join(features)} must have the same width d, got {shapes}")
    require_finite(**features)
    result = []
    for name, rows in features.items():
        rows = rows.double()
        largest = rows.abs().amax(1, keepdim=True)
        zeros = int((largest == 0).sum())
        if zeros:
            raise ValueError(
                f"{name} has {zeros} rows of zeros, which have no direction; leave these pairs out"
            )
        rows = rows / largest  # its squares must neither overflow nor vanish
        result.append(rows / rows.norm(dim=1, keepdim=True))
    return result


def unit_pairs(image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
    """Both towers' features as unit rows, where row i of one belongs to row i of the other."""
    images, texts = unit_rows(image_features=image_features, text_features=text_features)
    if len(images) != len(texts):
        raise ValueError(
            "image_features and text_features must be pairs, row by row, got "
            f"{len(images)} and {len(texts)} rows; repeat a picture for each of its captions"
        )
    return images, texts


def check_labels(labels: Tensor, name: str, rows: Tensor, rows_name: str) -> None:
    """Raises ValueError unless there is one int64 label per row."""
    if labels.dtype != torch.int64 or labels.shape != rows.shape[:1]:
        raise ValueError(
            f"{name} must be int64 [{len(rows)}], one per row of {rows_name}, got {labels.dtype} "
            f"{[*labels.shape]}"
        )
