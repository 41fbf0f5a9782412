"""Measurements of a trained pair of towers, for any model: `python -m cyclip_ext.evaluation`.

| module | what lives there |
| --- | --- |
| `zero_shot`, `confusion`, `prompts` | classification by class names, class by class |
| `hierarchy`, `taxonomy` | fine and coarse classes; superclasses from files |
| `consistency`, `retrieval`, `shift`, `composition` | one measurement each |
| `probes/` | linear and k-NN probe |
| `sets`, `datasets/` | what is measured on, and how it is opened |
| `embed`, `embed_sets`, `encoder`, `pictures` | embeddings of texts, sets, our own data |
| `embeddings` | the arrays that every task takes, and their file |
| `tasks/` | one file per task |
| `suite/`, `outcome`, `report/` | every task on a set; what it hands on; JSON, Markdown, HTML |
| `job`, `__main__` | one evaluation from options to report |
| `text_files` | text that is UTF-8, or a clear error |

The metrics take embeddings, the rest any model with open_clip's `encode_image` and `encode_text`.
Nothing here knows how the model was trained: training imports evaluation, never the other way.
Metric names are CLIP_benchmark's (acc1, acc5, mean_per_class_recall, image_retrieval_recall@5), and
shares are between 0 and 1.
"""

from .composition import (
    Composed,
    TagResult,
    compose,
    per_tag,
    quadruple_similarities,
)
from .confusion import ClassResult, confusion_counts, per_class, plot_confusion
from .consistency import (
    consistency_metrics,
    knn_predict,
    knn_predictions,
    text_image_consistency,
)
from .datasets import open_set
from .embed import embed_images, embed_texts
from .embed_sets import Embedded, embed_set
from .embeddings import Embeddings, load_embeddings, save_embeddings
from .hierarchy import (
    FineAndCoarse,
    Hierarchy,
    SuperclassResult,
    coarse_accuracy,
    fine_and_coarse,
    per_superclass,
    plot_superclasses,
    read_superclasses,
)
from .probes import Probe, knn_probe, linear_probe, plot_sweep
from .prompts import read_class_names, read_templates
from .retrieval import Retrieved, retrieval_metrics, retrieve
from .sets import CaptionedImages, ClassifiedImages, Images, Quadruples
from .shift import (
    BaselineLine,
    fit_baseline,
    inside,
    plot_shift,
    read_baselines,
    shift_metrics,
    wilson_interval,
)
from .taxonomy import Taxonomy
from .zero_shot import (
    Classified,
    class_embeddings,
    classification_metrics,
    classify,
    zero_shot_predict,
)

__all__ = [
    "BaselineLine",
    "CaptionedImages",
    "ClassResult",
    "Classified",
    "ClassifiedImages",
    "Composed",
    "Embedded",
    "Embeddings",
    "FineAndCoarse",
    "Hierarchy",
    "Images",
    "Probe",
    "Quadruples",
    "Retrieved",
    "SuperclassResult",
    "TagResult",
    "Taxonomy",
    "class_embeddings",
    "classification_metrics",
    "classify",
    "coarse_accuracy",
    "compose",
    "confusion_counts",
    "consistency_metrics",
    "embed_images",
    "embed_set",
    "embed_texts",
    "fine_and_coarse",
    "fit_baseline",
    "inside",
    "knn_predict",
    "knn_predictions",
    "knn_probe",
    "linear_probe",
    "load_embeddings",
    "open_set",
    "per_class",
    "per_superclass",
    "per_tag",
    "plot_confusion",
    "plot_shift",
    "plot_superclasses",
    "plot_sweep",
    "quadruple_similarities",
    "read_baselines",
    "read_class_names",
    "read_superclasses",
    "read_templates",
    "retrieval_metrics",
    "retrieve",
    "save_embeddings",
    "shift_metrics",
    "text_image_consistency",
    "wilson_interval",
    "zero_shot_predict",
]
