"""Alignment, uniformity, modality gap and effective rank, in the conventions of four papers.

Wang and Isola 2020 (arXiv 2005.10242), alpha = 2 and t = 2, smaller is better in both:
    alignment   E |x_i - y_i|^2 over positive pairs
    uniformity  log E exp(-2 |x - x'|^2) over pairs of different samples: 0 if all are equal,
                about -4 if all are orthogonal
CyCLIP (Goel et al. 2022, their section on alignment and uniformity), in cosines, larger is better
in both:
    alignment   mean of <x_i, y_i> over the pairs
    uniformity  log of the mean of exp(-<x_i, y_k>) over i != k
The second pair is given as the authors compute it. For pairs the two alignments are equivalent:
E |x_i - y_i|^2 = 2 - 2 E <x_i, y_i>.

Liang et al. 2022 (arXiv 2203.02053), modality gap: |mean of x - mean of y|.
Roy and Vetterli 2007, definition 1, effective rank: exp of the entropy of the singular values.

Cost O(N M d), memory O((N + M) d).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..._plotting import line_style, plain
from ..embeddings import BLOCK, Embeddings, unit_rows
from .base import Metric, Plot, TaskOptions, TaskResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASK = "geometry"

LABELS = {
    "alignment": "alignment",
    "uniformity_image": "uniformity of images",
    "uniformity_text": "uniformity of texts",
    "uniformity_cross": "uniformity between the two",
    "cyclip_alignment": "CyCLIP's alignment",
    "cyclip_uniformity": "CyCLIP's uniformity",
    "modality_gap": "modality gap",
    "centroid_cosine": "cosine between the two means",
    "cosine_image": "mean cosine of two images",
    "cosine_text": "mean cosine of two texts",
}


# ------------------------------------------------------------------- alignment and uniformity


def caption_geometry(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [N, d]
    labels: Tensor,  # int64 [N]
) -> dict[str, float]:
    """Measure alignment, uniformity and gap of images and their captions, row by row.

    labels: rows with equal ones (equal captions, captions of one image) are not negatives,
    within a tower and across; at least two must differ. alignment, uniformity_image,
    uniformity_text and uniformity_cross are Wang and Isola's, cyclip_alignment and
    cyclip_uniformity CyCLIP's. modality_gap is at most 2. centroid_cosine is the cosine between the
    two means, NaN if one of them is zero. cosine_image and cosine_text are the mean cosines of two
    different rows of one tower.
    """
    images, texts = unit_rows(image_features), unit_rows(text_features)
    return _geometry(images, texts, texts, (labels, labels), (labels, labels))


def prompt_geometry(
    image_features: Tensor,  # [N, d]
    class_features: Tensor,  # [C, d]
    labels: Tensor,  # int64 [N], index into class_features
) -> dict[str, float]:
    """Measure the same of images and the prompts of their classes.

    Positive: an image and the prompt of its class. Negative: an image and the prompt of each other
    class, once. uniformity_image is over all pairs of images, uniformity_text over all pairs of
    classes. CyCLIP's authors repeat the prompt for each image and take every pair of different
    images instead, those of one class included: that is
    `caption_geometry(image_features, class_features[labels], torch.arange(N))`.
    """
    images, classes = unit_rows(image_features), unit_rows(class_features)
    own_image, own_class = torch.arange(len(images)), torch.arange(len(classes))
    return _geometry(images, classes, classes[labels], (own_image, own_class), (labels, own_class))


def _geometry(
    images: Tensor,  # float64 [N, d], unit length
    texts: Tensor,  # float64 [M, d], unit length
    positives: Tensor,  # float64 [N, d], the text of each image
    within: tuple[Tensor, Tensor],  # int64 [N] and [M]: rows of one tower with equal ones
    across: tuple[Tensor, Tensor],  # int64 [N] and [M]: an image and a text with equal ones
) -> dict[str, float]:
    image_mean, text_mean = images.mean(0), texts.mean(0)
    lengths = (image_mean.norm() * text_mean.norm()).item()
    # For unit rows -2 |x - y|^2 = 4 <x, y> - 4.
    return {
        "alignment": (images - positives).square().sum(1).mean().item(),
        "uniformity_image": log_mean_exp(images, images, within[0], within[0], slope=4.0) - 4.0,
        "uniformity_text": log_mean_exp(texts, texts, within[1], within[1], slope=4.0) - 4.0,
        "uniformity_cross": log_mean_exp(images, texts, *across, slope=4.0) - 4.0,
        "cyclip_alignment": (images * positives).sum(1).mean().item(),
        "cyclip_uniformity": log_mean_exp(images, texts, *across, slope=-1.0),
        "modality_gap": (image_mean - text_mean).norm().item(),
        "centroid_cosine": (image_mean @ text_mean).item() / lengths if lengths else math.nan,
        "cosine_image": _mean_cosine(images),
        "cosine_text": _mean_cosine(texts),
    }


def _mean_cosine(rows: Tensor) -> float:
    """Return the mean cosine over ordered pairs of rows, from the square of their sum."""
    count = len(rows)
    return (rows.sum(0).square().sum().item() - count) / (count * (count - 1))


def log_mean_exp(
    rows: Tensor,  # float64 [N, d], unit length
    cols: Tensor,  # float64 [M, d], unit length
    row_labels: Tensor,  # int64 [N]
    col_labels: Tensor,  # int64 [M]
    *,
    slope: float,
) -> float:
    """Return log E exp(slope * cosine) over pairs of different label, block by block.

    The cosines are bounded, so with these slopes nothing under- or overflows without a shift.
    """
    total, count = 0.0, 0
    for row_block, row_own in zip(rows.split(BLOCK), row_labels.split(BLOCK), strict=True):
        for col_block, col_own in zip(cols.split(BLOCK), col_labels.split(BLOCK), strict=True):
            negative = row_own[:, None] != col_own[None, :]
            terms = (row_block @ col_block.T).mul_(slope).exp_()
            total += terms.mul_(negative).sum().item()
            count += int(negative.sum())
    return math.log(total / count)


# ----------------------------------------------------------------------------------- spectrum


def singular_values(features: Tensor) -> Tensor:  # [N, d], one tower
    """Return the singular values of the centred unit rows / sqrt(N), float64 [min(N, d)].

    They are in descending order. Their squares are the variances along the principal directions,
    and the sum of the squares is 1 - |mean|^2. Without centring the first one would be mostly the
    mean, the axis of the cone in which all rows of a tower lie. Values below the rounding error of
    the subtraction are 0.
    """
    rows = unit_rows(features)
    values = torch.linalg.svdvals((rows - rows.mean(0)) / len(rows) ** 0.5)
    rounding = max(rows.shape) * torch.finfo(values.dtype).eps  # the rows have length 1
    return torch.where(values < rounding, 0, values)


def effective_rank(values: Tensor) -> float:
    """Return exp of the entropy of values / their sum: 1 to rank; 0 if all are zero.

    Source: Roy and Vetterli 2007, definition 1.
    """
    if not values.any():
        return 0.0
    shares = values / values.sum()
    return math.exp(torch.special.entr(shares).sum().item())  # entr: -p log p, 0 at 0


def directions_for(values: Tensor, share: float) -> int:
    """Count the principal directions with `share` (0 to 1) of the sum of squares; 0 for zeros."""
    if not values.any():
        return 0
    held = values.square().cumsum(0)
    # Rounding must not add a direction to a share that is already reached.
    enough = share * held[-1] * (1 - 1e-12)
    return int((held < enough).sum()) + 1


def plot_spectrum(figure: Figure, spectra: Mapping[str, Tensor]) -> None:
    """Plot the singular values of each tower, by name, against their rank; zeros are not drawn."""
    axes = figure.subplots()
    for index, (name, values) in enumerate(spectra.items()):
        shown = values[values > 0]
        axes.plot(
            range(1, len(shown) + 1),
            shown,
            label=f"{name} (effective rank {effective_rank(values):.1f})",
            linewidth=1.5,
            marker="." if len(shown) <= 32 else None,
            **line_style(index),
        )
    axes.set(xlabel="principal direction", ylabel="singular value / √N", yscale="log")
    axes.legend(frameon=False, fontsize=9)
    plain(axes)


# --------------------------------------------------------------------------------------- task


def run(embeddings: Embeddings, options: TaskOptions) -> TaskResult | None:
    """Measure images and prompts of classes; without classes, images and their first captions."""
    pairs, found = embeddings.pairs(), embeddings.classification()
    if pairs is None:
        return None
    images, texts, _ = found or pairs
    values = caption_geometry(*pairs) if found is None else prompt_geometry(*found)
    measured = {Metric(key, LABELS[key]): value for key, value in values.items()}
    spectra = {"images": singular_values(images), "texts": singular_values(texts)}
    for towers, spectrum in spectra.items():
        tower = towers.removesuffix("s")
        rank = Metric(f"effective_rank_{tower}", f"effective rank of {towers}")
        measured[rank] = effective_rank(spectrum)
        for percent in (90, 99):
            label = f"directions with {percent}% of the {towers}' variance"
            metric = Metric(f"directions_{percent}_{tower}", label)
            measured[metric] = float(directions_for(spectrum, percent / 100))
    return TaskResult(
        embeddings.name,
        TASK,
        measured,
        "Alignment, uniformity, modality gap, rank",
        "Alignment: how near an image is to its own text (mean squared distance, smaller is "
        "nearer; CyCLIP's is the mean cosine, larger is nearer). Uniformity: how evenly embeddings "
        "spread (smaller is more even; CyCLIP's: larger). Modality gap: distance between the means "
        "of images and of texts. Effective rank: how many directions a tower uses.",
        plots=(
            Plot(
                "spectrum",
                "Singular values of the centred embeddings of each tower, largest first. The later "
                "a curve falls, the more directions the tower uses.",
                partial(plot_spectrum, spectra=spectra),
            ),
        ),
    )
