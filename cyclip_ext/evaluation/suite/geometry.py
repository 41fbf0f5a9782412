"""The shape of the two clouds of embeddings, and the corners of two pairs, on one set."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from ...analysis import (
    caption_geometry,
    corner_metrics,
    plot_corners,
    plot_quadrilaterals,
    plot_spectrum,
    prompt_geometry,
    sample_corners,
    singular_values,
    spectrum_metrics,
)
from ..outcome import Outcome, Plot

TASK, CORNERS = "geometry", "four_corners"
EXAMPLES = 3  # quadrilaterals that are drawn

READING = (
    "Alignment: how near a picture is to its own text (mean squared distance, smaller is nearer; "
    "CyCLIP's is the mean cosine, larger is nearer). Uniformity: how evenly embeddings spread "
    "(smaller is more even; CyCLIP's: larger). Modality gap: distance between the means of "
    "pictures and of texts. Effective rank: how many directions a tower uses."
)
CORNERS_READING = (
    "Two pictures and their two texts are consistent where the pictures are as alike as the "
    "texts, and the two diagonals are equal (CyCLIP, figure 1). The gaps are what the two cycle "
    "terms make small; 0 is perfect."
)


def prompts_geometry(
    dataset: str,
    image_features: Tensor,  # [N, d]
    class_features: Tensor,  # [C, d]
    labels: Tensor,  # int64 [N]
) -> Outcome:
    """Of pictures and the prompts of their classes."""
    metrics = prompt_geometry(image_features, class_features, labels)
    return _outcome(dataset, metrics, image_features, class_features)


def captions_geometry(
    dataset: str,
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [N, d], row by row
    labels: Tensor,  # int64 [N]: equal ones are no negatives
) -> Outcome:
    """Of pictures and their captions, row by row."""
    metrics = caption_geometry(image_features, text_features, labels)
    return _outcome(dataset, metrics, image_features, text_features)


def _outcome(dataset: str, metrics: dict[str, float], images: Tensor, texts: Tensor) -> Outcome:
    spectra = {"pictures": singular_values(images), "texts": singular_values(texts)}
    return Outcome(
        dataset,
        TASK,
        metrics | spectrum_metrics(images, texts),
        "Alignment, uniformity, modality gap, rank",
        READING,
        plots=(
            Plot(
                "spectrum",
                "Singular values of the centred embeddings of each tower, largest first. The later "
                "a curve falls, the more directions the tower uses.",
                partial(plot_spectrum, spectra=spectra),
            ),
        ),
    )


def four_corners(
    dataset: str,
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [N, d], row by row
    *,
    seed: int = 0,
) -> Outcome:
    """Gaps of random couples of pairs, and a few couples drawn."""
    corners = sample_corners(image_features, text_features, seed=seed)
    examples = [(int(i), int(j)) for i, j in corners.pairs[:EXAMPLES].tolist()]
    return Outcome(
        dataset,
        CORNERS,
        corner_metrics(corners),
        "Four corners of two pairs",
        CORNERS_READING,
        plots=(
            Plot(
                "corners",
                "Couples of pairs: similarity of the two pictures against that of the two texts "
                "(left), and one diagonal against the other (right). The nearer to the line, the "
                "more consistent.",
                partial(plot_corners, corners=corners),
                (6.4, 3.0),
            ),
            Plot(
                "quadrilaterals",
                "Random couples, drawn on the plane that keeps their distances best; numbers are "
                "cosines. Solid coloured sides should be equal, and so should the dashed "
                "diagonals.",
                partial(
                    plot_quadrilaterals,
                    image_features=image_features,
                    text_features=text_features,
                    pairs=examples,
                ),
                (6.4, 3.2),
            ),
        ),
    )
