"""What the papers say of a model beside its accuracy: consistency, levels, geometry, margins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..analysis import (
    batch_margins,
    effective_rank,
    margin_metrics,
    prompt_geometry,
    singular_values,
)
from ..data import InMemoryDataset
from ..evaluation import Hierarchy, consistency_metrics, fine_and_coarse
from ..evaluation.encoder import Encoder
from ..evaluation.pictures import EmbeddedData, EmbeddedSet, embed_data
from ..models.trained import load_trained
from ..training.precision import autocast_for, choose_device, choose_precision
from ..training.sources import RunData

Measures = dict[str, dict[str, float]]  # evaluation set -> name -> value

SETS = ("validation", "shifted", "heldout_shifted")
BATCH = 128  # of the margins, the default batch of training
QUANTILES = 101  # of the margins, from the smallest to the largest: enough to draw a distribution


def measure(folder: Path, data: RunData) -> Measures:
    """Of a trained run's last weights; nothing where its data have no classes.

    Per set: prompt_geometry's names, negative_cosine, consistency@1, 3, 5, 10 (sets of trained
    classes), fine_acc1 and coarse_acc1 by subgroup, effective_rank_image and _text, margin_... of
    images against the prompts of batches of 128, and margin_quantile/000 to /100.
    """
    if data.pictures is None:
        return {}
    trained = load_trained(folder / "checkpoints" / "last.pt")
    run = trained.settings["run"]
    device = choose_device(run["device"])
    created: Any = trained.created
    encoder = Encoder(
        created.model.to(device),
        created.tokenizer,
        created.image_size,
        device,
        autocast_for(choose_precision(run["precision"], device), device),
    )
    embedded = embed_data(encoder, data.pictures)
    return {name: _of_set(embedded, name) for name in SETS if name in embedded.evaluation}


def _of_set(embedded: EmbeddedData, name: str) -> dict[str, float]:
    subset = embedded.evaluation[name]
    features, classes, labels = subset.features, subset.class_features, subset.labels
    measures = prompt_geometry(features, classes, labels)
    if embedded.train is not None and name in embedded.known:
        train = embedded.train
        measures |= consistency_metrics(features, classes, train.features, train.labels)
    ranked = fine_and_coarse(features, classes, labels, _subgroups(subset.pictures))
    measures |= ranked.metrics((1,))
    measures |= {
        "negative_cosine": _negative_cosine(subset),
        "effective_rank_image": effective_rank(singular_values(features)),
        "effective_rank_text": effective_rank(singular_values(classes)),
    }
    size = min(BATCH, len(labels))
    margins = batch_margins(features, classes[labels], size, labels=labels).image_to_text
    measures |= {f"margin_{key}": value for key, value in margin_metrics(margins).items()}
    drawn = torch.quantile(margins, torch.linspace(0, 1, QUANTILES, dtype=margins.dtype))
    return measures | {f"margin_quantile/{i:03}": value for i, value in enumerate(drawn.tolist())}


def _subgroups(pictures: InMemoryDataset) -> Hierarchy:
    level = pictures.levels["subgroup"]
    return Hierarchy(level.names, level.of_class)


def _negative_cosine(subset: EmbeddedSet) -> float:
    """Mean cosine of a picture and the prompt of another class."""
    features, classes = subset.features.double(), subset.class_features.double()
    own = (features * classes[subset.labels]).sum(1)
    others = features @ classes.sum(0) - own
    return (others / max(len(classes) - 1, 1)).mean().item()
