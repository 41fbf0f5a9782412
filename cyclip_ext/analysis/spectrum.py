"""How many directions of the embedding space a tower uses: singular values, effective rank."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._plotting import line_style, plain
from .directions import unit_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def singular_values(
    features: Tensor,  # [N, d], one tower
    *,
    centred: bool = True,
) -> Tensor:
    """Singular values of the unit rows divided by sqrt(N), falling, float64 [min(N, d)].

    Centred, the mean row is subtracted first: squares are variances along the principal directions,
    and their sum is 1 - |mean|^2. Uncentred, the squares sum to 1, and the first one is mostly the
    mean, the axis of the cone that all rows of a tower lie in: it says little about how the rows
    differ. Values that are rounding of the subtraction are 0.
    """
    (rows,) = unit_rows(features=features)
    if centred:
        rows = rows - rows.mean(0)
    values = torch.linalg.svdvals(rows / len(rows) ** 0.5)
    rounding = max(rows.shape) * torch.finfo(values.dtype).eps  # the rows have length 1
    return torch.where(values < rounding, 0, values)


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of the singular values divided by their sum: 1 to rank; 0 for all zero.

    Source: Roy and Vetterli 2007, definition 1.
    """
    if not values.any():
        return 0.0
    shares = values / values.sum()
    return math.exp(torch.special.entr(shares).sum().item())  # entr: -p log p, 0 at 0


def directions_for(values: Tensor, share: float) -> int:
    """How many principal directions hold `share` (0 to 1) of the sum of squares; 0 for all zero."""
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    if not values.any():
        return 0
    held = values.square().cumsum(0)
    # A direction that adds rounding alone must not be needed to reach a share that is held.
    enough = share * held[-1] * (1 - 1e-12)
    return int((held < enough).sum()) + 1


def spectrum_metrics(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [M, d]
) -> dict[str, float]:
    """Of each tower, centred: effective_rank, directions_90 and directions_99, `_image` or `_text`.

    directions: how many hold 90 and 99 percent of the variance.
    """
    unit_rows(image_features=image_features, text_features=text_features)
    metrics = {}
    for tower, features in (("image", image_features), ("text", text_features)):
        values = singular_values(features)
        metrics[f"effective_rank_{tower}"] = effective_rank(values)
        metrics[f"directions_90_{tower}"] = float(directions_for(values, 0.9))
        metrics[f"directions_99_{tower}"] = float(directions_for(values, 0.99))
    return metrics


def plot_spectrum(figure: Figure, spectra: Mapping[str, Tensor]) -> None:
    """Singular values against their rank, one curve per name, with effective ranks in the legend.

    spectra: name to what `singular_values` returned. Zeros are not drawn. Raises ValueError where
    there is no curve.
    """
    if not spectra:
        raise ValueError("spectra is empty: nothing to plot")
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    for index, (name, values) in enumerate(spectra.items()):
        shown = values[values > 0]
        axes.plot(
            range(1, len(shown) + 1),
            shown,
            label=f"{name} (effective rank {effective_rank(values):.1f})",
            linewidth=1.5,
            marker="." if len(shown) <= 32 else None,
            **line_style(index),
        )
    axes.set(xlabel="principal direction", ylabel="singular value / √N", yscale="log")
    axes.legend(frameon=False, fontsize=9)
    plain(axes)
