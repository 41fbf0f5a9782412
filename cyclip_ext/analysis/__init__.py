"""What embeddings look like: the analyses of both papers, and a drawing of each.

Everything here is a pure function of embeddings (`caption_completeness`: of two annotation files;
`intervals`: of numbers). Rows are [N, d]; only their directions count, so each is brought to unit
length in float64 first. Nothing holds an N x N matrix. `plot_<what>(figure, ...)` draws on a
matplotlib Figure and neither saves nor shows it.

    geometry       alignment, uniformity, modality gap
    spectrum       singular values, effective rank
    corners        consistency of two pairs, as a picture
    margins        pairs above their hardest negatives, in batches
    completeness   annotated objects that captions leave out
    intervals      means and paired differences over seeds
    directions     rows brought to unit length, and their checks

What must not live here: training, files of models, reports, metrics of a task (evaluation/).
"""

from .completeness import CaptionObjects, Completeness, caption_completeness, plot_completeness
from .corners import (
    Corners,
    corner_metrics,
    corner_positions,
    plot_corners,
    plot_quadrilaterals,
    sample_corners,
)
from .geometry import (
    alignment,
    caption_geometry,
    cross_uniformity,
    cyclip_alignment,
    cyclip_uniformity,
    modality_gap,
    prompt_geometry,
    uniformity,
)
from .intervals import Estimate, mean_interval, paired_difference
from .margins import Margins, batch_margins, margin_metrics, plot_margins
from .spectrum import (
    directions_for,
    effective_rank,
    plot_spectrum,
    singular_values,
    spectrum_metrics,
)

__all__ = [
    "CaptionObjects",
    "Completeness",
    "Corners",
    "Estimate",
    "Margins",
    "alignment",
    "batch_margins",
    "caption_completeness",
    "caption_geometry",
    "corner_metrics",
    "corner_positions",
    "cross_uniformity",
    "cyclip_alignment",
    "cyclip_uniformity",
    "directions_for",
    "effective_rank",
    "margin_metrics",
    "mean_interval",
    "modality_gap",
    "paired_difference",
    "plot_completeness",
    "plot_corners",
    "plot_margins",
    "plot_quadrilaterals",
    "plot_spectrum",
    "prompt_geometry",
    "sample_corners",
    "singular_values",
    "spectrum_metrics",
    "uniformity",
]
