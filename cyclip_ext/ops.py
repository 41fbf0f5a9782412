"""The native operators: their shapes, derivatives and FLOP counts, one block for each.

If the CPU library is loaded (`libraries.py`), `torch.ops.cyclip_ext` contains:

    row_norms(x)                          max(|x_i|, 1e-12); [N]
    pair_statistics(x, y, s, offset)      softmax statistics of the negatives (see PairStatistics)
    sigmoid_rows(x, y, s, b, offset)      sum_j softplus(-l_ij (s S_ij + b)); [n], float64
    cycle_grams(x, y, cross)              A = P'P, B = M'M, K = P'M; [d, d] each, float64;
                                          K is [0, 0] unless `cross` (True)
    cycle_direct(x, y, keep_bytes)        the two cycle sums themselves; two scalars, float64
    retrieval_ranks(x, y, a, b)           number of foreign entries >= the best own one, of each row
                                          and column; own: equal labels a [n], b [m]; int64
    similarity_top_k(x, y, k)             the k largest cosines of each row, falling, float64, and
                                          their columns, int64; [n, k] each

with x [n, d] image features and y [m, d] text features, raw, of one dtype: float32, float64,
bfloat16 or float16. 16-bit inputs are widened to float32. The positive of row i is column
i + offset, so that a rank can pass its rows of a larger batch. Operators with a `_backward` name
compute the derivatives; they cannot be differentiated again and raise if that is tried (`row_norms`
can). Ranks and top-k have no derivatives: their outputs never require any.

pair_statistics and sigmoid_rows take `row_labels` [n] and `col_labels` [m] (None), int64, both or
neither. Pairs of equal labels, other than the positive, are not negatives and leave all sums. With
`same_are_positives` (False), they stay in the log-sum-exp of pair_statistics, though not in the
search for the hardest negatives, and have l_ij = 1 in sigmoid_rows.

Further arguments of all but row_norms and the cycle operators: `allow_tf32` (False) lets a GPU
round float32 features to TF32 in products; the CPU ignores it. Only pair_statistics and
sigmoid_rows take `allow_bf16` (False), which rounds float32 features to bfloat16 beforehand, so
that the loss is that of the rounded features, and dL/dS to bfloat16 in the products of the backward
pass. They and cycle_direct take `keep_bytes` (0), the bytes that the last output may occupy on the
CPU: the products of all pairs, which the backward pass then need not compute again. It is empty if
they do not fit. Without `needs_hardest` (True), pair_statistics returns -inf for the hardest
negatives and -1 for their indices, as without negatives, which is faster.

docs/losses.md defines the results. docs/gradients.md and docs/cycle.md describe the computation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .libraries import backend_status, register

_ops = torch.ops.cyclip_ext

# ---------------------------------------------------------------- shapes

Size = int | torch.SymInt
Shape = tuple[int, ...]


def _accumulation_dtype(features: Tensor) -> torch.dtype:
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _float64(like: Tensor, *shape: Size) -> Tensor:
    return like.new_empty(shape, dtype=torch.float64)


def _gradients_fake(
    image_features: Tensor,
    text_features: Tensor,
    needed: tuple[bool, ...] = (True, True),
    scalars: int = 0,
) -> tuple[Tensor, ...]:
    """Return empty gradients of both towers, without rows unless needed, and of scalars."""
    towers = (
        features.new_empty((features.shape[0] if wanted else 0, features.shape[1]))
        for features, wanted in zip((image_features, text_features), needed, strict=True)
    )
    return *towers, *(_float64(image_features) for _ in range(scalars))


_DOTS_COLUMN_MULTIPLE: int = _ops.dots_column_multiple() if backend_status()["cpu"].loaded else 1


def _dots(image_features: Tensor, text_features: Tensor, keep_bytes: int) -> Tensor:
    """Return the dot products of all pairs, or nothing (KeptDots in csrc/ops/cpu/tiles.h)."""
    n, m = image_features.shape[0], text_features.shape[0]
    dtype = _accumulation_dtype(image_features)
    width = (m + _DOTS_COLUMN_MULTIPLE - 1) // _DOTS_COLUMN_MULTIPLE * _DOTS_COLUMN_MULTIPLE
    kept = (
        keep_bytes > 0
        and image_features.device.type == "cpu"
        and n * width <= keep_bytes // dtype.itemsize
    )
    return image_features.new_empty((n, width) if kept else (0, 0), dtype=dtype)


def _product_flops(image_shape: Shape, text_shape: Shape, *args: Any, **kwargs: Any) -> int:
    """Count one product of all rows of one tower with all rows of the other."""
    return 2 * image_shape[0] * text_shape[0] * image_shape[1]


# ---------------------------------------------------------------- row_norms


def _row_norms_fake(features: Tensor) -> Tensor:
    return features.new_empty(features.shape[:1], dtype=_accumulation_dtype(features))


def _save_features(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _row_norms_backward(ctx: Any, grad_norms: Tensor) -> Any:
    (features,) = ctx.saved_tensors
    norms = _ops.row_norms(features)
    # A norm that was clamped to eps is a constant.
    slope = torch.where(norms > 1e-12, grad_norms / norms, 0.0)
    return (features * slope[:, None]).to(features.dtype)


register(
    "row_norms",
    _row_norms_fake,
    lambda shape, *_, **__: 2 * shape[0] * shape[1],
    _row_norms_backward,
    _save_features,
)


# ---------------------------------------------------------------- pair_statistics, sigmoid_rows


def pairs_backward(
    name: str,
    inputs: tuple[Tensor, ...],
    offset: int,
    saved: tuple[Tensor, ...],
    grads: tuple[Tensor, ...],
    needed: tuple[bool, ...],
    options: tuple[Any, ...],  # allow_tf32, allow_bf16 and labels
) -> tuple[Tensor, ...]:
    """Return the gradients of the inputs of pair_statistics or sigmoid_rows, without a graph.

    That of a tower that is not `needed` has no rows.
    """
    result: tuple[Tensor, ...] = getattr(_ops, f"{name}_backward")(
        *inputs, offset, *saved, *grads, *needed[:2], *options
    )
    return result


def saved_statistics(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the outputs of pair_statistics that its backward operator takes."""
    row_lse, col_lse, _positive, _row_hardest, _col_hardest, *indices_and_dots = outputs
    return row_lse, col_lse, *indices_and_dots


def masked_labels(
    row_labels: Tensor | None = None,
    col_labels: Tensor | None = None,
    same_are_positives: bool = False,
) -> tuple[Tensor | None, ...]:
    """Return the labels that the backward operator of pair_statistics takes.

    It needs none if all pairs are in the log-sum-exp.
    """
    return () if same_are_positives else (row_labels, col_labels)


def _gradients(
    ctx: Any,
    name: str,
    inputs: tuple[Tensor, ...],
    saved: tuple[Tensor, ...],
    grads: tuple[Tensor, ...],
    labels: tuple[Any, ...],
) -> tuple[Tensor | None, ...]:
    """Return one gradient for each argument of the operator, from a backward pass of autograd."""
    needed = ctx.needs_input_grad
    options = *ctx.rounding, *labels
    found = pairs_backward(name, inputs, ctx.offset, saved, grads, needed, options)
    of_inputs = (
        grad.to(argument.dtype).reshape(argument.shape) if is_needed else None
        for grad, argument, is_needed in zip(found, inputs, needed, strict=False)
    )
    return *of_inputs, *(None,) * (len(needed) - len(inputs))


def _gradients_flops(
    image_shape: Shape, text_shape: Shape, needed: tuple[bool, ...], dots_shape: Shape
) -> int:
    """Count a product for each gradient, and one more if the dot products were not stored."""
    return _product_flops(image_shape, text_shape) * (sum(needed) + (0 in dots_shape))


def _pair_statistics_fake(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    offset: int = 0,
    allow_tf32: bool = False,
    allow_bf16: bool = False,
    keep_bytes: int = 0,
    *_: Any,  # needs_hardest and labels
) -> tuple[Tensor, ...]:
    n, m = image_features.shape[0], text_features.shape[0]
    return (
        *(_float64(image_features, size) for size in (n, m, n, n, m)),
        *(image_features.new_empty((size,), dtype=torch.int64) for size in (n, m)),
        _dots(image_features, text_features, keep_bytes),
    )


def _pair_statistics_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.offset, allow_tf32, allow_bf16, _keep_bytes, _needs_hardest = inputs[:8]
    ctx.rounding = allow_tf32, allow_bf16
    ctx.mark_non_differentiable(*output[5:])
    ctx.set_materialize_grads(False)  # not zeros as large as the dots
    ctx.save_for_backward(*tensors, *saved_statistics(output), *masked_labels(*inputs[8:]))


def _pair_statistics_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors  # once: each access unpacks all of them
    inputs, saved, labels = tensors[:3], tensors[3:8], tensors[8:]
    n, m = inputs[0].shape[0], inputs[1].shape[0]
    upstream = tuple(
        _float64(inputs[0], size).zero_() if grad is None else grad
        for size, grad in zip((n, m, n, n, m), grads[:5], strict=True)
    )
    return _gradients(ctx, "pair_statistics", inputs, saved, upstream, labels)


register(
    "pair_statistics",
    _pair_statistics_fake,
    _product_flops,
    _pair_statistics_backward,
    _pair_statistics_setup,
)
register(
    "pair_statistics_backward",
    lambda x, y, *args: _gradients_fake(x, y, needed=args[12:14], scalars=1),
    lambda x, y, *args, **_: _gradients_flops(x, y, needed=args[12:14], dots_shape=args[6]),
)


def _sigmoid_rows_fake(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    offset: int = 0,
    allow_tf32: bool = False,
    allow_bf16: bool = False,
    keep_bytes: int = 0,
    row_labels: Tensor | None = None,
    col_labels: Tensor | None = None,
    same_are_positives: bool = False,
) -> tuple[Tensor, Tensor]:
    rows = _float64(image_features, image_features.shape[0])
    return rows, _dots(image_features, text_features, keep_bytes)


def _sigmoid_rows_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.offset, allow_tf32, allow_bf16, _keep_bytes = inputs[:8]
    labels, ctx.same_are_positives = inputs[8:10], inputs[10:]
    ctx.rounding = allow_tf32, allow_bf16
    _row_loss, dots = output
    ctx.mark_non_differentiable(dots)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, dots, *labels)


def _sigmoid_rows_backward(
    ctx: Any, grad_rows: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad_rows is None:
        return (None,) * len(ctx.needs_input_grad)
    tensors = ctx.saved_tensors
    inputs, dots, labels = tensors[:4], tensors[4:5], tensors[5:]
    options = *labels, *ctx.same_are_positives
    return _gradients(ctx, "sigmoid_rows", inputs, dots, (grad_rows,), options)


register(
    "sigmoid_rows",
    _sigmoid_rows_fake,
    _product_flops,
    _sigmoid_rows_backward,
    _sigmoid_rows_setup,
)
register(
    "sigmoid_rows_backward",
    lambda x, y, *args: _gradients_fake(x, y, needed=args[5:7], scalars=2),
    lambda x, y, *args, **_: _gradients_flops(x, y, needed=args[5:7], dots_shape=args[3]),
)


# ---------------------------------------------------------------- cycle_grams


def _cycle_grams_fake(
    image_features: Tensor, text_features: Tensor, cross: bool = True
) -> tuple[Tensor, ...]:
    d = image_features.shape[1]
    return tuple(_float64(image_features, size, size) for size in (d, d, d if cross else 0))


def _gram_flops(shape: Shape, products: int) -> int:
    n, d = shape
    return 2 * n * d * d * products


def _cycle_grams_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    image_features, text_features, _cross = inputs
    ctx.save_for_backward(image_features, text_features)


def _cycle_grams_backward(ctx: Any, *grads: Tensor) -> Any:
    return (*_ops.cycle_grams_backward(*ctx.saved_tensors, *grads), None)


register(
    "cycle_grams",
    _cycle_grams_fake,
    lambda x, y, cross=True, **_: _gram_flops(x, 3 if cross else 2),
    _cycle_grams_backward,
    _cycle_grams_setup,
)
register(
    "cycle_grams_backward",
    lambda x, y, *_: _gradients_fake(x, y),
    lambda x, y, plus, minus, cross, **_: _gram_flops(x, 2 if 0 in cross else 4),
)


# ---------------------------------------------------------------- cycle_direct


def _cycle_direct_fake(
    image_features: Tensor, text_features: Tensor, keep_bytes: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    n, dtype = image_features.shape[0], _accumulation_dtype(image_features)
    kept = image_features.device.type == "cpu" and n * n <= keep_bytes // dtype.itemsize
    products = image_features.new_empty((n, n) if kept else (0, 0), dtype=dtype)
    return _float64(image_features), _float64(image_features), products


def _cycle_direct_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    image_features, text_features, _keep_bytes = inputs
    products = output[2]
    ctx.mark_non_differentiable(products)
    ctx.set_materialize_grads(False)  # not zeros as large as the products
    ctx.save_for_backward(image_features, text_features, products)


def _cycle_direct_backward(ctx: Any, *grads: Tensor | None) -> Any:
    tensors = ctx.saved_tensors
    upstream = (_float64(tensors[0]).zero_() if grad is None else grad for grad in grads[:2])
    return (*_ops.cycle_direct_backward(*tensors, *upstream), None)


register(
    "cycle_direct",
    _cycle_direct_fake,
    _product_flops,
    _cycle_direct_backward,
    _cycle_direct_setup,
)
register(  # a product for each gradient, and the forward one unless it was kept
    "cycle_direct_backward",
    lambda x, y, *_: _gradients_fake(x, y),
    lambda x, y, products, *_, **__: (2 + (0 in products)) * _product_flops(x, y),
)


# ---------------------------------------------------------------- retrieval


def _without_derivative(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output)


def _never_called(ctx: Any, *grads: Tensor) -> None:
    """Serve as the backward that torch requires, although no output is differentiable."""


def _similarity_top_k_fake(
    query_features: Tensor, candidate_features: Tensor, k: int, allow_tf32: bool = False
) -> tuple[Tensor, Tensor]:
    values = _float64(query_features, query_features.shape[0], k)
    return values, torch.empty_like(values, dtype=torch.int64)


register(
    "retrieval_ranks",
    lambda x, y, a, b, *_: (torch.empty_like(a), torch.empty_like(b)),
    _product_flops,
    _never_called,
    _without_derivative,
)
register(
    "similarity_top_k", _similarity_top_k_fake, _product_flops, _never_called, _without_derivative
)
