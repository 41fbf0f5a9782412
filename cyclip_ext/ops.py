"""The native operators: loads the libraries, registers shapes (fake) and derivatives (autograd).

Importing this module never fails for want of a library; `backend_status()` says what is there and
why not. With the CPU library loaded, these exist under `torch.ops.cyclip_ext`:

    row_norms(x)                          max(|x_i|, 1e-12); [N]
    pair_statistics(x, y, s, offset)      softmax statistics of the negatives (see PairStatistics)
    sigmoid_rows(x, y, s, b, offset)      sum_j softplus(-l_ij (s S_ij + b)); [n], float64
    cycle_grams(x, y, cross)              A = P'P, B = M'M, K = P'M; [d, d] each, float64;
                                          K is [0, 0] unless `cross` (True)
    cycle_direct(x, y)                    the two cycle sums themselves; two scalars, float64
    retrieval_ranks(x, y, a, b)           number of foreign entries >= the best own one, of each row
                                          and column; own: equal labels a [n], b [m]; int64
    similarity_top_k(x, y, k)             the k largest cosines of each row, falling, float64, and
                                          their columns, int64; [n, k] each

with x [n, d] image features and y [m, d] text features, raw, of one dtype: float32, float64,
bfloat16 or float16. 16-bit inputs are widened to float32. The positive of row i is column
i + offset, so that a rank can hand in its rows of a larger batch. Operators with a `_backward` name
compute the derivatives; they can not be differentiated again and say so (`row_norms` can). Ranks
and top-k have no derivatives: their outputs never require any.

Further arguments of all but row_norms and the cycle operators: `allow_tf32` (False) lets a GPU
round float32 features to TF32 in products; the CPU ignores it. Of pair_statistics and sigmoid_rows
alone: `allow_bf16` (False) rounds float32 features to bfloat16 beforehand, so that the loss is
that of the rounded features, and dL/dS to bfloat16 in the products of the backward pass.
`keep_bytes` (0) is what the last output, `dots`, may occupy on the CPU: the dot products of all
pairs, which the backward pass then need not compute again; it is empty where they do not fit.

What the numbers mean: docs/losses.md. How they are computed: docs/gradients.md, docs/cycle.md.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class BackendStatus:
    """What became of one native library; `reason` is empty when it is loaded."""

    built: bool
    loaded: bool
    reason: str


def backend_status() -> dict[str, BackendStatus]:
    """The state of the "cpu" and the "cuda" library of this installation."""
    return dict(_STATUS)


def has_operator(name: str, device_type: str) -> bool:
    """Whether `torch.ops.cyclip_ext.<name>` has a kernel for this device type ("cpu", "cuda")."""
    return (name, device_type) in _KERNELS


def _build_reason(library: str) -> str:
    """Why setup.py did not build a library, in its own words."""
    try:
        info = json.loads((_PACKAGE / "_build_info.json").read_text())
        return str(info["libraries"][library]["reason"])
    except (OSError, KeyError, ValueError):
        needed = {"cpu": "a C++ compiler", "cuda": "nvcc and a torch built for CUDA"}[library]
        return f"there is no record of a build; `pip install .` builds it, given {needed}"


def _load(library: str, file_stem: str) -> BackendStatus:
    paths = sorted(_PACKAGE.glob(f"{file_stem}.*so")) + sorted(_PACKAGE.glob(f"{file_stem}.*pyd"))
    if not paths:
        return BackendStatus(False, False, _build_reason(library))
    try:
        torch.ops.load_library(str(paths[0]))
    except (OSError, RuntimeError) as error:
        remedy = "reinstall cyclip_ext beside this torch"
        return BackendStatus(True, False, f"loading {paths[0].name} failed: {error}; {remedy}")
    return BackendStatus(True, True, "")


def _load_all() -> dict[str, BackendStatus]:
    cpu = _load("cpu", "_C")
    if torch.version.cuda is None:
        cuda = BackendStatus(
            bool(list(_PACKAGE.glob("_C_cuda.*"))), False, "this torch is built without CUDA"
        )
    elif not cpu.loaded:
        cuda = BackendStatus(False, False, f"it needs the cpu library: {cpu.reason}")
    else:
        cuda = _load("cuda", "_C_cuda")
    return {"cpu": cpu, "cuda": cuda}


# ---------------------------------------------------------------- shapes


def _accumulation_dtype(features: Tensor) -> torch.dtype:
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _float64(like: Tensor, *shape: int | torch.SymInt) -> Tensor:
    return like.new_empty(shape, dtype=torch.float64)


def _grad_like(features: Tensor, needed: bool) -> Tensor:
    """Backward operators return no rows for a tower that needs no gradient."""
    n, d = features.shape
    return features.new_empty((n if needed else 0, d))


def _dots(image_features: Tensor, m: int | torch.SymInt, keep_bytes: int) -> Tensor:
    """The dot products of all pairs in tiles, or nothing (KeptDots in csrc/ops/cpu/tiles.h)."""
    n, dtype = image_features.shape[0], _accumulation_dtype(image_features)
    rows = 128 if n >= 1024 else 64 if n >= 128 else 32
    cols = 512 if m >= 2048 else 256 if m >= 512 else 128
    shape = ((n + rows - 1) // rows, (m + cols - 1) // cols, rows, cols)
    fits = math.prod(shape) <= keep_bytes // dtype.itemsize
    kept = fits and image_features.device.type == "cpu"
    return image_features.new_empty(shape if kept else (0, 0, 0, 0), dtype=dtype)


def _row_norms_fake(features: Tensor) -> Tensor:
    return features.new_empty(features.shape[:1], dtype=_accumulation_dtype(features))


def _pair_statistics_fake(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    offset: int = 0,
    allow_tf32: bool = False,
    allow_bf16: bool = False,
    keep_bytes: int = 0,
) -> tuple[Tensor, ...]:
    n, m = image_features.shape[0], text_features.shape[0]
    return (
        *(_float64(image_features, size) for size in (n, m, n, n, m)),
        *(image_features.new_empty((size,), dtype=torch.int64) for size in (n, m)),
        _dots(image_features, m, keep_bytes),
    )


def _pair_statistics_backward_fake(
    image_features: Tensor, text_features: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    needs_image_grad, needs_text_grad, _allow_tf32, _allow_bf16 = args[-4:]
    return (
        _grad_like(image_features, needs_image_grad),
        _grad_like(text_features, needs_text_grad),
        _float64(image_features),
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
) -> tuple[Tensor, Tensor]:
    n, m = image_features.shape[0], text_features.shape[0]
    return _float64(image_features, n), _dots(image_features, m, keep_bytes)


def _sigmoid_rows_backward_fake(
    image_features: Tensor, text_features: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grads = _pair_statistics_backward_fake(image_features, text_features, *args)
    return (*grads, _float64(image_features))


def _cycle_grams_fake(
    image_features: Tensor, text_features: Tensor, cross: bool = True
) -> tuple[Tensor, ...]:
    d = image_features.shape[1]
    return tuple(_float64(image_features, size, size) for size in (d, d, d if cross else 0))


def _cycle_direct_fake(image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
    return _float64(image_features), _float64(image_features)


def _both_grads_fake(
    image_features: Tensor, text_features: Tensor, *args: Any
) -> tuple[Tensor, Tensor]:
    return _grad_like(image_features, True), _grad_like(text_features, True)


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


# ---------------------------------------------------------------- derivatives


def _like_input(grad: Tensor, argument: Tensor, needed: bool) -> Tensor | None:
    return grad.to(argument.dtype).reshape(argument.shape) if needed else None


def _pair_statistics_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    image_features, text_features, logit_scale, ctx.offset, *precision, _keep_bytes = inputs
    ctx.precision = precision
    row_lse, col_lse, _, _, _, *indices_and_dots = output
    ctx.mark_non_differentiable(*indices_and_dots)
    ctx.set_materialize_grads(False)  # not zeros as large as the dots
    ctx.save_for_backward(
        image_features, text_features, logit_scale, row_lse, col_lse, *indices_and_dots
    )


def _pair_statistics_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    image_features, text_features, logit_scale, *saved = ctx.saved_tensors
    image_needed, text_needed, scale_needed = ctx.needs_input_grad[:3]
    n, m = image_features.shape[0], text_features.shape[0]
    upstream = (
        _float64(image_features, size).zero_() if grad is None else grad
        for size, grad in zip((n, m, n, n, m), grads[:5], strict=True)
    )
    image_grad, text_grad, scale_grad = torch.ops.cyclip_ext.pair_statistics_backward(
        image_features,
        text_features,
        logit_scale,
        ctx.offset,
        *saved,
        *upstream,
        image_needed,
        text_needed,
        *ctx.precision,
    )
    return (
        image_grad if image_needed else None,
        text_grad if text_needed else None,
        _like_input(scale_grad, logit_scale, scale_needed),
        *(None,) * 4,
    )


def _sigmoid_rows_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.offset, allow_tf32, allow_bf16, _keep_bytes = inputs
    ctx.precision = allow_tf32, allow_bf16
    _row_loss, dots = output
    ctx.mark_non_differentiable(dots)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, dots)


def _sigmoid_rows_backward(
    ctx: Any, grad_rows: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad_rows is None:
        return (None,) * 8
    image_features, text_features, logit_scale, logit_bias, dots = ctx.saved_tensors
    image_needed, text_needed, scale_needed, bias_needed = ctx.needs_input_grad[:4]
    image_grad, text_grad, scale_grad, bias_grad = torch.ops.cyclip_ext.sigmoid_rows_backward(
        image_features,
        text_features,
        logit_scale,
        logit_bias,
        ctx.offset,
        dots,
        grad_rows,
        image_needed,
        text_needed,
        *ctx.precision,
    )
    return (
        image_grad if image_needed else None,
        text_grad if text_needed else None,
        _like_input(scale_grad, logit_scale, scale_needed),
        _like_input(bias_grad, logit_bias, bias_needed),
        *(None,) * 4,
    )


def _save_features(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _cycle_grams_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    image_features, text_features, _cross = inputs
    ctx.save_for_backward(image_features, text_features)


def _cycle_grams_backward(ctx: Any, *grads: Tensor) -> Any:
    return (*torch.ops.cyclip_ext.cycle_grams_backward(*ctx.saved_tensors, *grads), None)


def _cycle_direct_backward(ctx: Any, *grads: Tensor) -> Any:
    return torch.ops.cyclip_ext.cycle_direct_backward(*ctx.saved_tensors, *grads)


def _row_norms_backward(ctx: Any, grad_norms: Tensor) -> Any:
    (features,) = ctx.saved_tensors
    norms = torch.ops.cyclip_ext.row_norms(features)
    # Where the norm was clamped to eps it is a constant.
    slope = torch.where(norms > 1e-12, grad_norms / norms, 0.0)
    return (features * slope[:, None]).to(features.dtype)


def _without_derivative(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output)


def _never_called(ctx: Any, *grads: Tensor) -> None:
    """What torch wants registered; without a differentiable output there is no way here."""


def _once_differentiable(name: str) -> Any:
    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(
            f"cyclip_ext::{name} cannot be differentiated twice; "
            'use backend="reference" for second derivatives'
        )

    return refuse


_FAKES: dict[str, Any] = {
    "row_norms": _row_norms_fake,
    "pair_statistics": _pair_statistics_fake,
    "pair_statistics_backward": _pair_statistics_backward_fake,
    "sigmoid_rows": _sigmoid_rows_fake,
    "sigmoid_rows_backward": _sigmoid_rows_backward_fake,
    "cycle_grams": _cycle_grams_fake,
    "cycle_grams_backward": _both_grads_fake,
    "cycle_direct": _cycle_direct_fake,
    "cycle_direct_backward": _both_grads_fake,
    "retrieval_ranks": _retrieval_ranks_fake,
    "similarity_top_k": _similarity_top_k_fake,
}

_DERIVATIVES: dict[str, tuple[Any, Any]] = {
    "row_norms": (_row_norms_backward, _save_features),
    "pair_statistics": (_pair_statistics_backward, _pair_statistics_setup),
    "sigmoid_rows": (_sigmoid_rows_backward, _sigmoid_rows_setup),
    "cycle_grams": (_cycle_grams_backward, _cycle_grams_setup),
    "cycle_direct": (_cycle_direct_backward, _save_features),
    "retrieval_ranks": (_never_called, _without_derivative),
    "similarity_top_k": (_never_called, _without_derivative),
}


def _register() -> None:
    for name, fake in _FAKES.items():
        torch.library.register_fake(f"cyclip_ext::{name}", fake)
        if name.endswith("_backward"):
            torch.library.register_autograd(f"cyclip_ext::{name}", _once_differentiable(name))
    for name, (backward, setup_context) in _DERIVATIVES.items():
        torch.library.register_autograd(
            f"cyclip_ext::{name}", backward, setup_context=setup_context
        )


def _registered_kernels() -> frozenset[tuple[str, str]]:
    """Looked up once, so that torch.compile meets a constant."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return frozenset(
        (name, device)
        for name in _FAKES
        for device in ("cpu", "cuda")
        if has_kernel(f"cyclip_ext::{name}", device.upper())
    )


_STATUS = _load_all()
_KERNELS: frozenset[tuple[str, str]] = frozenset()
if _STATUS["cpu"].loaded:  # the schemas live there
    _register()
    _KERNELS = _registered_kernels()
