"""The losses and retrieval in plain PyTorch, as users write them.

Every function takes a batch of raw features and normalizes it, as cyclip_ext does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .inputs import Batch

CYCLE_WEIGHT = 0.25  # of either term, as in the paper
HINGE_MARGIN = 0.2
TOP_K = 10
BLOCK_ROWS = 1024


def normalized(batch: Batch) -> tuple[Tensor, Tensor]:
    return F.normalize(batch.image_features, dim=-1), F.normalize(batch.text_features, dim=-1)


# ---------------------------------------------------------------- contrastive


def clip(batch: Batch) -> Tensor:
    """Compute the loss as open_clip does on one device, with a product for each direction."""
    image, text = normalized(batch)
    per_image = batch.logit_scale * image @ text.T
    per_text = batch.logit_scale * text @ image.T
    return _cross_entropies(per_image, per_text)


def _cross_entropies(per_image: Tensor, per_text: Tensor) -> Tensor:
    labels = torch.arange(len(per_image), device=per_image.device)
    return (F.cross_entropy(per_image, labels) + F.cross_entropy(per_text, labels)) / 2


# ---------------------------------------------------------------- CyCLIP


def cyclip(batch: Batch) -> Tensor:
    """Compute the loss of the paper: squared differences of logits, mean() * N / s^2."""
    image, text = normalized(batch)
    scale = batch.logit_scale
    per_image = scale * image @ text.T
    contrastive = _cross_entropies(per_image, per_image.T)
    return contrastive + CYCLE_WEIGHT * _cycle(image, text, scale, per_image)


def cycle(batch: Batch) -> Tensor:
    """Compute only the cycle terms of `cyclip`."""
    image, text = normalized(batch)
    per_image = batch.logit_scale * image @ text.T
    return CYCLE_WEIGHT * _cycle(image, text, batch.logit_scale, per_image)


def _cycle(image: Tensor, text: Tensor, scale: Tensor, per_image: Tensor) -> Tensor:
    of_images = scale * image @ image.T
    of_texts = scale * text @ text.T
    in_modal = (of_images - of_texts).square().mean()
    cross_modal = (per_image - per_image.T).square().mean()
    return (in_modal + cross_modal) * len(image) / (scale * scale)


def cycle_expanded(batch: Batch) -> Tensor:
    """Expand the squares, |X'X|^2 + |Y'Y|^2 - 2 |X'Y|^2: no N x N matrix, but it cancels."""
    image, text = normalized(batch)
    of_images, of_texts, cross = image.T @ image, text.T @ text, image.T @ text
    in_modal = of_images.square().sum() + of_texts.square().sum() - 2 * cross.square().sum()
    cross_modal = 2 * (of_images * of_texts).sum() - 2 * (cross * cross.T).sum()
    return CYCLE_WEIGHT * (in_modal + cross_modal) / len(image)


# ---------------------------------------------------------------- blocks of rows, recomputed


def _blocks(n: int) -> Iterator[tuple[int, int]]:
    return ((begin, min(begin + BLOCK_ROWS, n)) for begin in range(0, n, BLOCK_ROWS))


def _recomputed(block: Callable[..., tuple[Tensor, Tensor]], *arguments: object) -> list[Tensor]:
    return list(checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False))


def clip_in_blocks(batch: Batch) -> Tensor:
    """Compute blocks of rows under torch.utils.checkpoint, without any N x N matrix."""
    image, text = normalized(batch)

    def block(rows: Tensor, text: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        logits = scale * rows @ text.T
        return logits.logsumexp(dim=1).sum(), logits.logsumexp(dim=0)

    parts = [
        _recomputed(block, image[begin:end], text, batch.logit_scale)
        for begin, end in _blocks(len(image))
    ]
    positive = batch.logit_scale * (image * text).sum()
    rows = torch.stack([part[0] for part in parts]).sum()
    cols = torch.stack([part[1] for part in parts]).logsumexp(dim=0).sum()
    return (rows + cols - 2 * positive) / (2 * len(image))


def cycle_in_blocks(batch: Batch) -> Tensor:
    """Compute the cycle terms in blocks of rows. Each block requires both of its cross products."""
    image, text = normalized(batch)

    def block(rows: Tensor, of: Tensor, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        in_modal = (rows @ image.T - of @ text.T).square().sum()
        cross_modal = (rows @ text.T - of @ image.T).square().sum()
        return in_modal, cross_modal

    sums = [
        total
        for begin, end in _blocks(len(image))
        for total in _recomputed(block, image[begin:end], text[begin:end], image, text)
    ]
    return CYCLE_WEIGHT * torch.stack(sums).sum() / len(image)


def cyclip_in_blocks(batch: Batch) -> Tensor:
    return clip_in_blocks(batch) + cycle_in_blocks(batch)


# ---------------------------------------------------------------- other losses


def siglip(batch: Batch) -> Tensor:
    """Compute the loss as open_clip does on one device."""
    image, text = normalized(batch)
    logits = batch.logit_scale * image @ text.T + batch.logit_bias
    labels = 2 * torch.eye(len(image), dtype=logits.dtype, device=logits.device) - 1
    return -F.logsigmoid(labels * logits).sum() / len(image)


def hinge(batch: Batch) -> Tensor:
    image, text = normalized(batch)
    cosines = image @ text.T
    positive = cosines.diagonal()
    diagonal = torch.eye(len(image), dtype=torch.bool, device=image.device)
    negatives = cosines.masked_fill(diagonal, -torch.inf)
    rows = (HINGE_MARGIN - positive + negatives.max(dim=1).values).relu()
    cols = (HINGE_MARGIN - positive + negatives.max(dim=0).values).relu()
    return (rows + cols).mean() / 2


# ---------------------------------------------------------------- retrieval, without derivatives


@torch.no_grad()
def ranks(batch: Batch) -> Tensor:
    """Count the negatives that are at least as near as the positive, of images, then of texts."""
    image, text = normalized(batch)
    cosines = image @ text.T
    positive = cosines.diagonal()
    of_images = (cosines >= positive[:, None]).sum(dim=1) - 1
    of_texts = (cosines >= positive).sum(dim=0) - 1
    return torch.cat([of_images, of_texts])


@torch.no_grad()
def top_k(batch: Batch) -> Tensor:
    """Return the cosines of the nearest texts of every image."""
    image, text = normalized(batch)
    return (image @ text.T).topk(min(TOP_K, len(image)), dim=1).values
