"""What the image features of one set are worth to a classifier trained on others' features."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor

from ..outcome import Outcome, Plot, Table
from ..probes import Probe, knn_probe, linear_probe, plot_sweep
from .data import Labelled

LINEAR, KNN = "linear_probe", "knn_probe"

READING = (
    "A classifier learns from the image features of labelled training pictures alone; no text is "
    "involved. Its setting is chosen on a part of these, the set is only scored."
)


def linear(
    dataset: str, image_features: Tensor, labels: Tensor, train: Labelled, *, seed: int = 0
) -> Outcome:
    """Logistic regression: lp_acc1, lp_acc5, lp_mean_per_class_recall."""
    probe = linear_probe(train.features, train.labels, image_features, labels, seed=seed)
    return _outcome(dataset, LINEAR, "lp", "Linear probe", probe)


def knn(
    dataset: str, image_features: Tensor, labels: Tensor, train: Labelled, *, seed: int = 0
) -> Outcome:
    """The nearest pictures vote: knn_acc1, knn_mean_per_class_recall.

    Not acc5: k neighbours name k classes at most, so of one neighbour it would be acc1.
    """
    probe = knn_probe(train.features, train.labels, image_features, labels, seed=seed)
    outcome = _outcome(dataset, KNN, "knn", "k-NN probe", probe)
    metrics = {name: value for name, value in outcome.metrics.items() if name != "knn_acc5"}
    return replace(outcome, metrics=metrics)


def _outcome(dataset: str, task: str, prefix: str, title: str, probe: Probe) -> Outcome:
    sweep = Table(
        f"Choice of {probe.setting}",
        (probe.setting, "top-1 on the part to choose on (%)"),
        tuple((f"{point.value:.4g}", 100 * point.validation_acc1) for point in probe.sweep),
        "; ".join([f"{probe.setting} = {probe.chosen:.4g} is taken", *probe.notes]) + ".",
    )
    plot = Plot(
        f"{task}_choice",
        f"Accuracy on the part of the training pictures that {probe.setting} is chosen on.",
        partial(plot_sweep, probe=probe),
        (6.4, 3.2),
    )
    return Outcome(
        dataset,
        task,
        {f"{prefix}_{name}": value for name, value in probe.metrics.items()},
        title,
        READING,
        (sweep,),
        (plot,) if probe.sweep else (),
    )
