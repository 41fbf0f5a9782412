"""Losses of other packages, called as their authors call them. Unavailable if one cannot run."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dense import BLOCK_ROWS, normalized
from .family import Loss, Unavailable
from .inputs import Batch


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name == module.partition(".")[0]:
            raise Unavailable(f"not installed: pip install {package}") from error
        raise Unavailable(f"cannot be imported: {error}") from error
    except RuntimeError as error:  # torchvision with an incompatible version of torch
        raise Unavailable(f"cannot be imported: {error}") from error


def open_clip(
    name: str, *, unit_rows: bool = False, chunk_size: int | None = None
) -> Callable[[Batch], Loss]:
    """Make ClipLoss or SigLipLoss. With `unit_rows`, the features are already normalized.

    ClipLoss gets no bias, which would only change its time.
    """

    def make(batch: Batch) -> Loss:
        module = getattr(_import("open_clip.loss", "open_clip_torch"), name)
        if chunk_size is None:
            loss = module()
        elif "chunk_size" in inspect.signature(module).parameters:
            loss = module(chunk_size=chunk_size)
        else:
            raise Unavailable("the installed open_clip has no chunk_size")

        def run(b: Batch) -> Tensor:
            features = (b.image_features, b.text_features) if unit_rows else normalized(b)
            bias = (b.logit_bias,) if name == "SigLipLoss" else ()
            value: Tensor = loss(*features, b.logit_scale, *bias)
            return value

        return run

    return make


def has_open_clip() -> bool:
    try:
        _import("open_clip.loss", "open_clip_torch")
    except Unavailable:
        return False
    return True


class _Features(nn.Module):
    """A layer of sentence_transformers whose input is its output."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["features"]}


_FEATURES = nn.Sequential(_Features())


def multiple_negatives_ranking(batch: Batch) -> Loss:
    """Make sentence_transformers' loss, which is the rows' half of the CLIP loss."""
    losses = _import("sentence_transformers.losses", "sentence-transformers")
    ranking = losses.MultipleNegativesRankingLoss(_FEATURES, scale=batch.logit_scale.item())

    def loss(b: Batch) -> Tensor:
        value: Tensor = ranking(
            [{"features": b.image_features}, {"features": b.text_features}], None
        )
        return value

    return loss


def cached_multiple_negatives_ranking(batch: Batch) -> Loss:
    """Make the cached form of the same loss, in blocks of rows, without encoding a second time."""
    losses = _import("sentence_transformers.losses", "sentence-transformers")
    ranking = losses.CachedMultipleNegativesRankingLoss(
        _FEATURES, scale=batch.logit_scale.item(), mini_batch_size=BLOCK_ROWS
    )

    def loss(b: Batch) -> Tensor:
        value: Tensor = _GradientsInForward.apply(
            lambda *leaves: ranking.calculate_loss([[leaf] for leaf in leaves], with_backward=True),
            b.image_features,
            b.text_features,
        )
        return value

    return loss


class _GradientsInForward(torch.autograd.Function):
    """A loss that adds the gradients of its arguments to them when it is called."""

    @staticmethod
    def forward(ctx: Any, loss: Callable[..., Tensor], *features: Tensor) -> Tensor:
        leaves = [tensor.detach().requires_grad_() for tensor in features]
        with torch.enable_grad():
            value = loss(*leaves)
        ctx.save_for_backward(*(leaf.grad for leaf in leaves))
        return value.detach()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(upstream * grad for grad in ctx.saved_tensors)


def inf_cl(batch: Batch) -> Loss:
    """Make the CLIP loss of two calls of `cal_inf_loss`, one for each direction.

    The scale is multiplied in beforehand: as an argument, its gradient needs a process group.
    """
    cal_inf_loss = _import("inf_cl", "inf-cl").cal_inf_loss
    d = batch.image_features.shape[1]
    head_dim = next((size for size in (256, 128, 64, 32, 16) if d % size == 0), None)
    if head_dim is None:
        raise Unavailable(f"needs d to be a multiple of 16, got {d}")

    def loss(b: Batch) -> Tensor:
        image, text = normalized(b)
        rows = cal_inf_loss(b.logit_scale * image, text, head_dim=head_dim)
        cols = cal_inf_loss(b.logit_scale * text, image, head_dim=head_dim)
        total: Tensor = (rows + cols) / 2
        return total

    return loss


def linear_cross_entropy(batch: Batch) -> Loss:
    """Make the loss of two calls of torch.nn.functional.linear_cross_entropy, in chunks."""
    function = getattr(F, "linear_cross_entropy", None)
    if function is None:
        raise Unavailable("needs torch 2.13 or later")
    return _both_directions(partial(function, options=torch.nn.LinearCrossEntropyOptions()), batch)


def cut_cross_entropy(batch: Batch) -> Loss:
    """Make the loss of two calls of Apple's linear_cross_entropy."""
    function = _import("cut_cross_entropy", "cut-cross-entropy").linear_cross_entropy
    return _both_directions(function, batch)


def _both_directions(cross_entropy: Callable[..., Tensor], batch: Batch) -> Loss:
    labels = torch.arange(len(batch.image_features), device=batch.image_features.device)

    def loss(b: Batch) -> Tensor:
        image, text = normalized(b)
        scale = b.logit_scale.to(image.dtype)
        rows = cross_entropy(scale * image, text, labels)
        cols = cross_entropy(scale * text, image, labels)
        return (rows + cols) / 2

    return loss


def memeff(batch: Batch) -> Loss:
    """Make the loss with stable=False: the default multiplies the gradient by a constant."""
    module = _import("memeff", "memeff")
    temperature = 1 / float(batch.logit_scale.detach())
    loss = module.MemoryEfficientCLIPLoss(temperature=temperature, stable=False)
    return lambda b: loss(b.image_features, b.text_features)


def siglip_kernel(batch: Batch) -> Loss:
    fused = _import("siglip_kernel", "siglip-kernel").fused_siglip_loss
    return lambda b: fused(*normalized(b), b.logit_scale.log(), b.logit_bias)
