"""Measurements of a trained pair of towers: zero-shot, retrieval, consistency.

Everything here takes embeddings, or any model with open_clip's `encode_image` and `encode_text`.
Nothing here knows how the model was trained: training imports evaluation, never the other way.
Metric names are CLIP_benchmark's (acc1, acc5, mean_per_class_recall, image_retrieval_recall@5);
all are shares between 0 and 1.
"""

from .consistency import knn_predict, text_image_consistency
from .embed import embed_images, embed_texts
from .retrieval import retrieval_metrics
from .zero_shot import (
    class_embeddings,
    classification_metrics,
    coarse_accuracy,
    zero_shot_predict,
)

__all__ = [
    "class_embeddings",
    "classification_metrics",
    "coarse_accuracy",
    "embed_images",
    "embed_texts",
    "knn_predict",
    "retrieval_metrics",
    "text_image_consistency",
    "zero_shot_predict",
]
