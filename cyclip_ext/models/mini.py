"""A CLIP of about a million parameters for images of 48 pixels, with open_clip's interface.

open_clip's blocks are made for images of 224 pixels; docs/results.md compares them with these.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize, relu
from torch.utils.checkpoint import checkpoint

from .batch_norm import kept_running_statistics

PAD = 0  # token id of padding, as in open_clip's SimpleTokenizer


@dataclass(frozen=True)
class ImageConfig:
    """image_size in pixels; widths: channels of each stage.

    The first stage works at a quarter of the image's resolution, each further one at half of the
    previous one.
    """

    image_size: int = 48
    widths: Sequence[int] = (48, 96, 192)


@dataclass(frozen=True)
class TextConfig:
    """A transformer of `layers` layers of `width` channels over at most context_length tokens."""

    context_length: int = 24
    vocab_size: int = 49408
    width: int = 128
    heads: int = 2
    layers: int = 1


class ImageTower(nn.Module):
    """Residual convolutions on a 6x6 stem of stride 4, averaged over positions.

    [n, 3, s, s] -> [n, embed_dim].
    """

    def __init__(self, config: ImageConfig, embed_dim: int) -> None:
        super().__init__()
        self.image_size = config.image_size
        widths = list(config.widths)
        self.stem = nn.Conv2d(3, widths[0], 6, stride=4, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        self.stages = nn.Sequential(
            _Residual(widths[0], widths[0], stride=1),
            *(_Residual(a, b, stride=2) for a, b in pairwise(widths)),
        )
        self.projection = nn.Linear(widths[-1], embed_dim)
        self.grad_checkpointing = False

    def forward(self, image: Tensor) -> Tensor:
        # Channels last is the layout oneDNN and cuDNN convolve without reordering.
        image = image.contiguous(memory_format=torch.channels_last)
        positions = relu(self.stem_norm(self.stem(image)))
        for stage in self.stages:
            positions = _apply(stage, positions, checkpointed=self.grad_checkpointing)
        pooled: Tensor = self.projection(positions.mean((2, 3)))
        return pooled


class TextTower(nn.Module):
    """Token and position embeddings, transformer layers, mean over the tokens, projection.

    int64 [n, context_length], padded with PAD -> [n, embed_dim]. The mean is taken instead of the
    last token, because captions have few words and the transformer a single layer.
    """

    def __init__(self, config: TextConfig, embed_dim: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.width,
                config.heads,
                4 * config.width,
                dropout=0.0,
                activation=gelu,
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.projection = nn.Linear(config.width, embed_dim, bias=False)
        self.grad_checkpointing = False

    def forward(self, text: Tensor) -> Tensor:
        present = text != PAD
        length = text.shape[1]
        if not (torch.compiler.is_compiling() or _is_tracing()):
            # Captions are short: no work on padding. A traced graph serves captions of any length.
            length = int(present.any(0).sum().clamp(min=1))
            text, present = text[:, :length], present[:, :length]
        padding = ~present
        padding[:, 0] = False  # an empty caption attends to one token: attention to none is NaN
        hidden = self.token_embedding(text) + self.positional_embedding[:length]
        for layer in self.layers:
            hidden = _apply(
                layer, hidden, src_key_padding_mask=padding, checkpointed=self.grad_checkpointing
            )
        weight = present[:, :, None].to(hidden.dtype)
        mean = (self.norm(hidden) * weight).sum(1) / weight.sum(1).clamp(min=1)
        projected: Tensor = self.projection(mean)
        return projected


class MiniCLIP(nn.Module):
    """An image and a text tower with a temperature; the same calls as open_clip's CLIP.

    logit_scale is stored as its logarithm; logit_bias is None unless init_logit_bias is given
    (SigLIP). output_dict: what `forward` returns.
    """

    def __init__(
        self,
        embed_dim: int,
        image: ImageConfig,
        text: TextConfig,
        *,
        init_logit_scale: float,
        init_logit_bias: float | None = None,
        output_dict: bool = True,
    ) -> None:
        super().__init__()
        self.output_dict = output_dict
        self.visual = ImageTower(image, embed_dim)
        self.text = TextTower(text, embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(init_logit_scale))
        self.logit_bias = (
            None if init_logit_bias is None else nn.Parameter(torch.tensor(init_logit_bias))
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of each stage and layer for the backward pass; compute them again.

        Gradients and running statistics stay the same bits; only with GroupBatchNorm under
        torch.compile, which does not trace through it, do running statistics move twice per batch.
        """
        self.visual.grad_checkpointing = enable
        self.text.grad_checkpointing = enable

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """[n, 3, s, s] -> [n, embed_dim], raw or of unit length."""
        return _maybe_normalized(self.visual(image), normalize)

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """int64 [n, context_length] -> [n, embed_dim], raw or of unit length."""
        return _maybe_normalized(self.text(text), normalize)

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> Any:
        """Unit-length features and the exponentiated scale, as a dict or a tuple (output_dict)."""
        output = {
            "image_features": None if image is None else self.encode_image(image, normalize=True),
            "text_features": None if text is None else self.encode_text(text, normalize=True),
            "logit_scale": self.logit_scale.exp(),
        }
        if self.logit_bias is not None:
            output["logit_bias"] = self.logit_bias
        return output if self.output_dict else tuple(output.values())


class _Residual(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut (He et al. 2016, basic block)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        hidden = relu(self.norm1(self.conv1(x)))
        return relu(self.norm2(self.conv2(hidden)) + self.shortcut(x))


def _is_tracing() -> bool:
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return tracing


def _apply(layer: nn.Module, x: Tensor, *, checkpointed: bool, **options: Any) -> Any:
    if not (checkpointed and torch.is_grad_enabled()):
        return layer(x, **options)
    if not torch.compiler.is_compiling():  # compiled graphs compute again without side effects
        # Batch norm has learned from this batch when the layer runs for the second time.
        options["context_fn"] = lambda: (nullcontext(), kept_running_statistics(layer))
    return checkpoint(layer, x, use_reentrant=False, **options)


def _maybe_normalized(features: Tensor, wanted: bool) -> Tensor:
    return normalize(features, dim=-1) if wanted else features
