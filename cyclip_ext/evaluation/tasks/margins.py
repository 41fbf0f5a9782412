"""Margins of pairs within batches: the cosine of a pair less that of its hardest negative.

Source: Chen et al. 2024 (arXiv 2310.00927), figure 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..._plotting import line_style, plain
from ..embeddings import BLOCK, Embeddings, unit_rows
from .base import Cell, Metric, Plot, Table, TaskOptions, TaskResult, Unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASK, OF_MODELS = "margins", "margins_of_checkpoints"

BATCH_SIZES = (16, 64, 256, 1024)
MODELS_BATCH = 128  # batch size of the comparison of models
ROUNDING = 1e-12  # of a difference of two cosines in float64: less is a tie
QUANTILES = {"q5": "5%", "q25": "25%", "q50": "median", "q75": "75%", "q95": "95%"}


class Margins(NamedTuple):
    """Margins of the pairs that have a negative, float64, in the order of the shuffled batches."""

    image_to_text: Tensor  # S_ii - max_{j != i} S_ij
    text_to_image: Tensor  # S_ii - max_{j != i} S_ji


def batch_margins(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [N, d]
    batch_size: int,
    labels: Tensor,  # int64 [N]
    *,
    seed: int = 0,
) -> Margins:
    """Measure margins in random batches: pairs are shuffled and cut into batches.

    labels: pairs with equal labels (equal captions) are not negatives of each other; a pair without
    a negative in its batch has no margin. A margin falls as the batch grows, so all batches are of
    one size: the N mod batch_size pairs that remain are not used. Cost O(N batch_size d), memory
    O(N d).

    Raises ValueError for a batch_size outside of 2 ... N, and if no pair has a negative.
    """
    images, texts = unit_rows(image_features), unit_rows(text_features)
    n = len(images)
    if not 2 <= batch_size <= n:
        raise ValueError(f"batch_size must be in 2 ... {n} (the number of pairs), got {batch_size}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    to_text, to_image = [], []
    for batch in order[: n - n % batch_size].split(batch_size):
        image, text, own = images[batch], texts[batch], labels[batch]
        positive = (image * text).sum(1)
        to_text.append(positive - _hardest(image, text, own))
        to_image.append(positive - _hardest(text, image, own))
    margins = [torch.cat(parts) for parts in (to_text, to_image)]
    margins = [values[values.isfinite()] for values in margins]  # -inf: no negative
    if not len(margins[0]):
        raise ValueError(
            "labels are equal within every batch, so no pair has a negative; use larger batches or "
            "another seed"
        )
    return Margins(*margins)


def _hardest(
    rows: Tensor,  # float64 [B, d], unit length
    cols: Tensor,  # float64 [B, d], unit length
    labels: Tensor,  # int64 [B]
) -> Tensor:
    """Return the largest cosine with a column of another label, float64 [B], or -inf."""
    hardest = rows.new_full((len(rows),), -torch.inf)
    parts = zip(
        rows.split(BLOCK), labels.split(BLOCK), hardest.split(BLOCK), strict=True
    )  # the splits of `hardest` are views, filled here
    for row_block, row_own, best in parts:
        for col_block, col_own in zip(cols.split(BLOCK), labels.split(BLOCK), strict=True):
            similarity = row_block @ col_block.T
            similarity.masked_fill_(row_own[:, None] == col_own[None, :], -torch.inf)
            torch.maximum(best, similarity.amax(1), out=best)
    return hardest


def margin_metrics(margins: Tensor) -> dict[str, float]:
    """Return mean, share_positive, q5, q25, q50, q75 and q95 of one direction's margins.

    A tie with a negative is not positive.
    """
    quantiles = np.quantile(margins.numpy(), [int(key[1:]) / 100 for key in QUANTILES])
    return {
        "mean": margins.mean().item(),
        "share_positive": (margins > ROUNDING).double().mean().item(),
        **dict(zip(QUANTILES, quantiles.tolist(), strict=True)),
    }


def plot_margins(figure: Figure, margins: Mapping[str, Margins]) -> None:
    """Plot densities of the margins in both directions, one curve per name, over common bins."""
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    both = torch.cat([values for each in margins.values() for values in each])
    low, high = min(both.min().item(), 0.0), max(both.max().item(), 0.0)
    edges = [-0.5, 0.5]
    if high > low:  # in the margins' own dtype, so that the last bin has the largest
        edges = torch.linspace(low, high, 61, dtype=torch.float64).tolist()
    for axes, direction in zip(panels, Margins._fields, strict=True):
        for index, (name, values) in enumerate(margins.items()):
            shown = getattr(values, direction)
            style = line_style(index)
            axes.hist(shown, bins=edges, density=True, histtype="step", lw=1.4, label=name, **style)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel("margin (cosine)")
        axes.set_title(direction.replace("_", " "), fontsize=10)
        plain(axes)
    panels[0].set_ylabel("density")
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=2, frameon=False, fontsize=9)


def run(embeddings: Embeddings, options: TaskOptions) -> TaskResult | None:
    """Measure positive_margin_share@B and margin_mean@B, means of both directions.

    B is 16, 64, 256 and 1024, as far as there are so many pairs, and a pair with a negative in
    their random batches. If no B is possible, it is the number of pairs.
    """
    pairs = embeddings.pairs()
    if pairs is None:
        return None
    images, texts, labels = pairs
    measure = partial(batch_margins, images, texts, labels=labels, seed=options.seed)
    found: dict[int, Margins] = {}
    for size in BATCH_SIZES:
        if size <= len(labels):
            # The remainder may hold all pairs of a rare class.
            with suppress(ValueError):
                found[size] = measure(size)
    found = found or {len(labels): measure(len(labels))}
    measured: dict[Metric, float] = {}
    rows: list[tuple[Cell, ...]] = []
    for size, margins in found.items():
        each = [margin_metrics(values) for values in margins]
        for direction, own in zip(Margins._fields, each, strict=True):
            rows.append((size, direction.replace("_", " "), *_cells(own)))
        positive, mean = (sum(own[key] for own in each) / 2 for key in ("share_positive", "mean"))
        key, label = f"positive_margin_share@{size}", f"positive, batches of {size}"
        measured[Metric(key, label, Unit.SHARE)] = positive
        measured[Metric(f"margin_mean@{size}", f"mean margin, batches of {size}")] = mean
    table = Table(
        "By batch size and direction",
        ("batch", "direction", "positive (%)", *QUANTILES.values()),
        tuple(rows),
        "5% to 95%: quantiles of the margin.",
    )
    plot = Plot(
        "margins",
        "Distribution of the margins by batch size; to the right of the line the pair wins.",
        partial(plot_margins, margins={f"batches of {size:,}": own for size, own in found.items()}),
    )
    return TaskResult(
        embeddings.name,
        TASK,
        measured,
        "Margins in a batch",
        "The margin of a pair is its cosine less that of the hardest negative in its batch: above "
        "0 the pair wins. Larger batches have harder negatives. Pairs of one class are not "
        "negatives of each other (arXiv 2310.00927, figure 3).",
        (table,),
        (plot,),
    )


def compare_models(models: Mapping[str, Embeddings], *, seed: int = 0) -> TaskResult:
    """Measure margin_median/<model> and positive_margin_share/<model>, of images against texts.

    models: name -> embeddings of the same dataset. Batches have 128 pairs, or all of a smaller
    dataset. It takes several models and so is not in TASKS.
    Raises ValueError unless all have pairs of two labels at least.
    """
    found: dict[str, Margins] = {}
    for name, embeddings in models.items():
        pairs = embeddings.pairs()
        if pairs is None:
            raise ValueError(
                f"{embeddings.name} has no pairs of different labels, so margins cannot be compared"
            )
        images, texts, labels = pairs
        size = min(MODELS_BATCH, len(labels))
        found[name] = batch_margins(images, texts, size, labels, seed=seed)
    each = {name: margin_metrics(margins.image_to_text) for name, margins in found.items()}
    medians = {
        Metric(f"margin_median/{name}", f"median margin, {name}"): own["q50"]
        for name, own in each.items()
    }
    positive = {
        Metric(f"positive_margin_share/{name}", f"positive margins, {name}", Unit.SHARE): own[
            "share_positive"
        ]
        for name, own in each.items()
    }
    table = Table(
        f"Images against texts, batches of {size}",
        ("model", "positive (%)", *QUANTILES.values()),
        tuple((name, *_cells(own)) for name, own in each.items()),
    )
    plot = Plot(
        OF_MODELS,
        f"Distribution of the margins in batches of {size}; to the right of the line the pair "
        "wins.",
        partial(plot_margins, margins=found),
    )
    first = next(iter(models.values()))
    return TaskResult(
        first.name,
        OF_MODELS,
        medians | positive,
        "Margins of several models",
        "The same images and texts in the same batches, embedded by each model. Further right is "
        "better: the pair is that far above its hardest negative (arXiv 2310.00927, figure 3).",
        (table,),
        (plot,),
        (first,),
    )


def _cells(own: Mapping[str, float]) -> tuple[float, ...]:
    """Return the share of positive margins in percent, and the quantiles."""
    return 100 * own["share_positive"], *(own[key] for key in QUANTILES)
