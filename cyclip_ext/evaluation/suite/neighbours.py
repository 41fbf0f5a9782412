"""Do text space and image space agree on one set?"""

from __future__ import annotations

from torch import Tensor

from ..consistency import consistency_metrics
from ..outcome import Outcome

TASK = "consistency"
KS = (1, 3, 5, 10)

READING = (
    "How often the class of the nearest text is also the class of the k nearest labelled training "
    "pictures. It does not ask whether either is right: it says whether the two spaces agree "
    "(CyCLIP)."
)


def consistency(
    dataset: str,
    image_features: Tensor,  # [N, d]
    class_features: Tensor,  # [C, d]
    train_features: Tensor,  # [T, d]
    train_labels: Tensor,  # int64 [T]
) -> Outcome:
    """consistency@k for k = 1, 3, 5, 10, as far as there are so many training pictures."""
    ks = tuple(k for k in KS if k <= len(train_features))
    metrics = consistency_metrics(image_features, class_features, train_features, train_labels, ks)
    return Outcome(dataset, TASK, metrics, "Consistency of image and text space", READING)
