"""Evaluation of two-tower models: `python -m cyclip_ext.evaluation`, or `cyclip-eval`.

| module | contents |
| --- | --- |
| `datasets/` | a user's specification becomes an ImageDataset |
| `encode`, `prompts` | a dataset and a model become Embeddings; templates and class names |
| `embeddings` | `Embeddings`, the arrays that every task takes, and their .npz file |
| `tasks/` | one file per task: metrics, plot, explanation; how to add one |
| `builtin` | the evaluation sets of "emoji" and the other built-in datasets |
| `report` | results.json, report.md, report.html |
| `__main__` | the command line |

Metrics take embeddings, and `encode` takes any model with open_clip's `encode_image` and
`encode_text`. Training imports evaluation, never the reverse. Metric names are CLIP_benchmark's
(acc1, acc5, mean_per_class_recall, image_retrieval_recall@5), and shares are between 0 and 1.
"""

from .builtin import encode_splits, evaluate_splits
from .datasets import Quadruples, open_evaluation_dataset
from .embeddings import Embeddings, load_embeddings, save_embeddings
from .encode import Encoder, encode
from .prompts import Prompts, read_class_names, read_templates
from .report import About, write_report
from .tasks import SHORT, TASKS, Metric, TaskResult, Unit, run_tasks, training_metrics
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
    "SHORT",
    "TASKS",
    "About",
    "BaselineLine",
    "CaptionObjects",
    "ClassResult",
    "Classified",
    "Completeness",
    "Composed",
    "Corners",
    "Embeddings",
    "Encoder",
    "FineAndCoarse",
    "Margins",
    "Metric",
    "Probe",
    "Prompts",
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
    "encode",
    "encode_splits",
    "evaluate_splits",
    "fine_and_coarse",
    "fit_baseline",
    "inside",
    "knn_predictions",
    "knn_probe",
    "linear_probe",
    "load_embeddings",
    "margin_metrics",
    "modality_gap",
    "open_evaluation_dataset",
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
