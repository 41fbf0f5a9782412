"""Alignment, uniformity and the modality gap, in the conventions of three papers.

Wang and Isola 2020 (arXiv 2005.10242), alpha = 2 and t = 2, smaller is better in both:
    alignment   E |x_i - y_i|^2 over positive pairs
    uniformity  log E exp(-2 |x - x'|^2) over pairs of different samples: 0 where all are equal,
                about -4 where all are orthogonal
CyCLIP (Goel et al. 2022, their section on alignment and uniformity), in cosines, larger is better
in both:
    alignment   mean of <x_i, y_i> over the pairs
    uniformity  log of the mean of exp(-<x_i, y_k>) over i != k
The second pair is given as the authors compute it. For pairs the two alignments say the same:
E |x_i - y_i|^2 = 2 - 2 E <x_i, y_i>.

Liang et al. 2022 (arXiv 2203.02053), modality gap: |mean of x - mean of y|.

Pairs of equal labels are never negatives. Without labels each row has one of its own.
Cost O(N M d), memory O((N + M) d).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .directions import BLOCK, check_labels, unit_pairs, unit_rows


def alignment(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [N, d]
) -> float:
    """Mean squared distance of the pairs, 0 to 4. Wang and Isola 2020, alpha = 2."""
    images, texts = unit_pairs(image_features, text_features)
    return (images - texts).square().sum(1).mean().item()


def uniformity(
    features: Tensor,  # [N, d], one tower
    labels: Tensor | None = None,  # int64 [N]
) -> float:
    """log E exp(-2 |x - x'|^2) over pairs of different label, -8 to 0.

    Raises ValueError where there is no such pair. Source: Wang and Isola 2020, t = 2.
    """
    (rows,) = unit_rows(features=features)
    return _log_mean_gaussian(rows, rows, *_labels(rows, "features", labels))


def cross_uniformity(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [M, d]
    image_labels: Tensor | None = None,  # int64 [N]
    text_labels: Tensor | None = None,  # int64 [M]
) -> float:
    """log E exp(-2 |x - y|^2) over images and texts of different label: `uniformity` across towers.

    Raises ValueError where there is no such pair, or one tower alone has labels.
    """
    return _log_mean_gaussian(*_cross(image_features, text_features, image_labels, text_labels))


def cyclip_alignment(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [N, d]
) -> float:
    """Mean cosine of the pairs, -1 to 1. Goel et al. 2022."""
    images, texts = unit_pairs(image_features, text_features)
    return (images * texts).sum(1).mean().item()


def cyclip_uniformity(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [M, d]
    image_labels: Tensor | None = None,  # int64 [N]
    text_labels: Tensor | None = None,  # int64 [M]
) -> float:
    """log E exp(-<x, y>) over images and texts of different label, -1 to 1. Goel et al. 2022.

    Raises ValueError where there is no such pair, or one tower alone has labels.
    """
    return _log_mean_exp(
        *_cross(image_features, text_features, image_labels, text_labels), slope=-1.0
    )


def modality_gap(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [M, d]
) -> dict[str, float]:
    """How far apart the two clouds are, and how narrow each is, in O((N + M) d).

    modality_gap: |mean of x - mean of y|, 0 to 2, the length of the gap vector of Liang et al.
    2022. centroid_cosine: cosine between the two means; nan where one of them is zero.
    cosine_image, cosine_text: mean cosine of two different rows of one tower; nan for one row.
    """
    images, texts = unit_rows(image_features=image_features, text_features=text_features)
    image_mean, text_mean = images.mean(0), texts.mean(0)
    lengths = (image_mean.norm() * text_mean.norm()).item()
    return {
        "modality_gap": (image_mean - text_mean).norm().item(),
        "centroid_cosine": (image_mean @ text_mean).item() / lengths if lengths else math.nan,
        "cosine_image": _mean_cosine(images),
        "cosine_text": _mean_cosine(texts),
    }


def caption_geometry(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [N, d]
    labels: Tensor | None = None,  # int64 [N]
) -> dict[str, float]:
    """Every measure of this file for pictures and their captions, row by row.

    labels: pairs with equal ones (equal captions, captions of one picture) are not negatives,
    within a tower and across. alignment, uniformity_image, uniformity_text and uniformity_cross are
    Wang and Isola's, cyclip_alignment and cyclip_uniformity CyCLIP's; the others are those of
    `modality_gap`, which knows no labels.
    """
    unit_pairs(image_features, text_features)
    return {
        "alignment": alignment(image_features, text_features),
        "uniformity_image": uniformity(image_features, labels),
        "uniformity_text": uniformity(text_features, labels),
        "uniformity_cross": cross_uniformity(image_features, text_features, labels, labels),
        "cyclip_alignment": cyclip_alignment(image_features, text_features),
        "cyclip_uniformity": cyclip_uniformity(image_features, text_features, labels, labels),
        **modality_gap(image_features, text_features),
    }


def prompt_geometry(
    image_features: Tensor,  # [N, d]
    class_features: Tensor,  # [C, d]
    labels: Tensor,  # int64 [N], index into class_features
) -> dict[str, float]:
    """The same measures for pictures and the prompts of their classes.

    Positive: a picture and the prompt of its class. Negative: a picture and the prompt of each
    other class, once. uniformity_image is over all pairs of pictures, uniformity_text over all
    pairs of classes. CyCLIP's authors repeat the prompt for each picture and take every pair of
    different pictures instead, those of one class too: that is
    `caption_geometry(image_features, class_features[labels])`.
    """
    images, classes = unit_rows(image_features=image_features, class_features=class_features)
    check_labels(labels, "labels", images, "image_features")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(classes):
        raise ValueError(
            f"labels must be in 0 ... {len(classes) - 1} (class_features), got {low} ... {high}"
        )
    own, class_labels = class_features[labels], torch.arange(len(classes))
    return {
        "alignment": alignment(image_features, own),
        "uniformity_image": uniformity(image_features),
        "uniformity_text": uniformity(class_features),
        "uniformity_cross": cross_uniformity(image_features, class_features, labels, class_labels),
        "cyclip_alignment": cyclip_alignment(image_features, own),
        "cyclip_uniformity": cyclip_uniformity(
            image_features, class_features, labels, class_labels
        ),
        **modality_gap(image_features, class_features),
    }


def _mean_cosine(rows: Tensor) -> float:
    """Over ordered pairs of different rows: the sum of all cosines is the square of the sum."""
    count = len(rows)
    if count == 1:
        return math.nan
    return (rows.sum(0).square().sum().item() - count) / (count * (count - 1))


def _cross(
    image_features: Tensor,
    text_features: Tensor,
    image_labels: Tensor | None,
    text_labels: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if (image_labels is None) != (text_labels is None):
        raise ValueError("image_labels and text_labels must both be given, or neither")
    images, texts = unit_rows(image_features=image_features, text_features=text_features)
    if image_labels is None or text_labels is None:
        unit_pairs(image_features, text_features)
        own = torch.arange(len(images))
        return images, texts, own, own
    check_labels(image_labels, "image_labels", images, "image_features")
    check_labels(text_labels, "text_labels", texts, "text_features")
    return images, texts, image_labels, text_labels


def _labels(rows: Tensor, name: str, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    if labels is None:
        labels = torch.arange(len(rows))
    check_labels(labels, "labels", rows, name)
    return labels, labels


def _log_mean_gaussian(rows: Tensor, cols: Tensor, row_labels: Tensor, col_labels: Tensor) -> float:
    # -2 |x - y|^2 = 4 <x, y> - 4 for unit rows
    return _log_mean_exp(rows, cols, row_labels, col_labels, slope=4.0) - 4.0


def _log_mean_exp(
    rows: Tensor,  # float64 [N, d], unit length
    cols: Tensor,  # float64 [M, d], unit length
    row_labels: Tensor,  # int64 [N]
    col_labels: Tensor,  # int64 [M]
    *,
    slope: float,
) -> float:
    """log of the mean of exp(slope * cosine) over pairs of different label, block by block.

    The cosines are bounded, so with these slopes nothing under- or overflows without a shift.
    """
    total, count = 0.0, 0
    for row_block, row_own in zip(rows.split(BLOCK), row_labels.split(BLOCK), strict=True):
        for col_block, col_own in zip(cols.split(BLOCK), col_labels.split(BLOCK), strict=True):
            negative = row_own[:, None] != col_own[None, :]
            terms = (row_block @ col_block.T).mul_(slope).exp_()
            total += terms.mul_(negative).sum().item()
            count += int(negative.sum())
    if not count:
        raise ValueError(
            "uniformity needs a pair of different samples or labels, got none among "
            f"{len(rows)} rows and {len(cols)} columns"
        )
    return math.log(total / count)
