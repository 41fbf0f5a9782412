"""The promise of docs/losses.md: at most twice the error of dense PyTorch in the same precision.

The rule, its grants and the hard inputs are those of losses/test_accuracy.py; here the losses stand
on the operators of a device. Dense code in TF32 is float32 code whose matrix products, forward and
backward, round their operands.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from unittest import mock

import pytest
import torch
from losses import test_accuracy as rule
from losses.inputs import INPUTS
from torch import Tensor

from cyclip_ext import reference

from .cases import PRECISIONS, Precision
from .device_losses import device_losses
from .devices import Device, Emulated

TERMS = {
    "contrastive": (rule.SCALED["contrastive"], [(5, 3, 100.0), (37, 72, 14.3), (70, 24, 100.0)]),
    "sigmoid": (rule.SCALED["sigmoid"], [(5, 3, 100.0), (37, 72, 14.3)]),
    "in_modal by grams": (rule.UNSCALED["in_modal"], [(5, 3, 1.0), (70, 24, 1.0)]),
    "cross_modal by grams": (rule.UNSCALED["cross_modal"], [(5, 3, 1.0), (70, 24, 1.0)]),
    "in_modal by pairs": (rule.UNSCALED["in_modal"], [(3, 5, 1.0), (37, 72, 1.0)]),
    "cross_modal by pairs": (rule.UNSCALED["cross_modal"], [(3, 5, 1.0), (37, 72, 1.0)]),
}


def _round_to_tf32(x: Tensor) -> Tensor:
    """Round to 10 bits of mantissa, ties away from zero."""
    bits = x.float().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


class _Tf32Product(torch.autograd.Function):
    """Return a b' of rounded operands."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return _round_to_tf32(a) @ _round_to_tf32(b).T

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, b = map(_round_to_tf32, ctx.saved_tensors)
        grad = _round_to_tf32(grad)
        return grad @ b, grad.T @ a


def _tf32_similarity(image: Tensor, text: Tensor) -> Tensor:
    return _Tf32Product.apply(reference.normalize(image), reference.normalize(text))


def _in_tf32(dense: rule.Loss) -> rule.Loss:
    def loss(*inputs: Tensor) -> Tensor:
        with mock.patch.object(reference, "similarity", _tf32_similarity):
            return dense(*inputs)

    return loss


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", [name for name in TERMS if "grams" in name])
def test_accuracy_after_deflation(
    emulated: Emulated, name: str, kind: str, precision: Precision
) -> None:
    """The bound also holds for products in float32, in which cones would lose all digits."""
    test_accuracy(partial(emulated, float64_is_slow=True), name, kind, precision)


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", TERMS)
def test_accuracy(device: Device, name: str, kind: str, precision: Precision) -> None:
    """The loss and its gradients have at most twice the error of dense code."""
    term, cases = TERMS[name]
    term = replace(term, native=device_losses(device, precision.allow_tf32)[name])
    if precision.allow_tf32:
        term = replace(term, dense=_in_tf32(term.dense))
    if kind == "zero_rows" and precision.dtype == torch.float16:
        pytest.skip("the gradient of a zero row, g / 1e-12, overflows")
    # The rule allows one rounding of each cosine. In TF32 that is large, and a single close pair
    # decides the error of a tiny batch, so tiny batches get many seeds.
    rounding = 2.0**-11 if precision.allow_tf32 else rule.FLOAT32_ULP
    seeds = (lambda n: range(64 if n <= 5 else 1)) if precision.allow_tf32 else rule._seeds
    with mock.patch.multiple(rule, FLOAT32_ULP=rounding, _seeds=seeds):
        for n, d, scale in cases:
            rule._check(term, kind, n, d, scale, precision.dtype)
