"""Margins of pairs in batches of several sizes, on one set."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from torch import Tensor

from ...analysis import Margins, batch_margins, margin_metrics, plot_margins
from ..outcome import Cell, Outcome, Plot, Table

TASK = "margins"
BATCH_SIZES = (16, 64, 256, 1024)

READING = (
    "The margin of a pair is its cosine less that of the hardest negative in its batch: above 0 "
    "the pair wins. Larger batches have harder negatives. Pairs of one class are no negatives of "
    "each other (arXiv 2310.00927, figure 3)."
)


def margins(
    dataset: str,
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [N, d], row by row
    labels: Tensor,  # int64 [N]
    *,
    seed: int = 0,
) -> Outcome:
    """positive_margin_share@B and margin_mean@B of batches of B pairs, the mean of both directions.

    B: 16, 64, 256, 1024, as far as the set has so many pairs and its random batches a pair with a
    negative; the whole set where there is no such B. Raises ValueError where all labels are equal.
    """
    measure = partial(batch_margins, image_features, text_features, labels=labels, seed=seed)
    found: dict[int, Margins] = {}
    for size in BATCH_SIZES:
        if size <= len(labels):
            # A rare class may be among the pairs that whole batches leave over.
            with suppress(ValueError):
                found[size] = measure(size)
    found = found or {len(labels): measure(len(labels))}
    metrics: dict[str, float] = {}
    rows: list[tuple[Cell, ...]] = []
    for size, values in found.items():
        each = [margin_metrics(v) for v in (values.image_to_text, values.text_to_image)]
        for name, own in zip(("image to text", "text to image"), each, strict=True):
            rows.append((size, name, 100 * own["share_positive"], *_quantiles(own)))
        metrics[f"positive_margin_share@{size}"] = _mean(each, "share_positive")
        metrics[f"margin_mean@{size}"] = _mean(each, "mean")
    return Outcome(
        dataset,
        TASK,
        metrics,
        "Margins in a batch",
        READING,
        (
            Table(
                "By batch size and direction",
                ("batch", "direction", "positive (%)", "5%", "25%", "median", "75%", "95%"),
                tuple(rows),
                "5% to 95%: quantiles of the margin.",
            ),
        ),
        (
            Plot(
                "margins",
                "Distribution of the margins by batch size; right of the line the pair wins.",
                partial(plot_margins, margins=_named(found)),
            ),
        ),
    )


def _named(found: dict[int, Margins]) -> dict[str, Margins]:
    return {f"batches of {size:,}": values for size, values in found.items()}


def _quantiles(own: dict[str, float]) -> tuple[float, ...]:
    return tuple(own[name] for name in ("q5", "q25", "q50", "q75", "q95"))


def _mean(each: list[dict[str, float]], name: str) -> float:
    return sum(own[name] for own in each) / len(each)
