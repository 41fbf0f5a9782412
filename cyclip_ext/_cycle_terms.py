"""Cycle consistency: by d x d Gram matrices, or by pairs if that is cheaper (docs/cycle.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from . import distributed, reference
from ._dispatch import Options, keep_bytes, use_native, widen, without_autocast
from ._fused import Cycles
from ._inputs import Inputs
from ._sums import inner_product
from ._torch_compat import holds_for_all_sizes
from .distributed import Batch, Tensors

_FUSED_ROWS = 1024  # with more, the host takes less than a hundredth of the time


def cycles_by_pairs(
    inputs: Inputs, options: Options, in_modal: float, cross_modal: float
) -> Cycles | None:
    """Return the weighted terms for a fused loss, or None if they are not to be part of it.

    That is for large batches, where host time does not matter but memory does, if Gram matrices are
    cheaper, and with additional texts, because the loss then takes more rows than the terms.
    """
    image, text = inputs.image, inputs.text
    if image.shape[0] > _FUSED_ROWS or inputs.negative_text is not None:
        return None
    if not _pairs_are_cheaper(image, apart=in_modal != cross_modal):
        return None
    divisor = _divisor(inputs, options)
    return Cycles(in_modal, cross_modal, divisor, keep_bytes(options, image, text))


def cycle_terms(inputs: Inputs, options: Options) -> tuple[Tensor, Tensor]:
    """Return (L_in, L_cross), by d x d Gram matrices or by pairs, whichever is cheaper.

    `options.precision` does not apply: rounded features would cancel.
    """
    image, text = inputs.image, inputs.text
    if inputs.batch is not None:
        sums = cycle_sums_from_grams(
            *_grams_of_all_ranks(inputs, inputs.batch, options, apart=True)
        )
    elif not use_native("cycle_grams", image, options):
        with without_autocast(image):
            features = widen(image), widen(text)
            return (
                reference.in_modal_loss(*features, options.reduction),
                reference.cross_modal_loss(*features, options.reduction),
            )
    elif _pairs_are_cheaper(image, apart=True):
        kept = keep_bytes(options, image, text)
        sums = torch.ops.cyclip_ext.cycle_direct(image, text, kept)[:2]
    else:
        sums = cycle_sums_from_grams(*torch.ops.cyclip_ext.cycle_grams(image, text))
    divisor = _divisor(inputs, options)
    return sums[0] / divisor, sums[1] / divisor


def cycle_sum(inputs: Inputs, options: Options) -> Tensor:
    """Return L_in + L_cross, for which K is not needed."""
    image, text = inputs.image, inputs.text
    if inputs.batch is not None:
        plus, minus = _grams_of_all_ranks(inputs, inputs.batch, options, apart=False)
    elif use_native("cycle_grams", image, options) and not _pairs_are_cheaper(image, apart=False):
        plus, minus, _ = torch.ops.cyclip_ext.cycle_grams(image, text, cross=False)
    else:
        in_modal, cross_modal = cycle_terms(inputs, options)
        return in_modal + cross_modal
    return inner_product(plus, minus) / _divisor(inputs, options)


def _divisor(inputs: Inputs, options: Options) -> int:
    n = inputs.image.shape[0] if inputs.batch is None else inputs.batch.rows
    return n if options.reduction == "batchmean" else n * n


def _grams_of_all_ranks(inputs: Inputs, batch: Batch, options: Options, *, apart: bool) -> Tensors:
    """Return A and B, and K if both terms are needed, summed over the ranks."""
    grams: Tensors
    if use_native("cycle_grams", inputs.image, options):
        grams = torch.ops.cyclip_ext.cycle_grams(inputs.image, inputs.text, cross=apart)
    else:
        with without_autocast(inputs.image):
            grams = reference.cycle_grams(widen(inputs.image), widen(inputs.text))
    return distributed.all_sum(torch.stack(grams[: 3 if apart else 2]), batch).unbind()


def _pairs_are_cheaper(features: Tensor, apart: bool) -> bool:
    """Return whether the route by pairs costs less than that by Gram matrices (docs/cycle.md).

    A graph for batches of any size takes the route by Gram matrices, so that it needs no guard.
    """
    n, d = features.shape
    if features.is_cuda:
        return holds_for_all_sizes(n < 2 * d)
    if apart:
        return holds_for_all_sizes(2 * n < 3 * d)
    if features.dtype == torch.bfloat16:  # its gradients by pairs are products of bfloat16
        return holds_for_all_sizes(4 * n <= 5 * d)
    return holds_for_all_sizes(n < d)


def cycle_sums_from_grams(plus: Tensor, minus: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
    """Return N L_in = (a + b)/2 and N L_cross = (a - b)/2 with a = <A, B> and b = <K, K'>."""
    a, b = inner_product(plus, minus), inner_product(cross, cross.T)
    return (a + b) / 2, (a - b) / 2
