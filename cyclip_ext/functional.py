"""The losses and the retrieval operations as functions.

Every function takes raw or normalized features of both towers, [N, d], in float32, float64,
bfloat16 or float16 (mixed dtypes are promoted). A loss is a scalar: float64 for float64 features,
float32 for all others. Autocast has no effect. Memory use is O(N d) with the native backend and
O(N^2) with the reference. On a GPU, the native backend rounds float32 features to TF32 in matrix
products if `torch.set_float32_matmul_precision` allows it.

The losses over all pairs share these keyword arguments, in `**options`:

`backend` chooses the implementation:

- "auto": the native operators if they exist for the device, else the reference with one warning
- "native": the native operators; RuntimeError, with the reason, if they are missing
- "reference": the dense formulas of cyclip_ext.reference, differentiable any number of times

`precision` chooses the matrix products over all pairs:

- "auto": in the dtype of the features
- "bf16": float32 features are rounded to bfloat16, so that the loss is that of the rounded
  features; sums stay float32. Other dtypes are multiplied as they are

`memory_budget` is the number of bytes that the dot products of all pairs may occupy on the CPU
between forward and backward pass (N M numbers of the compute dtype, M rounded up to a multiple of
128). If they do not fit, they are not saved, and the backward pass computes them again, which is a
quarter of all work. The cycle terms of few rows save N^2 numbers under the same condition. The
default, None, is the environment variable CYCLIP_MEMORY_BUDGET (read once by torch.compile), else
256 MiB. On a GPU nothing is saved.

`group` is the group of processes that share the batch; it is looked up at each call:

- "world": all of them; without init_process_group, this process alone
- "local": this process alone
- a ProcessGroup or a DeviceMesh of one dimension
- None: this process alone, with one warning if there are others

Each rank calls the loss with its own rows, [n, d] with any n, and gets the loss of the whole batch.
The average of the gradients over ranks, which DistributedDataParallel computes, is the gradient of
the whole batch. All ranks raise if the arguments of one rank are invalid, or if those of different
ranks do not fit together.

`exchange` chooses how a rank receives the features of the other ranks:

- "gather": all at once; memory O(N d)
- "ring": block by block from rank to rank, while the last one is computed; memory O(n d). Nothing
  is saved between forward and backward; `memory_budget` does not apply
- "replicate": both towers all at once, and every rank computes the whole loss: the bits of one
  process, nothing sent in the backward pass; for small batches

The cycle and margin terms only exchange sums. docs/distributed.md describes usage and costs.

Three more arguments describe relations between pairs, and additional negatives:

`labels`, int64 [N]: rows of equal labels belong together. `same_label` chooses the meaning:

- "mask": pairs of equal labels, other than the pair itself, are not negatives
- "positive": every pair of equal labels is a positive

`negative_text_features`, [M, d], and `negative_image_features`, [K, d], are additional negatives of
every image and of every text. They receive gradients. With a group, those of all ranks are used.
docs/losses.md has the formulas.

NaN and infinity in the features make the loss and its gradients NaN, without an exception.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _cycle_terms, _pair_terms, reference
from ._dispatch import (
    DEFAULT_MEMORY_BUDGET,
    Backend,
    Directions,
    Options,
    PairOptions,
    Reduction,
    allow_tf32,
    pair_options,
    use_native,
    widen,
    without_autocast,
)
from ._inputs import check_labels, check_towers, prepare
from ._sums import as_loss, mean

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .distributed.groups import Group

__all__ = [
    "DEFAULT_MEMORY_BUDGET",
    "Backend",
    "contrastive_loss",
    "cycle_consistency",
    "hinge_margin_loss",
    "margin_loss",
    "retrieval_ranks",
    "sigmoid_loss",
    "similarity_top_k",
]


def contrastive_loss(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [N, d]
    logit_scale: Tensor | float,
    *,
    directions: Directions = "both",
    labels: Tensor | None = None,  # int64 [N]
    negative_text_features: Tensor | None = None,  # [M, d]
    negative_image_features: Tensor | None = None,  # [K, d]
    **options: Unpack[PairOptions],
) -> Tensor:
    """Return the symmetric cross-entropy of the cosine similarities S.

    L = 1/(2N) sum_i [LSE_j z_ij - z_ii] + 1/(2N) sum_j [LSE_i z_ij - z_jj],  z = s S.
    It is computed as softplus(LSE over negatives - z_ii), so that a loss of 1e-30 keeps its digits.

    Args:
        logit_scale: s, already exponentiated; a scalar.
        directions: "both", or one of the two terms without its factor 1/2: "image_to_text", the
            mean of LSE_j z_ij - z_ii, or "text_to_image".
        labels, negative_text_features, negative_image_features: see the module.
        options: backend, precision, memory_budget, group, exchange, same_label; see the module.

    Raises: ValueError or TypeError, naming the argument, for invalid arguments.
    Source: Radford et al. 2021; Goel et al. 2022.
    """
    chosen = pair_options("contrastive_loss()", options, directions)
    inputs = prepare(
        image_features,
        text_features,
        logit_scale,
        options=chosen,
        operators=("pair_statistics",),
        labels=labels,
        negative_text_features=negative_text_features,
        negative_image_features=negative_image_features,
    )
    loss, _ = _pair_terms.contrastive(inputs, chosen)
    return as_loss(loss, inputs)


def cycle_consistency(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [N, d]
    *,
    in_modal: float = 0.25,
    cross_modal: float = 0.25,
    reduction: Reduction = "batchmean",
    backend: Backend = "auto",
    group: Group | None = None,
) -> Tensor:
    """Return in_modal * L_in + cross_modal * L_cross of CyCLIP.

    L_in = 1/N sum_jk (<x^_j, x^_k> - <y^_j, y^_k>)^2,  L_cross = 1/N sum_jk (S_jk - S_kj)^2.
    `reduction="mean"` divides by N^2 instead, so the two reductions need different weights.
    Cost O(N d min(N, d)), memory O(N d) (docs/cycle.md). With a group, each rank computes
    O(n d^2), and three d x d matrices are summed over the ranks.

    Args:
        in_modal, cross_modal: the weights.
        reduction: "batchmean" (sum / N, as in CyCLIP) or "mean" (sum / N^2).
        backend, group: see the module.

    Raises: ValueError or TypeError, naming the argument, for invalid arguments.
    Source: Goel et al. 2022, cross-modal and in-modal consistency.
    """
    options = Options(backend=backend, reduction=reduction, group=group)
    inputs = prepare(
        image_features,
        text_features,
        options=options,
        operators=("cycle_grams",),
        numbers={"in_modal": in_modal, "cross_modal": cross_modal},
    )
    if in_modal == cross_modal:
        return as_loss(in_modal * _cycle_terms.cycle_sum(inputs, options), inputs)
    in_modal_loss, cross_modal_loss = _cycle_terms.cycle_terms(inputs, options)
    return as_loss(in_modal * in_modal_loss + cross_modal * cross_modal_loss, inputs)


def margin_loss(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [N, d]
    *,
    group: Group | None = None,
) -> Tensor:
    """Return 1/N sum_i (1 - S_ii), over positive pairs only, at a cost of O(N d).

    This is our reading of the one-sided regularizer; the paper's formula and weight could not be
    checked. If it is |x - y|^2 on unit vectors, it equals 2 (1 - S), and its weight is half of
    ours.

    Raises: ValueError or TypeError, naming the argument, for invalid arguments.
    Source: Chen et al. 2024 (arXiv 2310.00927), the one-sided regularizer.
    """
    inputs = prepare(image_features, text_features, options=Options(group=group))
    with without_autocast(inputs.image):
        positive = reference.positive_similarity(widen(inputs.image), widen(inputs.text))
        return as_loss(mean(1 - positive, inputs.batch), inputs)


def hinge_margin_loss(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [N, d]
    hinge_margin: float = 0.2,
    *,
    labels: Tensor | None = None,  # int64 [N]
    negative_text_features: Tensor | None = None,  # [M, d]
    negative_image_features: Tensor | None = None,  # [K, d]
    **options: Unpack[PairOptions],
) -> Tensor:
    """Return 1/(2N) sum_i [g - S_ii + max_{j != i} S_ij]_+, plus the same over texts.

    If several negatives are equally hard, the first one is used. The loss is 0 for N = 1.

    Args:
        hinge_margin: g, a cosine.
        labels, negative_text_features, negative_image_features: see the module; a pair of equal
            labels is never a hardest negative, for any `same_label`.
        options: backend, precision, memory_budget, group, exchange, same_label; see the module.

    Raises: ValueError or TypeError, naming the argument, for invalid arguments.
    """
    chosen = pair_options("hinge_margin_loss()", options)
    inputs = prepare(
        image_features,
        text_features,
        options=chosen,
        operators=("pair_statistics",),
        labels=labels,
        negative_text_features=negative_text_features,
        negative_image_features=negative_image_features,
        numbers={"hinge_margin": hinge_margin},
    )
    statistics = _pair_terms.pair_statistics(inputs, chosen)
    return as_loss(_pair_terms.hinge(statistics, hinge_margin, inputs), inputs)


def sigmoid_loss(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [N, d]
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    *,
    labels: Tensor | None = None,  # int64 [N]
    negative_text_features: Tensor | None = None,  # [M, d]
    negative_image_features: Tensor | None = None,  # [K, d]
    **options: Unpack[PairOptions],
) -> Tensor:
    """Return 1/N sum_ij softplus(-l_ij (s S_ij + b)), l = 1 on the diagonal and -1 off it.

    Args:
        logit_scale: s, already exponentiated; a scalar.
        logit_bias: b, a scalar.
        labels, negative_text_features, negative_image_features: see the module.
        options: backend, precision, memory_budget, group, exchange, same_label; see the module.

    Raises: ValueError or TypeError, naming the argument, for invalid arguments.
    Source: Zhai et al. 2023 (SigLIP, arXiv 2303.15343), algorithm 1.
    """
    chosen = pair_options("sigmoid_loss()", options)
    inputs = prepare(
        image_features,
        text_features,
        logit_scale,
        logit_bias,
        options=chosen,
        operators=("sigmoid_rows",),
        needs_bias=True,
        labels=labels,
        negative_text_features=negative_text_features,
        negative_image_features=negative_image_features,
    )
    return as_loss(_pair_terms.sigmoid(inputs, chosen), inputs)


def retrieval_ranks(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [M, d]
    image_labels: Tensor,  # int64 [N]
    text_labels: Tensor,  # int64 [M]
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:  # int64 [N] and [M]
    """Return the rank of the best matching candidate of each image and of each text.

    An image and a text match if their labels are equal. The rank is the number of non-matching
    candidates that are at least as similar as the best matching one, so a rank below k is a hit at
    k, and ties count against the model. It is -1 if no candidate matches. Similarity is the cosine;
    NaN counts as -inf. Memory O((N + M) d) with the native backend, O(N M) with the reference. Not
    differentiable.

    Raises: ValueError or TypeError, naming the argument, for invalid arguments.
    """
    image, text = check_towers(image_features=image_features, text_features=text_features)
    check_labels(image_labels, "image_labels", image, "image_features")
    check_labels(text_labels, "text_labels", text, "text_features")
    options = Options(backend=backend)
    options.check()
    if use_native("retrieval_ranks", image, options):
        row_rank, col_rank = torch.ops.cyclip_ext.retrieval_ranks(
            image, text, image_labels, text_labels, allow_tf32(image)
        )
        return row_rank, col_rank
    with torch.no_grad(), without_autocast(image):
        return reference.retrieval_ranks(widen(image), widen(text), image_labels, text_labels)


def similarity_top_k(
    query_features: Tensor,  # [N, d]
    candidate_features: Tensor,  # [M, d]
    k: int,
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:  # float64 [N, k] and int64 [N, k]
    """Return the k largest cosines of each query in descending order, and their candidates.

    Equal values are in the order of their indices; NaN counts as -inf. Memory O((N + M) d + N k)
    with the native backend, O(N M) with the reference. Not differentiable.

    Raises: ValueError or TypeError, naming the argument, for invalid arguments, such as a k outside
    of 1 ... M.
    """
    query, candidate = check_towers(
        query_features=query_features, candidate_features=candidate_features
    )
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k must be an int, got {k!r} ({type(k).__name__})")
    if not 1 <= k <= candidate.shape[0]:
        raise ValueError(
            f"k must lie in 1 ... {candidate.shape[0]}, the number of candidates, got {k}"
        )
    options = Options(backend=backend)
    options.check()
    if use_native("similarity_top_k", query, options):
        values, indices = torch.ops.cyclip_ext.similarity_top_k(
            query, candidate, k, allow_tf32(query)
        )
        return values, indices
    with torch.no_grad(), without_autocast(query):
        values, indices = reference.similarity_top_k(widen(query), widen(candidate), k)
        return values.double(), indices
