"""Margins of pairs within batches: the cosine of a pair less that of its hardest negative.

Source: Chen et al. 2024 (arXiv 2310.00927), figure 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..._plotting import line_style, plain
from ..embeddings import BLOCK, Embeddings, check_labels, unit_pairs
from .base import Cell, Metric, Plot, Table, TaskOptions, TaskResult, Unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASK, OF_MODELS = "margins", "margins_of_checkpoints"

BATCH_SIZES = (16, 64, 256, 1024)
MODELS_BATCH = 128  # batch size of the comparison of models
ROUNDING = 1e-12  # of a difference of two cosines in float64: less is a tie
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
QUANTILE_HEADER = ("5%", "25%", "median", "75%", "95%")


@dataclass(frozen=True)
class Margins:
    """Margins of the pairs that have a negative, float64, in the order of the shuffled batches."""

    image_to_text: Tensor  # S_ii - max_{j != i} S_ij
    text_to_image: Tensor  # S_ii - max_{j != i} S_ji


def batch_margins(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [N, d]
    batch_size: int,
    *,
    labels: Tensor | None = None,  # int64 [N]
    seed: int = 0,
    repeats: int = 1,
) -> Margins:
    """Measure margins in random batches: pairs are shuffled and cut into batches, `repeats` times.

    labels: pairs with equal labels (equal captions) are not negatives of each other; a pair without
    a negative in its batch has no margin. Without labels all others are negatives.
    A margin falls as the batch grows, so all batches are of one size: the N mod batch_size pairs
    that remain of a shuffle are not used. Cost O(repeats N batch_size d), memory O(N d).

    Raises ValueError for a batch_size outside of 2 ... N, repeats below 1, or no pair with
    a negative.
    """
    images, texts = unit_pairs(image_features, text_features)
    n = len(images)
    if labels is None:
        labels = torch.arange(n)
    check_labels(labels, "labels", images, "image_features")
    if not 2 <= batch_size <= n:
        raise ValueError(f"batch_size must be in 2 ... {n} (the number of pairs), got {batch_size}")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    generator = torch.Generator().manual_seed(seed)
    to_text, to_image = [], []
    for _ in range(repeats):
        order = torch.randperm(n, generator=generator)[: n - n % batch_size]
        for batch in order.split(batch_size):
            image, text, own = images[batch], texts[batch], labels[batch]
            positive = (image * text).sum(1)
            to_text.append(positive - _hardest(image, text, own))
            to_image.append(positive - _hardest(text, image, own))
    margins = [torch.cat(parts) for parts in (to_text, to_image)]
    margins = [values[values.isfinite()] for values in margins]  # -inf: no negative
    if not len(margins[0]):
        raise ValueError("labels are equal within every batch: no pair has a negative")
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
    if not len(margins):
        raise ValueError("margins is empty")
    ordered = margins.sort().values  # torch.quantile refuses more than 2^24 values
    metrics = {
        "mean": margins.mean().item(),
        "share_positive": (margins > ROUNDING).double().mean().item(),
    }
    for q in QUANTILES:
        position = q * (len(ordered) - 1)
        below = int(position)
        above = min(below + 1, len(ordered) - 1)
        metrics[f"q{round(100 * q)}"] = torch.lerp(
            ordered[below], ordered[above], position - below
        ).item()
    return metrics


def plot_margins(figure: Figure, margins: Mapping[str, Margins]) -> None:
    """Plot densities of the margins in both directions, one curve per name, over common bins.

    Raises ValueError without a curve.
    """
    if not margins:
        raise ValueError("margins is empty: nothing to plot")
    figure.set_layout_engine("constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    both = torch.cat([torch.cat([m.image_to_text, m.text_to_image]) for m in margins.values()])
    low, high = min(both.min().item(), 0.0), max(both.max().item(), 0.0)
    edges = [-0.5, 0.5]
    if high > low:  # in the margins' own dtype, so that the last bin has the largest
        edges = torch.linspace(low, high, 61, dtype=torch.float64).tolist()
    for axes, direction in zip(panels, ("image_to_text", "text_to_image"), strict=True):
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
            # A rare class may be among the pairs that whole batches leave over.
            with suppress(ValueError):
                found[size] = measure(size)
    found = found or {len(labels): measure(len(labels))}
    values: dict[str, float] = {}
    metrics: list[Metric] = []
    rows: list[tuple[Cell, ...]] = []
    for size, margins in found.items():
        each = [margin_metrics(part) for part in (margins.image_to_text, margins.text_to_image)]
        for name, own in zip(("image to text", "text to image"), each, strict=True):
            rows.append((size, name, 100 * own["share_positive"], *_quantiles(own)))
        values[f"positive_margin_share@{size}"] = _mean(each, "share_positive")
        values[f"margin_mean@{size}"] = _mean(each, "mean")
        metrics += [
            Metric(f"positive_margin_share@{size}", f"positive, batches of {size}", Unit.SHARE),
            Metric(f"margin_mean@{size}", f"mean margin, batches of {size}"),
        ]
    table = Table(
        "By batch size and direction",
        ("batch", "direction", "positive (%)", *QUANTILE_HEADER),
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
        values,
        tuple(metrics),
        "Margins in a batch",
        "The margin of a pair is its cosine less that of the hardest negative in its batch: above "
        "0 the pair wins. Larger batches have harder negatives. Pairs of one class are not "
        "negatives of each other (arXiv 2310.00927, figure 3).",
        (table,) if options.details else (),
        (plot,) if options.details else (),
    )


def compare_models(models: Mapping[str, Embeddings], *, seed: int = 0) -> TaskResult:
    """Measure margin_median/<model> and positive_margin_share/<model>, of images against texts.

    models: name -> embeddings of the same dataset. Batches have 128 pairs, or all of a smaller
    dataset. It takes several models and so is not in TASKS.
    Raises ValueError without models, and unless all have pairs of two labels at least.
    """
    if not models:
        raise ValueError("models is empty: name at least one")
    found: dict[str, Margins] = {}
    for name, embeddings in models.items():
        pairs = embeddings.pairs()
        if pairs is None:
            raise ValueError(
                f"{embeddings.name} has no pairs of different labels, so margins cannot be compared"
            )
        size = min(MODELS_BATCH, len(pairs[0]))
        found[name] = batch_margins(*pairs[:2], size, labels=pairs[2], seed=seed)
    each = {name: margin_metrics(margins.image_to_text) for name, margins in found.items()}
    declared = {
        "q50": ("margin_median", "median margin", Unit.NUMBER),
        "share_positive": ("positive_margin_share", "positive margins", Unit.SHARE),
    }
    metrics = {
        Metric(f"{key}/{name}", f"{label}, {name}", unit): own[value]
        for value, (key, label, unit) in declared.items()
        for name, own in each.items()
    }
    table = Table(
        f"Images against texts, batches of {size}",
        ("model", "positive (%)", *QUANTILE_HEADER),
        tuple((name, 100 * own["share_positive"], *_quantiles(own)) for name, own in each.items()),
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
        {metric.key: value for metric, value in metrics.items()},
        tuple(metrics),
        "Margins of several models",
        "The same images and texts in the same batches, embedded by each model. Further right is "
        "better: the pair is that far above its hardest negative (arXiv 2310.00927, figure 3).",
        (table,),
        (plot,),
        (first,),
    )


def _quantiles(own: Mapping[str, float]) -> tuple[float, ...]:
    return tuple(own[f"q{round(100 * q)}"] for q in QUANTILES)


def _mean(each: list[dict[str, float]], name: str) -> float:
    return sum(own[name] for own in each) / len(each)
