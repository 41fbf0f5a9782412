"""Evaluation of two-tower models: `python -m cyclip_ext.evaluation`, or `cyclip-eval`.

| module | contents |
| --- | --- |
| `datasets/` | a user's specification becomes an ImageDataset |
| `encoder`, `prompts` | a model as evaluation applies it; templates and class names |
| `encode` | a dataset and an encoder become Embeddings |
| `embeddings`, `npz` | `Embeddings`, the arrays that every task takes; their .npz file |
| `tasks/` | one file per task: metrics, plot, explanation; how to add one |
| `builtin` | the evaluation datasets of "emoji" and the other built-in ones |
| `report`, `tables` | results.json, report.md, report.html; numbers and tables as text |
| `options`, `__main__` | the command line: its options, its commands |

Metrics take embeddings, and `encode` takes any model with open_clip's `encode_image` and
`encode_text`. Training imports evaluation, never the reverse. Metric names are CLIP_benchmark's
(acc1, acc5, mean_per_class_recall, image_retrieval_recall@5), and shares are between 0 and 1.
"""

from .builtin import encode_splits, evaluate_splits
from .datasets import Quadruples, open_evaluation_dataset
from .embeddings import Embeddings
from .encode import encode
from .encoder import Encoder
from .npz import load_embeddings, save_embeddings
from .prompts import Prompts, read_class_names, read_templates
from .report import About, write_report
from .tasks import SHORT, TASKS, Metric, TaskResult, Unit, run_tasks, training_metrics
from .tasks.consistency import consistency_metrics, knn_predictions
from .tasks.geometry import caption_geometry, effective_rank, prompt_geometry, singular_values
from .tasks.hierarchy import fine_and_coarse, read_superclasses, superclasses_of
from .tasks.margins import batch_margins, compare_models, margin_metrics
from .tasks.retrieval import retrieve
from .tasks.shift import read_baselines
from .tasks.zero_shot import class_embeddings, classify

__all__ = [
    "SHORT",
    "TASKS",
    "About",
    "Embeddings",
    "Encoder",
    "Metric",
    "Prompts",
    "Quadruples",
    "TaskResult",
    "Unit",
    "batch_margins",
    "caption_geometry",
    "class_embeddings",
    "classify",
    "compare_models",
    "consistency_metrics",
    "effective_rank",
    "encode",
    "encode_splits",
    "evaluate_splits",
    "fine_and_coarse",
    "knn_predictions",
    "load_embeddings",
    "margin_metrics",
    "open_evaluation_dataset",
    "prompt_geometry",
    "read_baselines",
    "read_class_names",
    "read_superclasses",
    "read_templates",
    "retrieve",
    "run_tasks",
    "save_embeddings",
    "singular_values",
    "superclasses_of",
    "training_metrics",
    "write_report",
]
