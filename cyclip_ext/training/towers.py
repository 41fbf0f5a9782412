"""A model's two towers as one call, which DistributedDataParallel and torch.compile can wrap."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

Features = tuple[Tensor, Tensor, Tensor, Tensor | None]


class Towers(nn.Module):
    """(images, tokens) -> (image features, text features, logit scale, logit bias or None).

    Features are raw: the losses normalize without rounding to bfloat16 first. The temperature is
    an output too, since a wrapper synchronizes what its forward pass hands out.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, images: Tensor, tokens: Tensor) -> Features:
        """[n, 3, s, s], [n, context_length] -> [n, d], [n, d], scalar, scalar or None."""
        return (
            self.model.encode_image(images),
            self.model.encode_text(tokens),
            self.model.logit_scale.exp(),
            getattr(self.model, "logit_bias", None),
        )
