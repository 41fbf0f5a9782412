"""Invented results of trainings, for tests of pages and choices."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from reproduction.ablations import make_ablation
from reproduction.runs import Method, Result, Run

from cyclip_ext.training.config import TrainConfig

Accuracy = Callable[[str, TrainConfig], dict[str, float]]  # dataset -> top-1


def label(method: Method) -> str:
    """Return the label of the objective that a worker would train."""
    return make_ablation(method.ablation, method.config, pairs=2).label


def result(name: str, method: Method, accuracy: dict[str, float]) -> Result:
    """Return all numbers that studies show; except for the accuracies they depend on the name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))

    def draw() -> float:
        return torch.rand((), generator=generator).item()

    metrics = {
        group: {"acc1": accuracy.get(group, draw()), "image_retrieval_recall@5": draw()}
        for group in ("validation", "shifted", "in_domain", "heldout_shifted")
    }
    names = ["consistency@1", "fine_acc1", "coarse_acc1", "margin_q50", "cyclip_alignment"]
    names += ["negative_cosine", "modality_gap", "uniformity_image", "uniformity_text"]
    names += ["effective_rank_image", "effective_rank_text"]
    quantiles = sorted(draw() - 0.5 for _ in range(101))
    shifted = {key: draw() for key in names}
    shifted |= {f"margin_quantile/{i:03}": value for i, value in enumerate(quantiles)}
    return {
        "label": label(method),
        "seed": method.config.run.seed,
        "logit_scale": 100 * draw(),
        "train_seconds": 1.0,
        "metrics": metrics,
        "measures": {"shifted": shifted},
    }


class Pretender:
    """A replacement of runs.complete that records the runs and trains nothing.

    stop_at: name of a run at which the study is interrupted.
    """

    def __init__(self, accuracy: Accuracy, stop_at: str = "") -> None:
        self.accuracy = accuracy
        self.stop_at = stop_at
        self.methods: dict[str, Method] = {}

    @property
    def configs(self) -> dict[str, TrainConfig]:
        """The settings of each run."""
        return {name: method.config for name, method in self.methods.items()}

    @property
    def labels(self) -> dict[str, str]:
        """The label of each run's objective."""
        return {name: label(method) for name, method in self.methods.items()}

    def __call__(self, runs: Sequence[Run], folder: Path, jobs: int) -> dict[str, Result] | None:
        results = {}
        for run in runs:
            if run.name == self.stop_at:
                return None
            self.methods[run.name] = run.method
            accuracy = self.accuracy(run.name, run.method.config)
            results[run.name] = result(run.name, run.method, accuracy)
        return results
