"""The native operators: loads the libraries, registers shapes, derivatives and FLOP counts.

The import succeeds without the libraries; `backend_status()` returns their state and the reason if
one is missing. With the CPU library loaded, `torch.ops.cyclip_ext` contains:

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
neither. Pairs of equal labels, other than the positive, are not negatives. In sigmoid_rows they
leave the sum, or have l_ij = 1 with `same_are_positives` (False).

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

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ._torch_compat import has_kernel

PACKAGE = Path(__file__).parent


# ---------------------------------------------------------------- libraries


@dataclass(frozen=True)
class BackendStatus:
    """The state of one native library; `reason` is empty if it is loaded."""

    built: bool
    loaded: bool
    reason: str


def backend_status() -> dict[str, BackendStatus]:
    """Return the state of the "cpu" and the "cuda" library of this installation."""
    return dict(_STATUS)


def has_operator(name: str, device_type: str) -> bool:
    """Return whether an operator has a kernel for a device type ("cpu", "cuda")."""
    return (name, device_type) in _KERNELS


def build_record() -> dict[str, Any]:
    """Return the record that setup.py wrote about the build, or an empty dictionary."""
    try:
        record = json.loads((PACKAGE / "_build_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _build_reason(library: str) -> str:
    """Return the reason that setup.py gave for not building a library."""
    try:
        return str(build_record()["libraries"][library]["reason"])
    except (KeyError, TypeError):
        return ""


def _files(file_stem: str) -> list[Path]:
    return sorted(PACKAGE.glob(f"{file_stem}.*so")) + sorted(PACKAGE.glob(f"{file_stem}.*pyd"))


def _load(library: str, file_stem: str) -> BackendStatus:
    paths = _files(file_stem)
    if not paths:
        needed = {"cpu": "a C++ compiler", "cuda": "nvcc and a torch built for CUDA"}[library]
        unknown = f"there is no record of a build; `pip install .` builds it, given {needed}"
        return BackendStatus(False, False, _build_reason(library) or unknown)
    try:
        torch.ops.load_library(str(paths[0]))
    except (OSError, RuntimeError) as error:
        remedy = "reinstall cyclip_ext beside this torch"
        return BackendStatus(True, False, f"loading {paths[0].name} failed: {error}; {remedy}")
    return BackendStatus(True, True, "")


def load_cuda(cpu: BackendStatus) -> BackendStatus:
    """Load the CUDA library if it was built and fits this torch and the CPU library."""
    built = bool(_files("_C_cuda"))
    ours, torchs = build_record().get("nvcc"), torch.version.cuda
    if not built and _build_reason("cuda"):
        return _load("cuda", "_C_cuda")
    if torchs is None:
        return BackendStatus(built, False, "this torch is built without CUDA")
    if not cpu.loaded:
        return BackendStatus(built, False, f"it needs the cpu library: {cpu.reason}")
    if built and ours and _major(ours) != _major(torchs):
        return BackendStatus(
            True,
            False,
            f"it was built with CUDA {ours}, but this torch uses CUDA {torchs}; reinstall "
            f"cyclip_ext with a CUDA {_major(torchs)} toolkit, or a torch for CUDA {_major(ours)}",
        )
    return _load("cuda", "_C_cuda")


def _major(version: str) -> str:
    return version.partition(".")[0]


_CPU = _load("cpu", "_C")
_STATUS = {"cpu": _CPU, "cuda": load_cuda(_CPU)}
_ops = torch.ops.cyclip_ext
_OPERATORS: list[str] = []


def _register(
    name: str,
    fake: Callable[..., Any],
    flops: Callable[..., int],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> None:
    """Register shapes, derivatives and flops of an operator if the CPU library is loaded.

    A `_backward` operator has no derivatives of its own.
    """
    _OPERATORS.append(name)
    if not _CPU.loaded:
        return
    qualified = f"cyclip_ext::{name}"
    torch.library.register_fake(qualified, fake)
    if backward is None:
        torch.library.register_autograd(qualified, _once_differentiable(name))
    else:
        torch.library.register_autograd(qualified, backward, setup_context=setup_context)
    register_flop_formula(getattr(_ops, name))(flops)


def _once_differentiable(name: str) -> Callable[..., None]:
    def raise_error(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(
            f"cyclip_ext::{name} cannot be differentiated twice; "
            'use backend="reference" for second derivatives'
        )

    return raise_error


# ---------------------------------------------------------------- shapes

Size = int | torch.SymInt
Shape = tuple[int, ...]


def _accumulation_dtype(features: Tensor) -> torch.dtype:
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _float64(like: Tensor, *shape: Size) -> Tensor:
    return like.new_empty(shape, dtype=torch.float64)


def _grad_like(features: Tensor, needed: bool) -> Tensor:
    """Return an empty gradient of a tower, without rows unless it is needed."""
    n, d = features.shape
    return features.new_empty((n if needed else 0, d))


def _both_grads_fake(
    image_features: Tensor, text_features: Tensor, *args: Any
) -> tuple[Tensor, Tensor]:
    return _grad_like(image_features, True), _grad_like(text_features, True)


_DOTS_COLUMN_MULTIPLE: int = _ops.dots_column_multiple() if _CPU.loaded else 1


def _dots(image_features: Tensor, text_features: Tensor, keep_bytes: int) -> Tensor:
    """Return the dot products of all pairs, or nothing (KeptDots in csrc/ops/cpu/tiles.h)."""
    n, m, dtype = (
        image_features.shape[0],
        text_features.shape[0],
        _accumulation_dtype(image_features),
    )
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


def _pairs_backward_flops(dots_shape: Shape, needed: tuple[bool, ...], product: int) -> int:
    """Count a product for each gradient, and one more if the dot products were not kept."""
    return product * (sum(needed) + (0 in dots_shape))


# ---------------------------------------------------------------- row_norms


def _row_norms_fake(features: Tensor) -> Tensor:
    return features.new_empty(features.shape[:1], dtype=_accumulation_dtype(features))


def _row_norms_flops(shape: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * shape[0] * shape[1]


def _save_features(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _row_norms_backward(ctx: Any, grad_norms: Tensor) -> Any:
    (features,) = ctx.saved_tensors
    norms = _ops.row_norms(features)
    # A norm that was clamped to eps is a constant.
    slope = torch.where(norms > 1e-12, grad_norms / norms, 0.0)
    return (features * slope[:, None]).to(features.dtype)


_register("row_norms", _row_norms_fake, _row_norms_flops, _row_norms_backward, _save_features)


# ---------------------------------------------------------------- operators over all pairs


class Rounding(NamedTuple):
    """Rounding that the products of an operator over all pairs may apply."""

    allow_tf32: bool = False
    allow_bf16: bool = False


@dataclass(frozen=True)
class Labels:
    """Labels of this rank's rows and of all columns, for any block of the similarity matrix."""

    rows: Tensor  # int64 [n]
    columns: Tensor  # int64 [M], of all ranks
    start: int = 0  # the column that pairs with row 0

    def of_columns(self, offset: int, m: int) -> Tensor:
        """Return the labels of the m columns of the block in which row 0 pairs with `offset`."""
        begin = self.start - offset
        return self.columns[begin : begin + m]


@dataclass(frozen=True, eq=False)  # the compiler of torch 2.10 hashes what is called
class PairOperator:
    """pair_statistics or sigmoid_rows with its options: a block of the similarity matrix.

    Called with the inputs, (image features [n, d], text features [m, d], scalars ...), and the
    offset: the positive of row i is column i + offset, if that is one of the m. `backward` takes
    the same, what the call returned, and the gradients of the first `differentiable` outputs. It is
    for callers that keep no graph, and returns a gradient for each input; that of an input that is
    not `needed` is None or has no rows.
    """

    name: str
    rounding: Rounding
    keep_bytes: int
    needs_hardest: bool = True
    labels: Labels | None = None
    same_are_positives: bool = False

    @property
    def differentiable(self) -> int:
        return 5 if self.name == "pair_statistics" else 1

    def __call__(self, inputs: tuple[Tensor, ...], offset: int = 0) -> tuple[Tensor, ...]:
        hardest = (self.needs_hardest,) if self.name == "pair_statistics" else ()
        outputs: tuple[Tensor, ...] = getattr(_ops, self.name)(
            *(*inputs, offset, *self.rounding, self.keep_bytes, *hardest),
            *self._labels(offset, inputs[1].shape[0]),
        )
        return outputs

    def _labels(self, offset: int, m: int) -> tuple[Any, ...]:
        """Return the last arguments of the operator."""
        if self.labels is None:
            return ()
        positives = () if self.name == "pair_statistics" else (self.same_are_positives,)
        return self.labels.rows, self.labels.of_columns(offset, m), *positives

    def backward(
        self,
        inputs: tuple[Tensor, ...],
        offset: int,
        outputs: tuple[Tensor, ...],
        grads: tuple[Tensor, ...],
        needed: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        options = *self.rounding, *self._labels(offset, inputs[1].shape[0])
        if self.name == "pair_statistics":
            saved = _saved_statistics(outputs)
            return _pair_statistics_grads(inputs, offset, saved, grads, needed, options)
        return _sigmoid_rows_grads(inputs, offset, outputs[1:], grads, needed, options)


def _like_input(grad: Tensor, argument: Tensor, needed: bool) -> Tensor | None:
    return grad.to(argument.dtype).reshape(argument.shape) if needed else None


# ---------------------------------------------------------------- pair_statistics


def _pair_statistics_fake(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    offset: int = 0,
    allow_tf32: bool = False,
    allow_bf16: bool = False,
    keep_bytes: int = 0,
    needs_hardest: bool = True,
    row_labels: Tensor | None = None,
    col_labels: Tensor | None = None,
) -> tuple[Tensor, ...]:
    n, m = image_features.shape[0], text_features.shape[0]
    return (
        *(_float64(image_features, size) for size in (n, m, n, n, m)),
        *(image_features.new_empty((size,), dtype=torch.int64) for size in (n, m)),
        _dots(image_features, text_features, keep_bytes),
    )


def _saved_statistics(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the outputs that the backward operator takes."""
    row_lse, col_lse, _positive, _row_hardest, _col_hardest, *indices_and_dots = outputs
    return row_lse, col_lse, *indices_and_dots


def _pair_statistics_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.offset, allow_tf32, allow_bf16, _keep_bytes, _needs_hardest = inputs[:8]
    ctx.rounding = Rounding(allow_tf32, allow_bf16)
    ctx.mark_non_differentiable(*output[5:])
    ctx.set_materialize_grads(False)  # not zeros as large as the dots
    ctx.save_for_backward(*tensors, *_saved_statistics(output), *inputs[8:])


def _pair_statistics_grads(
    inputs: tuple[Tensor, ...],
    offset: int,
    saved: tuple[Tensor, ...],
    grads: tuple[Tensor, ...],
    needed: tuple[bool, ...],
    options: tuple[Any, ...],  # rounding and labels
) -> tuple[Tensor, ...]:
    result: tuple[Tensor, ...] = _ops.pair_statistics_backward(
        *inputs, offset, *saved, *grads, *needed[:2], *options
    )
    return result


def _pair_statistics_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    inputs, saved, labels = ctx.saved_tensors[:3], ctx.saved_tensors[3:8], ctx.saved_tensors[8:]
    image_features, text_features, logit_scale = inputs
    needed = ctx.needs_input_grad[:3]
    n, m = image_features.shape[0], text_features.shape[0]
    upstream = tuple(
        _float64(image_features, size).zero_() if grad is None else grad
        for size, grad in zip((n, m, n, n, m), grads[:5], strict=True)
    )
    image_grad, text_grad, scale_grad = _pair_statistics_grads(
        inputs, ctx.offset, saved, upstream, needed, (*ctx.rounding, *labels)
    )
    return (
        image_grad if needed[0] else None,
        text_grad if needed[1] else None,
        _like_input(scale_grad, logit_scale, needed[2]),
        *(None,) * (len(ctx.needs_input_grad) - 3),
    )


def _pair_statistics_backward_fake(
    image_features: Tensor, text_features: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    needs_image_grad, needs_text_grad = args[12:14]
    return (
        _grad_like(image_features, needs_image_grad),
        _grad_like(text_features, needs_text_grad),
        _float64(image_features),
    )


def _pair_statistics_backward_flops(
    image_shape: Shape, text_shape: Shape, *args: Any, **kwargs: Any
) -> int:
    product = _product_flops(image_shape, text_shape)
    return _pairs_backward_flops(args[6], args[12:14], product)


_register(
    "pair_statistics",
    _pair_statistics_fake,
    _product_flops,
    _pair_statistics_backward,
    _pair_statistics_setup,
)
_register(
    "pair_statistics_backward", _pair_statistics_backward_fake, _pair_statistics_backward_flops
)


# ---------------------------------------------------------------- sigmoid_rows


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
    ctx.rounding = Rounding(allow_tf32, allow_bf16)
    _row_loss, dots = output
    ctx.mark_non_differentiable(dots)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, dots, *labels)


def _sigmoid_rows_grads(
    inputs: tuple[Tensor, ...],
    offset: int,
    dots: tuple[Tensor, ...],
    grads: tuple[Tensor, ...],
    needed: tuple[bool, ...],
    options: tuple[Any, ...],  # rounding and labels
) -> tuple[Tensor, ...]:
    result: tuple[Tensor, ...] = _ops.sigmoid_rows_backward(
        *inputs, offset, *dots, *grads, *needed[:2], *options
    )
    return result


def _sigmoid_rows_backward(
    ctx: Any, grad_rows: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad_rows is None:
        return (None,) * len(ctx.needs_input_grad)
    inputs, dots, labels = ctx.saved_tensors[:4], ctx.saved_tensors[4:5], ctx.saved_tensors[5:]
    options = *ctx.rounding, *labels, *ctx.same_are_positives
    needed = ctx.needs_input_grad[:4]
    image_grad, text_grad, scale_grad, bias_grad = _sigmoid_rows_grads(
        inputs, ctx.offset, dots, (grad_rows,), needed, options
    )
    return (
        image_grad if needed[0] else None,
        text_grad if needed[1] else None,
        _like_input(scale_grad, inputs[2], needed[2]),
        _like_input(bias_grad, inputs[3], needed[3]),
        *(None,) * (len(ctx.needs_input_grad) - 4),
    )


def _sigmoid_rows_backward_fake(
    image_features: Tensor, text_features: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    needs_image_grad, needs_text_grad = args[5:7]
    return (
        _grad_like(image_features, needs_image_grad),
        _grad_like(text_features, needs_text_grad),
        _float64(image_features),
        _float64(image_features),
    )


def _sigmoid_rows_backward_flops(
    image_shape: Shape, text_shape: Shape, *args: Any, **kwargs: Any
) -> int:
    product = _product_flops(image_shape, text_shape)
    return _pairs_backward_flops(args[3], args[5:7], product)


_register(
    "sigmoid_rows",
    _sigmoid_rows_fake,
    _product_flops,
    _sigmoid_rows_backward,
    _sigmoid_rows_setup,
)
_register("sigmoid_rows_backward", _sigmoid_rows_backward_fake, _sigmoid_rows_backward_flops)


# ---------------------------------------------------------------- cycle_grams


def _cycle_grams_fake(
    image_features: Tensor, text_features: Tensor, cross: bool = True
) -> tuple[Tensor, ...]:
    d = image_features.shape[1]
    return tuple(_float64(image_features, size, size) for size in (d, d, d if cross else 0))


def _cycle_grams_flops(
    image_shape: Shape, text_shape: Shape, cross: bool = True, **kwargs: Any
) -> int:
    n, d = image_shape
    return 2 * n * d * d * (3 if cross else 2)


def _cycle_grams_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    image_features, text_features, _cross = inputs
    ctx.save_for_backward(image_features, text_features)


def _cycle_grams_backward(ctx: Any, *grads: Tensor) -> Any:
    return (*_ops.cycle_grams_backward(*ctx.saved_tensors, *grads), None)


def _cycle_grams_backward_flops(
    image_shape: Shape, text_shape: Shape, *gram_shapes: Shape, **kwargs: Any
) -> int:
    n, d = image_shape
    return 2 * n * d * d * (2 if 0 in gram_shapes[2] else 4)


_register(
    "cycle_grams", _cycle_grams_fake, _cycle_grams_flops, _cycle_grams_backward, _cycle_grams_setup
)
_register("cycle_grams_backward", _both_grads_fake, _cycle_grams_backward_flops)


# ---------------------------------------------------------------- cycle_direct


def _cycle_direct_fake(
    image_features: Tensor, text_features: Tensor, keep_bytes: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    n, dtype = image_features.shape[0], _accumulation_dtype(image_features)
    kept = image_features.device.type == "cpu" and n * n <= keep_bytes // dtype.itemsize
    products = image_features.new_empty((n, n) if kept else (0, 0), dtype=dtype)
    return _float64(image_features), _float64(image_features), products


def _cycle_direct_flops(image_shape: Shape, *args: Any, **kwargs: Any) -> int:
    n, d = image_shape
    return 2 * n * n * d


def _cycle_direct_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    image_features, text_features, _keep_bytes = inputs
    products = output[2]
    ctx.mark_non_differentiable(products)
    ctx.set_materialize_grads(False)  # not zeros as large as the products
    ctx.save_for_backward(image_features, text_features, products)


def _cycle_direct_backward(ctx: Any, *grads: Tensor | None) -> Any:
    features = ctx.saved_tensors[0]
    upstream = (_float64(features).zero_() if grad is None else grad for grad in grads[:2])
    return (*_ops.cycle_direct_backward(*ctx.saved_tensors, *upstream), None)


def _cycle_direct_backward_flops(
    image_shape: Shape, text_shape: Shape, products_shape: Shape, *args: Any, **kwargs: Any
) -> int:
    """Count a product for each gradient, and the forward one unless it was kept."""
    n, d = image_shape
    return 2 * n * n * d * (2 + (0 in products_shape))


_register(
    "cycle_direct",
    _cycle_direct_fake,
    _cycle_direct_flops,
    _cycle_direct_backward,
    _cycle_direct_setup,
)
_register("cycle_direct_backward", _both_grads_fake, _cycle_direct_backward_flops)


# ---------------------------------------------------------------- retrieval


def _without_derivative(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output)


def _never_called(ctx: Any, *grads: Tensor) -> None:
    """Satisfy torch, which requires a backward; no output is differentiable."""


def _retrieval_ranks_fake(
    image_features: Tensor,
    text_features: Tensor,
    image_labels: Tensor,
    text_labels: Tensor,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(image_labels), torch.empty_like(text_labels)


def _similarity_top_k_fake(
    query_features: Tensor, candidate_features: Tensor, k: int, allow_tf32: bool = False
) -> tuple[Tensor, Tensor]:
    values = _float64(query_features, query_features.shape[0], k)
    return values, torch.empty_like(values, dtype=torch.int64)


_register(
    "retrieval_ranks", _retrieval_ranks_fake, _product_flops, _never_called, _without_derivative
)
_register(
    "similarity_top_k", _similarity_top_k_fake, _product_flops, _never_called, _without_derivative
)


# Looked up once, so that torch.compile meets a constant.
_KERNELS = frozenset(
    (name, device)
    for name in _OPERATORS
    for device in ("cpu", "cuda")
    if _STATUS["cpu"].loaded  # which holds the schemas
    and has_kernel(f"cyclip_ext::{name}", device)
)
