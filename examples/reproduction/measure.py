"""Measures of a model besides its accuracy: consistency, levels, geometry, margins."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cyclip_ext.evaluation import (
    Embeddings,
    Encoder,
    batch_margins,
    consistency_metrics,
    effective_rank,
    encode_splits,
    fine_and_coarse,
    margin_metrics,
    prompt_geometry,
    singular_values,
)
from cyclip_ext.models.trained import load_trained
from cyclip_ext.training.data import RunData
from cyclip_ext.training.precision import autocast_for, choose_device, choose_precision

Measures = dict[str, dict[str, float]]  # evaluation set -> name -> value

SETS = ("validation", "shifted", "heldout_shifted")
BATCH = 128  # of the margins, the default batch of training
QUANTILES = 101  # of the margins, from the smallest to the largest: enough to draw a distribution


def measure(folder: Path, data: RunData) -> Measures:
    """Measure the last weights of a trained run; return nothing if its data have no classes.

    Per set: prompt_geometry's names, negative_cosine, consistency@1, 3, 5, 10 (sets of trained
    classes), fine_acc1 and coarse_acc1 by subgroup, effective_rank_image and _text, margin_... of
    images against the prompts of batches of 128, and margin_quantile/000 to /100.
    """
    if data.splits is None:
        return {}
    trained = load_trained(folder / "checkpoints" / "last.pt")
    run = trained.settings["run"]
    device = choose_device(run["device"])
    autocast = autocast_for(choose_precision(run["precision"], device), device)
    encoder = Encoder.of(trained, device, autocast=autocast)
    train, evaluation = encode_splits(data.splits, encoder)
    return {name: _of_set(evaluation[name], train) for name in SETS if name in evaluation}


def _of_set(embedded: Embeddings, train: Embeddings | None) -> dict[str, float]:
    found = embedded.classification()
    assert found is not None
    features, classes, labels = found
    measures = prompt_geometry(*found)
    if train is not None and embedded.class_names == train.class_names:
        assert train.labels is not None
        measures |= consistency_metrics(features, classes, train.image_features, train.labels)
    measures |= fine_and_coarse(*found, embedded.levels["subgroup"]).metrics((1,))
    measures |= {
        "negative_cosine": _negative_cosine(features.double(), classes.double(), labels),
        "effective_rank_image": effective_rank(singular_values(features)),
        "effective_rank_text": effective_rank(singular_values(classes)),
    }
    size = min(BATCH, len(labels))
    margins = batch_margins(features, classes[labels], size, labels=labels).image_to_text
    measures |= {f"margin_{key}": value for key, value in margin_metrics(margins).items()}
    drawn = torch.quantile(margins, torch.linspace(0, 1, QUANTILES, dtype=margins.dtype))
    return measures | {f"margin_quantile/{i:03}": value for i, value in enumerate(drawn.tolist())}


def _negative_cosine(features: Tensor, classes: Tensor, labels: Tensor) -> float:
    """Average the cosine of an image and the prompt of another class."""
    own = (features * classes[labels]).sum(1)
    others = features @ classes.sum(0) - own
    return (others / max(len(classes) - 1, 1)).mean().item()
