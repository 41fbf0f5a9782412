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

Pairs of equal labels are never negatives. Without labels each row has one of its own.
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
from ..embeddings import BLOCK, Embeddings, check_labels, unit_pairs, unit_rows
from .base import Metric, Plot, TaskOptions, TaskResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASK = "geometry"

METRICS = (
    Metric("alignment", "alignment"),
    Metric("uniformity_image", "uniformity of images"),
    Metric("uniformity_text", "uniformity of texts"),
    Metric("uniformity_cross", "uniformity between the two"),
    Metric("cyclip_alignment", "CyCLIP's alignment"),
    Metric("cyclip_uniformity", "CyCLIP's uniformity"),
    Metric("modality_gap", "modality gap"),
    Metric("centroid_cosine", "cosine between the two means"),
    Metric("cosine_image", "mean cosine of two images"),
    Metric("cosine_text", "mean cosine of two texts"),
    *(
        metric
        for tower in ("image", "text")
        for metric in (
            Metric(f"effective_rank_{tower}", f"effective rank of {tower}s"),
            Metric(f"directions_90_{tower}", f"directions with 90% of the {tower}s' variance"),
            Metric(f"directions_99_{tower}", f"directions with 99% of the {tower}s' variance"),
        )
    ),
)


# ------------------------------------------------------------------- alignment and uniformity


def alignment(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [N, d]
) -> float:
    """Return the mean squared distance of the pairs, 0 to 4. Wang and Isola 2020, alpha = 2."""
    images, texts = unit_pairs(image_features, text_features)
    return (images - texts).square().sum(1).mean().item()


def uniformity(
    features: Tensor,  # [N, d], one tower
    labels: Tensor | None = None,  # int64 [N]
) -> float:
    """Return log E exp(-2 |x - x'|^2) over pairs of different label, -8 to 0.

    Raises ValueError without such a pair. Source: Wang and Isola 2020, t = 2.
    """
    (rows,) = unit_rows(features=features)
    return _log_mean_gaussian(rows, rows, *_labels(rows, "features", labels))


def cross_uniformity(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [M, d]
    image_labels: Tensor | None = None,  # int64 [N]
    text_labels: Tensor | None = None,  # int64 [M]
) -> float:
    """Return log E exp(-2 |x - y|^2) over images and texts of different label.

    Raises ValueError without such a pair, or if only one tower has labels.
    """
    return _log_mean_gaussian(*_cross(image_features, text_features, image_labels, text_labels))


def cyclip_alignment(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [N, d]
) -> float:
    """Return the mean cosine of the pairs, -1 to 1. Goel et al. 2022."""
    images, texts = unit_pairs(image_features, text_features)
    return (images * texts).sum(1).mean().item()


def cyclip_uniformity(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [M, d]
    image_labels: Tensor | None = None,  # int64 [N]
    text_labels: Tensor | None = None,  # int64 [M]
) -> float:
    """Return log E exp(-<x, y>) over pairs of different label, -1 to 1. Goel et al. 2022.

    Raises ValueError without such a pair, or if only one tower has labels.
    """
    return _log_mean_exp(
        *_cross(image_features, text_features, image_labels, text_labels), slope=-1.0
    )


def modality_gap(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [M, d]
) -> dict[str, float]:
    """Measure the distance of the two clouds and the width of each, in O((N + M) d).

    modality_gap: |mean of x - mean of y|, 0 to 2, the length of the gap vector of Liang et al.
    2022. centroid_cosine: cosine between the two means; NaN if one of them is zero.
    cosine_image, cosine_text: mean cosine of two different rows of one tower; NaN for one row.
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
    """Measure alignment, uniformity and gap of images and their captions, row by row.

    labels: pairs with equal ones (equal captions, captions of one image) are not negatives,
    within a tower and across. alignment, uniformity_image, uniformity_text and uniformity_cross are
    Wang and Isola's, cyclip_alignment and cyclip_uniformity CyCLIP's; the others are those of
    `modality_gap`, which takes no labels.
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
    """Measure the same of images and the prompts of their classes.

    Positive: an image and the prompt of its class. Negative: an image and the prompt of each other
    class, once. uniformity_image is over all pairs of images, uniformity_text over all pairs of
    classes. CyCLIP's authors repeat the prompt for each image and take every pair of different
    images instead, those of one class included: that is
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
    """Average over ordered pairs of rows: the sum of all cosines is the square of the sum."""
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
    if not count:
        raise ValueError(
            "uniformity needs a pair of different samples or labels, got none among "
            f"{len(rows)} rows and {len(cols)} columns"
        )
    return math.log(total / count)


# ----------------------------------------------------------------------------------- spectrum


def singular_values(
    features: Tensor,  # [N, d], one tower
    *,
    centred: bool = True,
) -> Tensor:
    """Return the singular values of the unit rows / sqrt(N), falling, float64 [min(N, d)].

    Centred, the mean row is subtracted first: squares are variances along the principal directions,
    and their sum is 1 - |mean|^2. Uncentred, the squares sum to 1, and the first one is mostly the
    mean, the axis of the cone in which all rows of a tower lie: it reflects little of how the rows
    differ. Values below the rounding error of the subtraction are 0.
    """
    (rows,) = unit_rows(features=features)
    if centred:
        rows = rows - rows.mean(0)
    values = torch.linalg.svdvals(rows / len(rows) ** 0.5)
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
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    if not values.any():
        return 0
    held = values.square().cumsum(0)
    # Rounding must not add a direction to a share that is already reached.
    enough = share * held[-1] * (1 - 1e-12)
    return int((held < enough).sum()) + 1


def spectrum_metrics(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [M, d]
) -> dict[str, float]:
    """Return effective_rank, directions_90 and directions_99 of each tower, centred.

    Keys end in _image or _text. directions: how many hold 90 and 99 percent of the variance.
    """
    unit_rows(image_features=image_features, text_features=text_features)
    metrics = {}
    for tower, features in (("image", image_features), ("text", text_features)):
        values = singular_values(features)
        metrics[f"effective_rank_{tower}"] = effective_rank(values)
        metrics[f"directions_90_{tower}"] = float(directions_for(values, 0.9))
        metrics[f"directions_99_{tower}"] = float(directions_for(values, 0.99))
    return metrics


# --------------------------------------------------------------------------------------- plot


def plot_spectrum(figure: Figure, spectra: Mapping[str, Tensor]) -> None:
    """Plot singular values against their rank, one curve per name.

    spectra: name -> result of `singular_values`. The legend has the effective ranks. Zeros are not
    drawn. Raises ValueError without a curve.
    """
    if not spectra:
        raise ValueError("spectra is empty: nothing to plot")
    figure.set_layout_engine("constrained")
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
    if found is not None:
        images, texts = found[:2]
        values = prompt_geometry(*found)
    else:
        images, texts = pairs[:2]
        values = caption_geometry(*pairs)
    plots: tuple[Plot, ...] = ()
    if options.details:
        spectra = {"images": singular_values(images), "texts": singular_values(texts)}
        plots = (
            Plot(
                "spectrum",
                "Singular values of the centred embeddings of each tower, largest first. The later "
                "a curve falls, the more directions the tower uses.",
                partial(plot_spectrum, spectra=spectra),
            ),
        )
    return TaskResult(
        embeddings.name,
        TASK,
        values | spectrum_metrics(images, texts),
        METRICS,
        "Alignment, uniformity, modality gap, rank",
        "Alignment: how near an image is to its own text (mean squared distance, smaller is "
        "nearer; CyCLIP's is the mean cosine, larger is nearer). Uniformity: how evenly embeddings "
        "spread (smaller is more even; CyCLIP's: larger). Modality gap: distance between the means "
        "of images and of texts. Effective rank: how many directions a tower uses.",
        plots=plots,
    )
