"""The losses of cyclip_ext.functional on top of a device's operators, with autograd."""

from __future__ import annotations

from typing import Any

import torch
from losses import truth
from losses.test_accuracy import BIAS, Loss
from torch import Tensor

from .cases import as_double
from .devices import Device


class _Operator(torch.autograd.Function):
    """One operator and the one that computes its derivative."""

    @staticmethod
    def forward(ctx: Any, call: Any, name: str, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.call, ctx.name = call, name
        outputs = call(name, *(t.detach() for t in tensors))
        ctx.save_for_backward(*tensors, *outputs)
        ctx.mark_non_differentiable(*(out for out in outputs if not out.is_floating_point()))
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.needs_input_grad) - 2
        inputs, outputs = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        if ctx.name == "pair_statistics":
            row_lse, col_lse, *_, row_index, col_index = outputs
            arguments = (row_lse, col_lse, row_index, col_index, *grads[:5], True, True)
        elif ctx.name == "sigmoid_rows":
            arguments = (*grads, True, True)
        else:
            arguments = tuple(g.contiguous() for g in grads)
        return (None, None, *ctx.call(f"{ctx.name}_backward", *inputs, *arguments))


def device_losses(device: Device, allow_tf32: bool) -> dict[str, Loss]:
    """Functions of image features, text features and logit scale."""

    def call(operator: str, *tensors: Any) -> tuple[Tensor, ...]:
        scalars = 4 if operator.startswith("sigmoid") else 3
        if operator.startswith(("pair", "sigmoid")):  # the offset follows the scalars
            tensors = (*tensors[:scalars], 0, *tensors[scalars:])
        return device(operator, *tensors, allow_tf32=allow_tf32)

    def contrastive(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        stats = truth.PairStatistics(
            *_Operator.apply(call, "pair_statistics", image, text, scale.double())
        )
        positive = scale.double() * stats.positive
        rows, cols = (
            truth.softplus(stats.row_lse - positive),
            truth.softplus(stats.col_lse - positive),
        )
        return ((rows + cols).mean() / 2).to(_result_dtype(image))

    def sigmoid(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        (rows,) = _Operator.apply(
            call, "sigmoid_rows", image, text, scale.double(), as_double(BIAS)
        )
        return rows.mean().to(_result_dtype(image))

    def cycle(route: str, term: int) -> Loss:
        def loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
            outputs = _Operator.apply(call, route, image, text)
            if route == "cycle_grams":
                plus, minus, cross = outputs
                both, difference = (plus * minus).sum(), (cross * cross.T).sum()
                outputs = (both + difference) / 2, (both - difference) / 2
            # The other result has weight zero: for a single pair only the first can be NaN.
            total = outputs[term] + 0 * outputs[1 - term]
            return (total / image.shape[0]).to(_result_dtype(image))

        return loss

    return {
        "contrastive": contrastive,
        "sigmoid": sigmoid,
        "in_modal by grams": cycle("cycle_grams", 0),
        "cross_modal by grams": cycle("cycle_grams", 1),
        "in_modal by pairs": cycle("cycle_direct", 0),
        "cross_modal by pairs": cycle("cycle_direct", 1),
    }


def _result_dtype(features: Tensor) -> torch.dtype:
    return torch.promote_types(features.dtype, torch.float32)
