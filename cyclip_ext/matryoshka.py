"""A loss over prefixes of the features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._inputs import check_number
from .losses import Terms


class MatryoshkaLoss(nn.Module):
    """The weighted sum of a loss over prefixes of the features (nested widths).

    L = sum_w weights[w] loss(x[:, :w], y[:, :w]). Each prefix takes the memory of the loss itself.
    In the dictionary, names end in the width: "contrastive_64_loss", "image_margin_64".

    Args:
        loss: a loss of cyclip_ext.losses, or one with the same call.
        widths: of the prefixes; none may be wider than the features.
        weights: one for each width; 1 by default.

    Source: Kusupati et al. 2022 (arXiv 2205.13147).
    """

    def __init__(
        self,
        loss: nn.Module,
        widths: Sequence[int] = (64, 128, 256, 512),
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        widths = tuple(widths)
        weights = (1.0,) * len(widths) if weights is None else tuple(weights)
        if not isinstance(loss, nn.Module):
            raise TypeError(f"loss must be a module such as CLIPLoss(), got {loss!r}")
        if not all(isinstance(width, int) for width in widths):
            raise TypeError(f"widths must be ints, got {widths}")
        if not widths or min(widths) < 1 or len(set(widths)) < len(widths):
            raise ValueError(f"widths must be different positive numbers, got {widths}")
        if len(weights) != len(widths):
            raise ValueError(
                f"weights must be one for each of the {len(widths)} widths, got {len(weights)}"
            )
        self.loss = loss
        for weight in weights:
            check_number("weights", weight)
        self.widths = widths
        self.weights = weights

    def forward(
        self,
        image_features: Tensor,  # [N, d]
        text_features: Tensor,  # [N, d]
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
        *,
        negative_text_features: Tensor | None = None,  # [M, d]
        negative_image_features: Tensor | None = None,  # [K, d]
        **others: Any,
    ) -> Tensor | Terms:
        """Return the weighted sum over the widths, or every term of every width by name.

        Arguments and errors are those of the loss; further ones are passed on to it.
        """
        towers = image_features, text_features, negative_text_features, negative_image_features
        d = _common_width(*towers)
        terms: Terms = {}
        for width, weight in zip(self.widths, self.weights, strict=True):
            # If they do not fit together, the loss raises: with a group, on all ranks.
            image, text, more_texts, more_images = (
                features if d is None or features is None else features[:, :width]
                for features in towers
            )
            of_width: Terms = self.loss(
                image,
                text,
                logit_scale,
                logit_bias,
                output_dict=True,
                negative_text_features=more_texts,
                negative_image_features=more_images,
                **others,
            )
            if d is not None and width > d:  # now, because ranks of another d have raised above
                raise ValueError(
                    f"widths must not exceed the features' width {d}, got {self.widths}"
                )
            for name, value in of_width.items():
                if name.endswith("_loss"):
                    terms[f"{name.removesuffix('_loss')}_{width}_loss"] = weight * value
                else:
                    terms[f"{name}_{width}"] = value
        if output_dict:
            return terms
        return torch.stack([v for name, v in terms.items() if name.endswith("_loss")]).sum()

    def extra_repr(self) -> str:
        """List widths and weights."""
        return f"widths={self.widths}, weights={self.weights}"


def _common_width(*towers: Tensor | None) -> int | None:
    """Return d if all that are given are matrices [N, d], else None."""
    given = [features for features in towers if features is not None]
    if not all(isinstance(features, Tensor) and features.dim() == 2 for features in given):
        return None
    widths = {features.shape[1] for features in given}
    return widths.pop() if len(widths) == 1 else None
