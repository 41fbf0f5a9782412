"""Margins of several models on one set: training temperatures or objectives side by side."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from ...analysis import batch_margins, margin_metrics, plot_margins
from ...data import InMemoryDataset
from ..encoder import Encoder
from ..outcome import Outcome, Plot, Table
from ..sets import ClassifiedImages
from ..zero_shot import NAME_ONLY, class_embeddings
from .opened import Prompts

TASK = "margins_of_checkpoints"
BATCH_SIZE = 128

READING = (
    "The same pictures and prompts in the same batches, embedded by each model. Further right is "
    "better: the pair is that far above its hardest negative (arXiv 2310.00927, figure 3)."
)


def embedded_pairs(
    encoder: Encoder, data: InMemoryDataset | ClassifiedImages, prompts: Prompts
) -> tuple[Tensor, Tensor, Tensor]:  # [N, d], [N, d], int64 [N]
    """Pictures, the prompt of each one's class, and its class, by one model."""
    if isinstance(data, InMemoryDataset):
        templates = prompts.templates or NAME_ONLY
        assert data.labels is not None
        classes = class_embeddings(encoder.texts, data.class_names, templates)
        return encoder.pictures(data), classes[data.labels], data.labels
    found = encoder.opened(data)
    labels = found.data.labels
    return found.image_features, prompts.embedded(encoder, data)[labels], labels


def margins_of_checkpoints(
    dataset: str,
    models: Mapping[str, tuple[Tensor, Tensor]],  # name -> [N, d], [N, d], row by row
    labels: Tensor,  # int64 [N]
    *,
    seed: int = 0,
) -> Outcome:
    """margin_median/<model> and positive_margin_share/<model>, of images against texts.

    Batches have 128 pairs, or all of a smaller set; pairs of one label are no negatives. Raises
    ValueError where all labels are equal.
    """
    size = min(BATCH_SIZE, len(labels))
    found = {
        name: batch_margins(images, texts, size, labels=labels, seed=seed)
        for name, (images, texts) in models.items()
    }
    each = {name: margin_metrics(margins.image_to_text) for name, margins in found.items()}
    metrics = {f"margin_median/{name}": own["q50"] for name, own in each.items()}
    metrics |= {
        f"positive_margin_share/{name}": own["share_positive"] for name, own in each.items()
    }
    rows = tuple(
        (
            name,
            100 * own["share_positive"],
            own["q5"],
            own["q25"],
            own["q50"],
            own["q75"],
            own["q95"],
        )
        for name, own in each.items()
    )
    header = ("model", "positive (%)", "5%", "25%", "median", "75%", "95%")
    return Outcome(
        dataset,
        TASK,
        metrics,
        "Margins of several models",
        READING,
        (Table(f"Images against texts, batches of {size}", header, rows),),
        (
            Plot(
                "margins_of_checkpoints",
                f"Distribution of the margins in batches of {size}; right of the line the pair "
                "wins.",
                partial(plot_margins, margins=found),
            ),
        ),
    )
