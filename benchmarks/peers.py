"""The losses that are timed beside each other: cyclip_ext, dense PyTorch, and other packages.

Every peer is called with raw features and learnable scalars and normalizes for itself, as
cyclip_ext does; what it does not compute is said in its note. One that cannot run here raises
Unavailable.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cyclip_ext import CLIPLoss, CyCLIPLoss, SigLIPLoss
from cyclip_ext.functional import Backend


@dataclass(frozen=True)
class Batch:
    """What a loss is called with; all leaves that require gradients."""

    image_features: Tensor  # [N, d], raw
    text_features: Tensor  # [N, d]
    logit_scale: Tensor  # scalar, exponentiated; float32
    logit_bias: Tensor  # scalar, float32

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.image_features, self.text_features, self.logit_scale, self.logit_bias


Loss = Callable[[Batch], Tensor]


class Unavailable(Exception):
    """Why a peer is not measured."""


@dataclass(frozen=True)
class Peer:
    name: str
    family: str  # "clip", "cyclip" or "siglip": those of one family compute the same
    make: Callable[[Batch], Loss]  # for batches like this one
    note: str = ""


def _normalized(batch: Batch) -> tuple[Tensor, Tensor]:
    return F.normalize(batch.image_features, dim=-1), F.normalize(batch.text_features, dim=-1)


# ---------------------------------------------------------------- dense PyTorch


def dense_clip(batch: Batch) -> Tensor:
    """As open_clip computes it on one device: N x N logits in the dtype of the features."""
    image, text = _normalized(batch)
    logits = batch.logit_scale * image @ text.T
    labels = torch.arange(logits.shape[0], device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def dense_cyclip(batch: Batch) -> Tensor:
    """The contrastive loss and both cycle terms at 0.25, three N x N matrices."""
    image, text = _normalized(batch)
    cosines = image @ text.T
    in_modal = (image @ image.T - text @ text.T).square().sum(dtype=torch.float32)
    cross_modal = (cosines - cosines.T).square().sum(dtype=torch.float32)
    logits = batch.logit_scale * cosines
    labels = torch.arange(len(image), device=image.device)
    contrastive = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    return contrastive + 0.25 / len(image) * (in_modal + cross_modal)


def dense_siglip(batch: Batch) -> Tensor:
    """As open_clip computes it on one device."""
    image, text = _normalized(batch)
    logits = batch.logit_scale * image @ text.T + batch.logit_bias
    labels = 2 * torch.eye(len(image), dtype=logits.dtype, device=logits.device) - 1
    return -F.logsigmoid(labels * logits).sum() / len(image)


DENSE: dict[str, Loss] = {"clip": dense_clip, "cyclip": dense_cyclip, "siglip": dense_siglip}


def _dense(family: str) -> Callable[[Batch], Loss]:
    return lambda batch: DENSE[family]


def _compiled(family: str) -> Callable[[Batch], Loss]:
    return lambda batch: torch.compile(DENSE[family], dynamic=False)


# ---------------------------------------------------------------- packages


def _ours(module: type[Any], backend: Backend) -> Callable[[Batch], Loss]:
    def make(batch: Batch) -> Loss:
        loss = module(backend=backend)
        return lambda b: loss(b.image_features, b.text_features, b.logit_scale, b.logit_bias)

    return make


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name == module.partition(".")[0]:
            raise Unavailable(f"not installed: pip install {package}") from error
        raise Unavailable(f"cannot be imported: {error}") from error


def _open_clip(name: str) -> Callable[[Batch], Loss]:
    def make(batch: Batch) -> Loss:
        loss = getattr(_import("open_clip.loss", "open_clip_torch"), name)()
        return lambda b: loss(*_normalized(b), b.logit_scale, b.logit_bias)

    return make


def _inf_cl(batch: Batch) -> Loss:
    """`cal_inf_loss` is one direction of the loss.

    The scale is multiplied in beforehand: as an argument, its gradient needs a process group.
    """
    cal_inf_loss = _import("inf_cl", "inf-cl").cal_inf_loss
    d = batch.image_features.shape[1]
    head_dim = next((size for size in (256, 128, 64, 32, 16) if d % size == 0), None)
    if head_dim is None:
        raise Unavailable(f"needs d to be a multiple of 16, got {d}")

    def loss(b: Batch) -> Tensor:
        image, text = _normalized(b)
        rows = cal_inf_loss(b.logit_scale * image, text, head_dim=head_dim)
        cols = cal_inf_loss(b.logit_scale * text, image, head_dim=head_dim)
        total: Tensor = (rows + cols) / 2
        return total

    return loss


def _memeff(batch: Batch) -> Loss:
    """With stable=False, because the default multiplies the gradient by a constant."""
    module = _import("memeff", "memeff")
    temperature = 1 / float(batch.logit_scale.detach())
    loss = module.MemoryEfficientCLIPLoss(temperature=temperature, stable=False)
    return lambda b: loss(b.image_features, b.text_features)


def _siglip_kernel(batch: Batch) -> Loss:
    fused = _import("siglip_kernel", "siglip-kernel").fused_siglip_loss
    return lambda b: fused(*_normalized(b), b.logit_scale.log(), b.logit_bias)


def peers(backend: Backend) -> list[Peer]:
    """All of them, cyclip_ext's with this backend."""
    ours = {"clip": CLIPLoss, "cyclip": CyCLIPLoss, "siglip": SigLIPLoss}
    found = []
    for family, module in ours.items():
        found.append(Peer(f"cyclip_ext.{module.__name__}", family, _ours(module, backend)))
        found.append(Peer("dense", family, _dense(family)))
        found.append(Peer("torch.compile(dense)", family, _compiled(family)))
    no_scale = "computes no gradient of the scale"
    return [
        *found,
        Peer("open_clip.ClipLoss", "clip", _open_clip("ClipLoss")),
        Peer("open_clip.SigLipLoss", "siglip", _open_clip("SigLipLoss")),
        Peer("Inf-CL", "clip", _inf_cl, "two passes: one direction each"),
        Peer("memeff", "clip", _memeff, no_scale),
        Peer("siglip_kernel", "siglip", _siglip_kernel),
    ]
