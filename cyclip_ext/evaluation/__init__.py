"""Evaluation of a pair of towers, for any model: `python -m cyclip_ext.evaluation`.

| module | content |
| --- | --- |
| `embeddings` | `Embeddings`, the arrays that every task takes, and their .npz file |
| `tasks/` | one file per task: metrics, plot, explanation; how to add one |
| `report` | results.json, report.md, report.html |
| `prompts` | class names and templates |
| `datasets/` | evaluation datasets |

The metrics take embeddings, the rest any model with open_clip's `encode_image` and `encode_text`.
Training imports evaluation, never the reverse. Metric names are CLIP_benchmark's (acc1, acc5,
mean_per_class_recall, image_retrieval_recall@5), and shares are between 0 and 1.
"""

from .datasets import open_set
from .embed import embed_images, embed_texts
from .embed_sets import Embedded, embed_set
from .embeddings import Embeddings, load_embeddings, save_embeddings
from .prompts import read_class_names, read_templates
from .report import About, write_report
from .sets import CaptionedImages, ClassifiedImages, Images, Quadruples
from .tasks import TASKS, Metric, TaskResult, Unit, run_tasks, training_metrics
from .tasks.completeness import (
    CaptionObjects,
    Completeness,
    caption_completeness,
    plot_completeness,
)
from .tasks.composition import Composed, compose, per_tag, quadruple_similarities
from .tasks.consistency import consistency_metrics, knn_predictions
from .tasks.corners import (
    Corners,
    corner_metrics,
    corner_positions,
    plot_corners,
    plot_quadrilaterals,
    sample_corners,
)
from .tasks.geometry import (
    alignment,
    caption_geometry,
    cross_uniformity,
    cyclip_alignment,
    cyclip_uniformity,
    directions_for,
    effective_rank,
    modality_gap,
    plot_spectrum,
    prompt_geometry,
    singular_values,
    spectrum_metrics,
    uniformity,
)
from .tasks.hierarchy import (
    FineAndCoarse,
    SuperclassResult,
    fine_and_coarse,
    per_superclass,
    plot_superclasses,
    read_superclasses,
    superclasses_of,
)
from .tasks.margins import Margins, batch_margins, compare_models, margin_metrics, plot_margins
from .tasks.probes import Probe, knn_probe, linear_probe, plot_sweep
from .tasks.retrieval import Retrieved, retrieval_metrics, retrieve
from .tasks.shift import (
    BaselineLine,
    fit_baseline,
    inside,
    plot_shift,
    read_baselines,
    shift_metrics,
    wilson_interval,
)
from .tasks.zero_shot import (
    Classified,
    ClassResult,
    class_embeddings,
    classification_metrics,
    classify,
    confusion_counts,
    per_class,
    plot_confusion,
    zero_shot_predict,
)

__all__ = [
    "TASKS",
    "About",
    "BaselineLine",
    "CaptionObjects",
    "CaptionedImages",
    "ClassResult",
    "Classified",
    "ClassifiedImages",
    "Completeness",
    "Composed",
    "Corners",
    "Embedded",
    "Embeddings",
    "FineAndCoarse",
    "Images",
    "Margins",
    "Metric",
    "Probe",
    "Quadruples",
    "Retrieved",
    "SuperclassResult",
    "TaskResult",
    "Unit",
    "alignment",
    "batch_margins",
    "caption_completeness",
    "caption_geometry",
    "class_embeddings",
    "classification_metrics",
    "classify",
    "compare_models",
    "compose",
    "confusion_counts",
    "consistency_metrics",
    "corner_metrics",
    "corner_positions",
    "cross_uniformity",
    "cyclip_alignment",
    "cyclip_uniformity",
    "directions_for",
    "effective_rank",
    "embed_images",
    "embed_set",
    "embed_texts",
    "fine_and_coarse",
    "fit_baseline",
    "inside",
    "knn_predictions",
    "knn_probe",
    "linear_probe",
    "load_embeddings",
    "margin_metrics",
    "modality_gap",
    "open_set",
    "per_class",
    "per_superclass",
    "per_tag",
    "plot_completeness",
    "plot_confusion",
    "plot_corners",
    "plot_margins",
    "plot_quadrilaterals",
    "plot_shift",
    "plot_spectrum",
    "plot_superclasses",
    "plot_sweep",
    "prompt_geometry",
    "quadruple_similarities",
    "read_baselines",
    "read_class_names",
    "read_superclasses",
    "read_templates",
    "retrieval_metrics",
    "retrieve",
    "run_tasks",
    "sample_corners",
    "save_embeddings",
    "shift_metrics",
    "singular_values",
    "spectrum_metrics",
    "superclasses_of",
    "training_metrics",
    "uniformity",
    "wilson_interval",
    "write_report",
    "zero_shot_predict",
]
