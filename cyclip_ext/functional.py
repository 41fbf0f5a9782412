"""The losses as functions, on the native operators or on the dense reference; retrieval likewise.

Every function takes raw or normalized features of both towers, [N, d], in float32, float64,
bfloat16 or float16 (mixed dtypes are promoted). A loss is a scalar: float64 for float64 features,
float32 for all others. Autocast does not reach inside. Memory grows as N d with the native backend,
as N^2 with the reference. On a GPU the native backend rounds float32 features to TF32 in products
where torch is set to do so in its own (torch.set_float32_matmul_precision).

`backend` chooses the implementation:
    "auto"       the native operators where they exist for the device, else the reference with one
                 warning
    "native"     the native operators, or a RuntimeError that says why they are missing
    "reference"  the dense formulas of cyclip_ext.reference, differentiable any number of times

`precision` chooses the matrix products over all pairs:
    "auto"       in the dtype of the features
    "bf16"       float32 features are rounded to bfloat16, so that the loss is that of the rounded
                 features; sums stay float32. Other dtypes are multiplied as they are

`memory_budget` is the number of bytes that the dot products of all pairs may occupy on the CPU from
the forward to the backward pass (N M numbers of the compute dtype); where they take more, none are
kept and the backward pass computes them again, a quarter of all work. None: what the environment
variable CYCLIP_MEMORY_BUDGET says (torch.compile reads it once), else 256 MiB. On a GPU nothing
is kept.

`group` is a process group of torch.distributed, each of whose ranks calls the loss with its own
rows, [n, d] with n as it comes, and gets the loss of the whole batch. Gradients are such that their
average over ranks, as DistributedDataParallel takes it, is that of the whole batch. Ranks whose
arguments do not fit together, or of which one refuses its own, all raise. None: this process alone.
`exchange` says how the other ranks' features get here:
    "gather"     all at once; memory O(N d)
    "ring"       block by block from rank to rank, while the last one is computed; memory O(n d).
                 Nothing is kept between forward and backward, whatever `memory_budget` says
    "replicate"  both towers all at once, and every rank computes the whole loss: the bits of one
                 process, nothing sent in the backward pass; for small batches
Cycle and margin terms exchange sums alone. docs/distributed.md has usage and costs.

NaN and infinity in the features make the loss and its gradients NaN, without an exception.
"""

from __future__ import annotations

import functools
import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import distributed, ops, reference
from .distributed import Batch, Exchange

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Backend = Literal["auto", "native", "reference"]
Reduction = Literal["batchmean", "mean"]
Precision = Literal["auto", "bf16"]

DEFAULT_MEMORY_BUDGET = 256 << 20  # bytes: a batch of 8192 in float32


class PairStatistics(NamedTuple):
    """What the losses need to know of the similarity matrix; float64 with the native backend.

    With a group, of this rank's pairs, [n] each, among the negatives of all ranks.
    """

    row_lse: Tensor  # [N] log sum_{j != i} e^(s S_ij), over the negatives of image i
    col_lse: Tensor  # [N] the same over the negatives of text j
    positive: Tensor  # [N] S_ii
    row_hardest: Tensor  # [N] max_{j != i} S_ij; -inf without negatives
    col_hardest: Tensor  # [N]


def contrastive_loss(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [N, d]
    logit_scale: Tensor | float,
    *,
    backend: Backend = "auto",
    precision: Precision = "auto",
    memory_budget: int | None = None,
    group: ProcessGroup | None = None,
    exchange: Exchange = "gather",
) -> Tensor:
    """Symmetric cross-entropy over cosines scaled by `logit_scale` (already exponentiated).

    L = 1/(2N) sum_i [LSE_j z_ij - z_ii] + 1/(2N) sum_j [LSE_i z_ij - z_jj],  z = s S.
    Computed as softplus(LSE over negatives - z_ii), so a loss of 1e-30 is exact, not zero.

    Raises: ValueError or TypeError for features or a scale that do not fit (named in the message).
    Source: Radford et al. 2021; Goel et al. 2022.
    """
    image, text, scale, batch = _prepare(
        image_features, text_features, logit_scale, group=group, exchange=exchange
    )
    statistics = pair_statistics(
        image, text, scale, batch, backend=backend, precision=precision, memory_budget=memory_budget
    )
    return _as_loss(contrastive_from_statistics(statistics, scale, batch), image)


def cycle_consistency(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [N, d]
    *,
    in_modal: float = 0.25,
    cross_modal: float = 0.25,
    reduction: Reduction = "batchmean",
    backend: Backend = "auto",
    group: ProcessGroup | None = None,
) -> Tensor:
    """in_modal * L_in + cross_modal * L_cross of CyCLIP.

    L_in = 1/N sum_jk (<x^_j, x^_k> - <y^_j, y^_k>)^2,  L_cross = 1/N sum_jk (S_jk - S_kj)^2.
    `reduction="mean"` divides by N^2 instead; weights do not carry over from one to the other.
    Cost O(N d min(N, d)), memory O(N d): no N x N matrix for large N (docs/cycle.md). With a group
    O(n d^2) on each rank, and three d x d matrices are summed over the ranks.

    Raises: ValueError or TypeError for features that do not fit or an unknown reduction.
    Source: Goel et al. 2022, cross-modal and in-modal consistency.
    """
    image, text, _, batch = _prepare(image_features, text_features, 1.0, group=group)
    if in_modal == cross_modal:
        both = cycle_sum(image, text, batch, reduction=reduction, backend=backend)
        return _as_loss(in_modal * both, image)
    in_modal_loss, cross_modal_loss = cycle_terms(
        image, text, batch, reduction=reduction, backend=backend
    )
    return _as_loss(in_modal * in_modal_loss + cross_modal * cross_modal_loss, image)


def margin_loss(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [N, d]
    *,
    group: ProcessGroup | None = None,
) -> Tensor:
    """1/N sum_i (1 - S_ii): positive pairs only. O(N d) in every backend.

    Source: Chen et al. 2024 (arXiv 2310.00927), the one-sided regularizer.
    """
    image, text, _, batch = _prepare(image_features, text_features, 1.0, group=group)
    with _without_autocast(image):
        positive = reference.positive_similarity(_compute(image), _compute(text))
        return _as_loss(mean(1 - positive, batch), image)


def hinge_margin_loss(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [N, d]
    hinge_margin: float = 0.2,
    *,
    backend: Backend = "auto",
    precision: Precision = "auto",
    memory_budget: int | None = None,
    group: ProcessGroup | None = None,
    exchange: Exchange = "gather",
) -> Tensor:
    """1/(2N) sum_i [g - S_ii + max_{j != i} S_ij]_+, plus the same over texts; g = `hinge_margin`.

    Of tied hardest negatives the first counts. Zero for N = 1.
    """
    image, text, scale, batch = _prepare(
        image_features, text_features, 1.0, group=group, exchange=exchange
    )
    statistics = pair_statistics(
        image, text, scale, batch, backend=backend, precision=precision, memory_budget=memory_budget
    )
    return _as_loss(hinge_from_statistics(statistics, hinge_margin, batch), image)


def sigmoid_loss(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [N, d]
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    *,
    backend: Backend = "auto",
    precision: Precision = "auto",
    memory_budget: int | None = None,
    group: ProcessGroup | None = None,
    exchange: Exchange = "gather",
) -> Tensor:
    """1/N sum_ij softplus(-l_ij (s S_ij + b)), l = 1 on the diagonal and -1 off it.

    Source: Zhai et al. 2023 (SigLIP, arXiv 2303.15343), algorithm 1.
    """
    image, text, scale, bias, batch = _prepare(
        image_features, text_features, logit_scale, logit_bias, group=group, exchange=exchange
    )
    check_options(precision=precision, memory_budget=memory_budget)
    if _use_native("sigmoid_rows", image, backend):
        options = _operator_options(precision, memory_budget, batch, image, text, scale, bias)
        if batch is None:
            rows, _ = torch.ops.cyclip_ext.sigmoid_rows(image, text, scale, bias, **options)
            return _as_loss(mean(rows), image)
        rectangle = distributed.NativeSigmoid(**options)
        rows = distributed.sigmoid_rows(rectangle, image, text, scale, bias, batch)
        return _as_loss(mean(rows, batch), image)
    with _without_autocast(image):
        features = _compute(image, precision), _compute(text, precision)
        if batch is None:
            return _as_loss(reference.sigmoid_loss(*features, scale, bias), image)
        dense = distributed.Dense(lambda *inputs: (reference.sigmoid_rows(*inputs),), 1)
        rows = distributed.sigmoid_rows(dense, *features, scale, bias, batch)
        return _as_loss(mean(rows, batch), image)


def retrieval_ranks(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [M, d]
    image_labels: Tensor,  # int64 [N]
    text_labels: Tensor,  # int64 [M]
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:  # int64 [N] and [M]
    """How many foreign candidates are at least as similar as the best own one, per image and text.

    A text is an image's own where their labels are equal, foreign where they are not, and the other
    way round: rank < k is a hit at k, and a tie with a foreign candidate counts against the model.
    -1 where there is none of its own. Similarity is the cosine; NaN counts as -inf. Memory
    O((N + M) d) with the native backend, O(N M) with the reference. Without derivatives.

    Raises: ValueError or TypeError for features or labels that do not fit (named in the message).
    """
    image, text = _one_kind(image_features=image_features, text_features=text_features)
    _check_labels(image_labels, "image_labels", image, "image_features")
    _check_labels(text_labels, "text_labels", text, "text_features")
    if _use_native("retrieval_ranks", image, backend):
        row_rank, col_rank = torch.ops.cyclip_ext.retrieval_ranks(
            image, text, image_labels, text_labels, _allow_tf32(image)
        )
        return row_rank, col_rank
    with torch.no_grad(), _without_autocast(image):
        return reference.retrieval_ranks(_compute(image), _compute(text), image_labels, text_labels)


def similarity_top_k(
    query_features: Tensor,  # [N, d]
    candidate_features: Tensor,  # [M, d]
    k: int,
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:  # float64 [N, k] and int64 [N, k]
    """Cosines of the k most similar candidates of each query, falling, and the candidates' indices.

    Of equal ones the first comes first; NaN counts as -inf. Memory O((N + M) d + N k) with the
    native backend, O(N M) with the reference. Without derivatives.

    Raises: ValueError for a k outside of 1 ... M; ValueError or TypeError for features that do not
    fit (named in the message).
    """
    query, candidate = _one_kind(
        query_features=query_features, candidate_features=candidate_features
    )
    if not 1 <= k <= candidate.shape[0]:
        raise ValueError(
            f"k must lie in 1 ... {candidate.shape[0]}, the number of candidates, got {k}"
        )
    if _use_native("similarity_top_k", query, backend):
        values, indices = torch.ops.cyclip_ext.similarity_top_k(
            query, candidate, k, _allow_tf32(query)
        )
        return values, indices
    with torch.no_grad(), _without_autocast(query):
        values, indices = reference.similarity_top_k(_compute(query), _compute(candidate), k)
        return values.double(), indices


# ------------------------------------------------- building blocks of cyclip_ext.losses
#
# These take what `_prepare` has returned, features that it has checked and the batch, and return
# unrounded results.


def pair_statistics(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    batch: Batch | None = None,
    *,
    backend: Backend,
    precision: Precision,
    memory_budget: int | None,
) -> PairStatistics:
    """One pass over the similarity matrix, for every loss and statistic that looks at it."""
    check_options(precision=precision, memory_budget=memory_budget)
    inputs = image_features, text_features, logit_scale
    if _use_native("pair_statistics", image_features, backend):
        options = _operator_options(precision, memory_budget, batch, *inputs)
        if batch is None:
            outputs = torch.ops.cyclip_ext.pair_statistics(*inputs, **options)
            return PairStatistics(*outputs[:5])
        rectangle = distributed.NativeStatistics(**options)
        return PairStatistics(*distributed.pair_statistics(rectangle, *inputs, batch))
    with _without_autocast(image_features):
        image, text = (_compute(features, precision) for features in inputs[:2])
        if batch is None:
            return PairStatistics(*reference.pair_statistics(image, text, logit_scale))
        dense = distributed.Dense(reference.pair_statistics, 5)
        statistics = distributed.pair_statistics(dense, image, text, logit_scale, batch)
        return PairStatistics(*statistics)


def contrastive_from_statistics(
    statistics: PairStatistics, logit_scale: Tensor, batch: Batch | None = None
) -> Tensor:
    """-log softmax of the positive is softplus(lse - z): no cancellation, however small."""
    logit = logit_scale * statistics.positive
    zero = 0 * logit  # keeps NaN
    if (logit.numel() if batch is None else batch.rows) == 1:
        # No negatives: lse = -inf, which second derivatives would not survive.
        return mean(zero, batch)
    image_to_text = torch.logaddexp(statistics.row_lse - logit, zero)
    text_to_image = torch.logaddexp(statistics.col_lse - logit, zero)
    return mean(image_to_text + text_to_image, batch) / 2


def hinge_from_statistics(
    statistics: PairStatistics, hinge_margin: float, batch: Batch | None = None
) -> Tensor:
    short_of_margin = hinge_margin - statistics.positive
    rows = (short_of_margin + statistics.row_hardest).relu()
    cols = (short_of_margin + statistics.col_hardest).relu()
    return mean(rows + cols, batch) / 2


def cycle_terms(
    image_features: Tensor,
    text_features: Tensor,
    batch: Batch | None = None,
    *,
    reduction: Reduction,
    backend: Backend,
) -> tuple[Tensor, Tensor]:
    """(L_in, L_cross), by d x d Gram matrices or by pairs: what is cheaper."""
    check_options(reduction=reduction, backend=backend)
    if batch is not None:
        grams = _grams_of_all_ranks(image_features, text_features, batch, backend, apart=True)
        sums = cycle_sums_from_grams(*grams)
    elif not _use_native("cycle_grams", image_features, backend):
        with _without_autocast(image_features):
            features = _compute(image_features), _compute(text_features)
            return (
                reference.in_modal_loss(*features, reduction),
                reference.cross_modal_loss(*features, reduction),
            )
    elif _grams_are_cheaper(image_features, apart=True):
        grams = torch.ops.cyclip_ext.cycle_grams(image_features, text_features)
        sums = cycle_sums_from_grams(*grams)
    else:
        sums = torch.ops.cyclip_ext.cycle_direct(image_features, text_features)
    count = _cycle_count(image_features, batch, reduction)
    return sums[0] / count, sums[1] / count


def cycle_sum(
    image_features: Tensor,
    text_features: Tensor,
    batch: Batch | None = None,
    *,
    reduction: Reduction,
    backend: Backend,
) -> Tensor:
    """L_in + L_cross, where K drops out of the Gram route."""
    check_options(reduction=reduction)
    if batch is not None:
        grams = _grams_of_all_ranks(image_features, text_features, batch, backend, apart=False)
        plus, minus = grams
    else:
        native = _use_native("cycle_grams", image_features, backend)
        if not native or not _grams_are_cheaper(image_features, apart=False):
            terms = cycle_terms(image_features, text_features, reduction=reduction, backend=backend)
            return terms[0] + terms[1]
        plus, minus, _ = torch.ops.cyclip_ext.cycle_grams(
            image_features, text_features, cross=False
        )
    return _inner_product(plus, minus) / _cycle_count(image_features, batch, reduction)


def _cycle_count(features: Tensor, batch: Batch | None, reduction: Reduction) -> int:
    n = features.shape[0] if batch is None else batch.rows
    return n if reduction == "batchmean" else n * n


def _grams_of_all_ranks(
    image_features: Tensor, text_features: Tensor, batch: Batch, backend: Backend, *, apart: bool
) -> tuple[Tensor, ...]:
    """A and B, and K where the terms are wanted apart: Gram matrices of ranks add up."""
    grams: tuple[Tensor, ...]
    if _use_native("cycle_grams", image_features, backend):
        grams = torch.ops.cyclip_ext.cycle_grams(image_features, text_features, cross=apart)
    else:
        with _without_autocast(image_features):
            grams = reference.cycle_grams(_compute(image_features), _compute(text_features))
    return distributed.all_sum(torch.stack(grams[: 3 if apart else 2]), batch).unbind()


def _grams_are_cheaper(features: Tensor, apart: bool) -> bool:
    """Where the routes' costs meet, with the terms apart or their sum alone (docs/cycle.md)."""
    n, d = features.shape
    if features.is_cuda:
        return n >= 2 * d
    return 2 * n >= 3 * d if apart else n >= d


def cycle_sums_from_grams(plus: Tensor, minus: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
    """N L_in = (a + b)/2 and N L_cross = (a - b)/2 with a = <A, B> and b = <K, K'>."""
    a, b = _inner_product(plus, minus), _inner_product(cross, cross.T)
    return (a + b) / 2, (a - b) / 2


def mean(values: Tensor, batch: Batch | None = None) -> Tensor:
    """Of a vector with one entry per pair, over the whole batch."""
    if batch is None and values.numel() <= _ONE_THREAD:
        return values.mean()
    total = _sum(values)
    if batch is None:
        return total / values.numel()
    return distributed.all_sum(total, batch) / batch.rows


_ONE_THREAD = 16384  # torch leaves what is shorter to one thread


def _sum(values: Tensor) -> Tensor:
    """Of a vector, to the same bits for any number of threads; see _inner_product."""
    return torch.stack([part.sum() for part in values.split(_ONE_THREAD)]).sum()


def _inner_product(a: Tensor, b: Tensor) -> Tensor:
    """By rows first: torch cuts one large sum into as many parts as there are threads."""
    return (a * b).sum(dim=1).sum()


# ------------------------------------------------- arguments


def check_options(
    *,
    backend: Backend = "auto",
    reduction: Reduction = "batchmean",
    precision: Precision = "auto",
    memory_budget: int | None = None,
    exchange: Exchange = "gather",
) -> None:
    """Raises ValueError for a value that no loss knows."""
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be 'auto' or 'bf16', got {precision!r}")
    if memory_budget is not None:
        if isinstance(memory_budget, bool) or not isinstance(memory_budget, int):
            raise TypeError(
                f"memory_budget must be an int, a number of bytes, got {memory_budget!r}"
            )
        if memory_budget < 0:
            raise ValueError(
                f"memory_budget must be a number of bytes, 0 for none, got {memory_budget}"
            )
    if reduction not in get_args(Reduction):
        raise ValueError(
            f"reduction must be 'batchmean' (sum/N) or 'mean' (sum/N^2), got {reduction!r}"
        )
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be 'auto', 'native' or 'reference', got {backend!r}")
    if exchange not in get_args(Exchange):
        raise ValueError(f"exchange must be 'gather', 'ring' or 'replicate', got {exchange!r}")


def _prepare(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    *logit_bias: Tensor | float,
    group: ProcessGroup | None = None,
    exchange: Exchange = "gather",
) -> tuple[Any, ...]:  # the arguments, and a Batch | None
    """Checks the arguments of a loss, makes scalars 0-dim tensors, and meets the other ranks."""

    def check() -> tuple[Tensor, ...]:
        image, text = _one_kind(image_features=image_features, text_features=text_features)
        if image.shape != text.shape:
            raise ValueError(
                "image_features and text_features must have the same shape, got "
                f"{list(image.shape)} and {list(text.shape)}; row i of one must pair "
                "with row i of the other"
            )
        biases = (_scalar(bias, "logit_bias", image) for bias in logit_bias)
        return image, text, _scalar(logit_scale, "logit_scale", image), *biases

    check_options(exchange=exchange)
    if group is None:
        return *check(), None
    image, text, *scalars, batch = distributed.agree(check, group, exchange)
    if exchange == "replicate":  # from here on as one process would have it
        wide = torch.promote_types(image.dtype, torch.float32)  # for W times a gradient
        rows = (distributed.replicate_rows(features, batch, wide) for features in (image, text))
        return *rows, *scalars, None
    return image, text, *scalars, batch


def _one_kind(**towers: Tensor) -> tuple[Tensor, Tensor]:
    """Checks the features of two towers, given by name, and promotes mixed dtypes."""
    for name, features in towers.items():
        if not isinstance(features, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(features).__name__}")
        if features.dim() != 2:
            raise ValueError(f"{name} must be [N, d], got shape {list(features.shape)}")
        if 0 in features.shape:
            raise ValueError(
                f"{name} must not be empty, got shape {list(features.shape)}; skip empty batches"
            )
        if not features.is_floating_point() or features.dtype.itemsize < 2:
            raise TypeError(
                f"{name} must be float32, float64, bfloat16 or float16, got {features.dtype}; "
                "convert it with .float()"
            )
    names = " and ".join(towers)
    rows, cols = towers.values()
    if rows.shape[1] != cols.shape[1]:
        raise ValueError(
            f"{names} must have the same width d, got {list(rows.shape)} and {list(cols.shape)}"
        )
    if rows.device != cols.device:
        raise ValueError(
            f"{names} must be on one device, got {rows.device} and {cols.device}; "
            "move one with .to()"
        )
    dtype = torch.promote_types(rows.dtype, cols.dtype)
    return rows.to(dtype), cols.to(dtype)


def _check_labels(labels: Tensor, name: str, features: Tensor, features_name: str) -> None:
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(labels).__name__}")
    if labels.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {labels.dtype}; convert it with .long()")
    if labels.shape != features.shape[:1]:
        raise ValueError(
            f"{name} must be [{features.shape[0]}], one per row of {features_name}, "
            f"got shape {list(labels.shape)}"
        )
    if labels.device != features.device:
        raise ValueError(
            f"{name} must be on the device of {features_name}, {features.device}, "
            f"got {labels.device}; move it with .to()"
        )


def _scalar(value: Tensor | float, name: str, features: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        if isinstance(value, (int, float)):
            # Not torch.tensor: it copies from the host, which a CUDA graph cannot capture.
            return torch.full((), float(value), dtype=torch.float64, device=features.device)
        raise TypeError(f"{name} must be a tensor or a number, got {type(value).__name__}")
    if value.numel() != 1:
        raise ValueError(f"{name} must be a scalar, got shape {list(value.shape)}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a floating-point scalar, got {value.dtype}")
    if value.device != features.device:
        raise ValueError(
            f"{name} must be on the device of the features, {features.device}, got {value.device}; "
            "move it with .to()"
        )
    # In float64 the shares of the positives and of the negatives in the scale's gradient, which
    # nearly cancel, meet before they are rounded.
    return value.reshape(()).double()


def _allow_tf32(features: Tensor) -> bool:
    return features.is_cuda and features.dtype == torch.float32 and _torch_allows_tf32()


def _torch_allows_tf32() -> bool:
    """Whether torch itself multiplies float32 matrices in TF32 on a GPU.

    `torch.set_float32_matmul_precision` sets what is read here. To read it by its counterpart
    raises where somebody has used `torch.backends.cuda.matmul.fp32_precision`.
    """
    return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")


# torch.compile cannot trace the question, but compiles again where the answer has changed. This is
# torch.compiler.assume_constant_result without its import of the whole compiler.
_torch_allows_tf32._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _operator_options(
    precision: Precision, memory_budget: int | None, batch: Batch | None, *inputs: Tensor
) -> dict[str, Any]:
    """Of the operators that look at all pairs; `inputs`, the features first."""
    features = inputs[0]
    options = {
        "allow_tf32": _allow_tf32(features),
        "allow_bf16": precision == "bf16",
        "keep_bytes": _keep_bytes(memory_budget, *inputs),
    }
    if batch is not None:
        # The operators see 16-bit features widened to float32, and may multiply them as what they
        # are: bfloat16, and float16 as TF32, which holds it.
        options["allow_tf32"] |= features.is_cuda and features.dtype == torch.float16
        options["allow_bf16"] |= features.dtype == torch.bfloat16
        if batch.exchange == "ring":
            options["keep_bytes"] = 0
    return options


def _keep_bytes(memory_budget: int | None, *inputs: Tensor) -> int:
    """What may be kept for a backward pass: nothing where there will be none."""
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)):
        return 0
    budget = _default_memory_budget() if memory_budget is None else memory_budget
    return min(budget, 2**63 - 1)


def _default_memory_budget() -> int:
    stated = os.environ.get("CYCLIP_MEMORY_BUDGET")
    if stated is None:
        return DEFAULT_MEMORY_BUDGET
    if not (stated.isascii() and stated.isdecimal()):
        raise ValueError(
            f"CYCLIP_MEMORY_BUDGET must be a number of bytes, such as 268435456, got {stated!r}"
        )
    return int(stated)


_default_memory_budget._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _compute(features: Tensor, precision: Precision = "auto") -> Tensor:
    """16-bit features are computed in float32; the conversion is exact."""
    if precision == "bf16" and features.dtype == torch.float32:
        features = features.bfloat16()
    return features if features.dtype == torch.float64 else features.float()


def _as_loss(loss: Tensor, features: Tensor) -> Tensor:
    return loss.to(torch.float64 if features.dtype == torch.float64 else torch.float32)


def _without_autocast(features: Tensor) -> AbstractContextManager[Any]:
    device_type = features.device.type
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def _use_native(operator: str, features: Tensor, backend: Backend) -> bool:
    check_options(backend=backend)
    if backend == "reference":
        return False
    device = features.device.type
    if forward_ad._current_level >= 0:  # operators would drop the tangents without a word
        if backend == "native":
            raise RuntimeError(
                "backend='native' has no forward-mode derivatives; use 'reference' or 'auto'"
            )
        return False
    if ops.has_operator(operator, device):
        return True
    if backend == "native":
        raise RuntimeError(
            f"backend='native': {_why_missing(operator, device)}. "
            "`python -m cyclip_ext.info` shows what is installed; backend='reference' runs anywhere"
        )
    _warn_once(operator, device)
    return False


def _why_missing(operator: str, device: str) -> str:
    status = ops.backend_status().get(device)
    if status is None:
        return f"there are no native operators for {device} tensors"
    return status.reason or f"{operator} has no {device} kernel in this version"


@functools.cache
def _warn_once(operator: str, device: str) -> None:
    warnings.warn(
        f"cyclip_ext computes with the dense PyTorch reference, in O(N^2) memory: "
        f"{_why_missing(operator, device)}",
        stacklevel=2,
    )
