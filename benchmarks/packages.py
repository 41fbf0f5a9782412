"""Losses of other packages, each called as its authors call it; Unavailable where it cannot run."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .dense import normalized
from .family import Loss, Unavailable
from .inputs import Batch


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name == module.partition(".")[0]:
            raise Unavailable(f"not installed: pip install {package}") from error
        raise Unavailable(f"cannot be imported: {error}") from error
    except RuntimeError as error:  # torchvision beside a torch that it was not made for
        raise Unavailable(f"cannot be imported: {error}") from error


def open_clip(name: str, *, unit_rows: bool = False) -> Callable[[Batch], Loss]:
    """ClipLoss or SigLipLoss; `unit_rows`: the features come normalized and are left alone.

    ClipLoss gets no bias: it would change nothing but the time.
    """

    def make(batch: Batch) -> Loss:
        loss = getattr(_import("open_clip.loss", "open_clip_torch"), name)()

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


def inf_cl(batch: Batch) -> Loss:
    """`cal_inf_loss` is one direction of the loss.

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
    """torch.nn.functional.linear_cross_entropy in chunks, one call for each direction."""
    function = getattr(F, "linear_cross_entropy", None)
    if function is None:
        raise Unavailable("needs torch 2.13 or later")
    return _both_directions(partial(function, options=torch.nn.LinearCrossEntropyOptions()), batch)


def cut_cross_entropy(batch: Batch) -> Loss:
    """Apple's linear_cross_entropy, one call for each direction."""
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
    """With stable=False, because the default multiplies the gradient by a constant."""
    module = _import("memeff", "memeff")
    temperature = 1 / float(batch.logit_scale.detach())
    loss = module.MemoryEfficientCLIPLoss(temperature=temperature, stable=False)
    return lambda b: loss(b.image_features, b.text_features)


def siglip_kernel(batch: Batch) -> Loss:
    fused = _import("siglip_kernel", "siglip-kernel").fused_siglip_loss
    return lambda b: fused(*normalized(b), b.logit_scale.log(), b.logit_bias)
