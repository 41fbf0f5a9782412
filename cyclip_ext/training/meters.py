"""Averages between two records of the log."""

from __future__ import annotations

import math
import time

Values = dict[str, float]


class Window:
    """Means over the steps since the last record; a new one starts its clock when it is made."""

    def __init__(self, weights: Values) -> None:
        self.weights = weights  # of the loss's terms: weighted value / weight = raw value
        self.sums: Values = {}
        self.counts: dict[str, int] = {}
        self.steps = 0
        self.images = 0
        self.waited = 0.0
        self.start = time.perf_counter()

    def add(self, values: Values, images: int) -> None:
        """One step: its loss terms and measurements, and how many pictures all ranks saw."""
        for name, value in values.items():
            if math.isfinite(value):  # a lone pair has no margin, an overflow of float16 no norm
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1
        self.steps += 1
        self.images += images

    def record(self) -> Values:
        """Means; loss, each term weighted, and raw as <term>_raw where its weight is not 1.

        data_wait is the share of the time in which the step waited for its batch.
        """
        seconds = time.perf_counter() - self.start
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        raw = {
            f"{name}_raw": means[name] / weight
            for name, weight in self.weights.items()
            if weight != 1 and name in means
        }
        return {
            "loss": sum(value for name, value in means.items() if name.endswith("_loss")),
            **means,
            **raw,
            "images_per_second": self.images / seconds,
            "data_wait": self.waited / seconds,
        }


def shown(record: Values) -> str:
    """Weighted loss terms, temperature and speed, for the progress bar."""
    terms = [
        f"{name.removesuffix('_loss').replace('_', '-')} {value:.3f}"
        for name, value in record.items()
        if name.endswith("_loss")
    ]
    scale, speed = record["logit_scale"], record["images_per_second"]
    return f"{' + '.join(terms)}, scale {scale:.1f}, {speed:.0f} images/s"
