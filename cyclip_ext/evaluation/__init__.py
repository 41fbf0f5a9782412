"""Evaluation of two-tower models: `python -m cyclip_ext.evaluation`, or `cyclip-eval`.

| module | contents |
| --- | --- |
| `datasets/` | a user's specification becomes an ImageDataset |
| `encode`, `prompts` | a dataset and a model become Embeddings; templates and class names |
| `embeddings` | the arrays that every task takes, and their file |
| `tasks/` | one file per task: metrics, plot, explanation |
| `builtin` | the evaluation sets of "emoji" and the other built-in datasets |
| `report` | JSON, Markdown and HTML |
| `__main__` | the command line |

Metrics take embeddings, and `encode` takes any model with open_clip's `encode_image` and
`encode_text`. Training imports evaluation, never the other way. Metric names are CLIP_benchmark's
(acc1, acc5, mean_per_class_recall, image_retrieval_recall@5), and shares are between 0 and 1.
"""

from .builtin import encode_splits, evaluate_splits
from .datasets import Quadruples, open_evaluation_dataset
from .embeddings import Embeddings, load_embeddings, save_embeddings
from .encode import Encoder, encode
from .prompts import Prompts, read_class_names, read_templates
from .report import About, write_report
from .tasks import SHORT, TASKS, Metric, TaskResult, run_tasks, training_metrics

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
    "encode",
    "encode_splits",
    "evaluate_splits",
    "load_embeddings",
    "open_evaluation_dataset",
    "read_class_names",
    "read_templates",
    "run_tasks",
    "save_embeddings",
    "training_metrics",
    "write_report",
]
