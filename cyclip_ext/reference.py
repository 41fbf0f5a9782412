"""The losses as dense formulas, in any floating-point dtype: the specification of all backends.

Each function is one row of the table in docs/losses.md, written as in the papers, with full N x N
matrices. The operators must agree with it. The module imports only torch, holds no state, and is
differentiable any number of times.

    x^ = x / max(|x|, eps)      S = x^ y^'      z = s S      s: logit scale (exponentiated)

Shapes throughout: image_features and text_features [N, d]; every loss returns a scalar in the
dtype of the features. Retrieval takes rectangles, [N, d] and [M, d], and has no derivatives.
`pair_statistics` and `sigmoid_rows` take rectangles, [n, d] and [m, d], with an offset: the
positive of row i is column i + offset, where there is one; everything else is a negative.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-12  # as in torch.nn.functional.normalize


def normalize(features: Tensor) -> Tensor:
    """x^ = x / max(|x|, eps), row by row; [N, d] -> [N, d]. A zero row stays zero."""
    return torch.nn.functional.normalize(features, dim=-1, eps=EPS)


def similarity(image_features: Tensor, text_features: Tensor) -> Tensor:
    """S_ij = <x^_i, y^_j>, the cosine of image i and text j; [N, M]."""
    return normalize(image_features) @ normalize(text_features).T


def contrastive_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    directions: str = "both",
    *,
    labels: Tensor | None = None,  # int64 [N]
    same_label: str = "mask",
    negative_text_features: Tensor | None = None,  # [M, d]
    negative_image_features: Tensor | None = None,  # [K, d]
) -> Tensor:
    """Symmetric InfoNCE: 1/(2N) sum_i [LSE_j z_ij - z_ii] + 1/(2N) sum_j [LSE_i z_ij - z_jj].

    With `directions="image_to_text"` or "text_to_image" one of the two terms, times 2.

    With labels, G(i) = {j: l_j = l_i}. "mask": j and i run over pairs outside of G(i) and over the
    pair itself. "positive": z_ii is replaced by the mean of z_ip over p in G(i), z_jj likewise.
    Additional texts are more j in the first term, additional images more i in the second.

    Source: Radford et al. 2021; Goel et al. 2022; labels as positives: Yang et al. 2022 (UniCL).
    """
    logits = logit_scale * similarity(image_features, text_features)
    rows, cols = logits, logits.T
    row_positive = col_positive = logits.diagonal()
    if labels is not None:
        same = same_labels(labels, labels)
        if same_label == "mask":
            others = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
            rows, cols = (matrix.masked_fill(others, -torch.inf) for matrix in (rows, cols))
        else:
            row_positive, col_positive = (
                matrix.where(same, 0).sum(dim=1) / same.sum(dim=1) for matrix in (rows, cols)
            )
    if negative_text_features is not None:
        further = logit_scale * similarity(image_features, negative_text_features)
        rows = torch.cat([rows, further], dim=1)
    if negative_image_features is not None:
        further = logit_scale * similarity(text_features, negative_image_features)
        cols = torch.cat([cols, further], dim=1)
    image_to_text = (rows.logsumexp(dim=1) - row_positive).mean()
    text_to_image = (cols.logsumexp(dim=1) - col_positive).mean()
    both = (image_to_text + text_to_image) / 2
    return {"both": both, "image_to_text": image_to_text, "text_to_image": text_to_image}[
        directions
    ]


def same_labels(row_labels: Tensor, col_labels: Tensor) -> Tensor:
    """Return where labels are equal; [n], [m] -> bool [n, m]."""
    return row_labels[:, None] == col_labels[None, :]


def cross_modal_loss(
    image_features: Tensor, text_features: Tensor, reduction: str = "batchmean"
) -> Tensor:
    """1/N sum_jk (S_jk - S_kj)^2: image j against text k as text j against image k.

    `reduction="mean"` divides by N^2 instead of N.
    Source: Goel et al. 2022, cross-modal consistency.
    """
    sim = similarity(image_features, text_features)
    return _reduce(sim - sim.T, reduction)


def in_modal_loss(
    image_features: Tensor, text_features: Tensor, reduction: str = "batchmean"
) -> Tensor:
    """1/N sum_jk (<x^_j, x^_k> - <y^_j, y^_k>)^2: images as far apart as their texts.

    `reduction="mean"` divides by N^2 instead of N.
    Source: Goel et al. 2022, in-modal consistency.
    """
    image_sim = similarity(image_features, image_features)
    text_sim = similarity(text_features, text_features)
    return _reduce(image_sim - text_sim, reduction)


def margin_loss(image_features: Tensor, text_features: Tensor) -> Tensor:
    """1/N sum_i (1 - S_ii): pulls positive pairs together, pushes nothing apart.

    Our reading of the one-sided regularizer; the paper's formula and weight could not be checked.
    If it is |x - y|^2 on unit vectors, it equals 2 (1 - S), and its weight is half of ours.

    Source: Chen et al. 2024 (arXiv 2310.00927), the one-sided regularizer.
    """
    return (1 - positive_similarity(image_features, text_features)).mean()


def hinge_margin_loss(
    image_features: Tensor, text_features: Tensor, hinge_margin: float = 0.2
) -> Tensor:
    """1/(2N) sum_i [g - S_ii + max_{j != i} S_ij]_+, plus the same over columns.

    Zero for N = 1, where there is no negative to keep away from.
    """
    _, _, positive, row_hardest, col_hardest = pair_statistics(image_features, text_features, 1.0)
    rows = (hinge_margin - positive + row_hardest).relu()
    cols = (hinge_margin - positive + col_hardest).relu()
    return (rows + cols).mean() / 2


def sigmoid_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    *,
    labels: Tensor | None = None,  # int64 [N]
    same_label: str = "mask",
    negative_text_features: Tensor | None = None,  # [M, d]
    negative_image_features: Tensor | None = None,  # [K, d]
) -> Tensor:
    """1/N sum_ij softplus(-l_ij (s S_ij + b)), l = 1 on the diagonal and -1 off it.

    Other pairs of equal labels are not in the sum ("mask"), or have l = 1 ("positive").
    Additional texts are more j, additional images more i, with l = -1.

    Source: Zhai et al. 2023 (SigLIP, arXiv 2303.15343), algorithm 1.
    """
    scalars = logit_scale, logit_bias
    same = None if labels is None else same_labels(labels, labels)
    n = image_features.shape[0]
    total = sigmoid_rows(image_features, text_features, *scalars, 0, same, same_label).sum()
    if negative_text_features is not None:
        m = negative_text_features.shape[0]  # an offset that leaves no positives
        total = total + sigmoid_rows(image_features, negative_text_features, *scalars, m).sum()
    if negative_image_features is not None:
        total = total + sigmoid_rows(negative_image_features, text_features, *scalars, n).sum()
    return total / n


def square_loss(image_features: Tensor, text_features: Tensor) -> Tensor:
    """1/N sum_i |x_i - y_i|^2 on the raw features: regression of one tower on the other.

    The negative example of Chen et al. 2024: its minimizer is a conditional mean, which aligns the
    towers and yet need not separate classes, so zero-shot transfer fails.
    """
    return (image_features - text_features).square().sum(dim=-1).mean()


def cyclip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    *,
    in_modal: float = 0.25,
    cross_modal: float = 0.25,
    margin: float = 0.0,
    hinge: float = 0.0,
    hinge_margin: float = 0.2,
    reduction: str = "batchmean",
) -> Tensor:
    """L = L_con + a_in L_in + a_cross L_cross + a_mar L_mar + a_hin L_hin."""
    features = image_features, text_features
    return (
        contrastive_loss(*features, logit_scale)
        + in_modal * in_modal_loss(*features, reduction)
        + cross_modal * cross_modal_loss(*features, reduction)
        + margin * margin_loss(*features)
        + hinge * hinge_margin_loss(*features, hinge_margin)
    )


def cycle_grams(image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return A = P'P, B = M'M and K = P'M, P = X^ + Y^ and M = X^ - Y^; [d, d], float64.

    N L_in = (<A, B> + <K, K'>) / 2 and N L_cross = (<A, B> - <K, K'>) / 2: docs/cycle.md.
    """
    image, text = normalize(image_features.double()), normalize(text_features.double())
    plus, minus = image + text, image - text
    return plus.T @ plus, minus.T @ minus, plus.T @ minus


def pair_statistics(
    image_features: Tensor,  # [n, d]
    text_features: Tensor,  # [m, d]
    logit_scale: Tensor | float,
    offset: int = 0,
    same: Tensor | None = None,  # bool [n, m]
    same_label: str = "mask",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return row_lse, col_lse, positive and both hardest of a rectangle, for softmax and hinge.

    row_lse, [n], and col_lse, [m]: log sum of e^z over negatives. positive, [n]: S at the positive,
    0 without one. row_hardest, [n], and col_hardest, [m]: the largest S of a negative; of tied ones
    the first counts, in value and gradient. Without negatives: -inf. Pairs of the `same` label are
    no negatives, though with "positive" they stay in row_lse and col_lse.
    """
    sim = similarity(image_features, text_features)
    rows, cols = (torch.arange(size, device=sim.device) for size in sim.shape)
    positive = cols[None, :] == rows[:, None] + offset
    excluded = positive if same is None else positive | same
    masked = positive if same_label == "positive" else excluded
    row_lse, row_hardest = _log_sum_exp(sim, logit_scale, masked), _hardest(sim, excluded)
    col_lse, col_hardest = _log_sum_exp(sim.T, logit_scale, masked.T), _hardest(sim.T, excluded.T)
    return row_lse, col_lse, sim.where(positive, 0).sum(dim=1), row_hardest, col_hardest


def sigmoid_rows(
    image_features: Tensor,  # [n, d]
    text_features: Tensor,  # [m, d]
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    offset: int = 0,
    same: Tensor | None = None,  # bool [n, m]
    same_label: str = "mask",
) -> Tensor:
    """sum_j softplus(-l_ij (s S_ij + b)), row by row; [n]."""
    logits = logit_scale * similarity(image_features, text_features) + logit_bias
    rows, cols = (torch.arange(size, device=logits.device) for size in logits.shape)
    positive = cols[None, :] == rows[:, None] + offset
    is_one = positive if same is None or same_label == "mask" else positive | same
    losses = -torch.nn.functional.logsigmoid((2 * is_one.to(logits.dtype) - 1) * logits)
    if same is not None and same_label == "mask":
        losses = losses.masked_fill(same & ~positive, 0)
    return losses.sum(dim=1)


def positive_similarity(image_features: Tensor, text_features: Tensor) -> Tensor:
    """S_ii, the cosine of each pair; [N]."""
    return (normalize(image_features) * normalize(text_features)).sum(dim=-1)


def retrieval_ranks(
    image_features: Tensor,  # [N, d]
    text_features: Tensor,  # [M, d]
    image_labels: Tensor,  # int64 [N]
    text_labels: Tensor,  # int64 [M]
) -> tuple[Tensor, Tensor]:
    """Return |{j foreign to i: S_ij >= max_{k own to i} S_ik}|, [N], and that of texts, [M]; int64.

    Own: of equal labels; foreign: of others. -1 where there is nothing of its own. NaN counts as
    -inf.
    """
    sim = _comparable(similarity(image_features, text_features))
    own = image_labels[:, None] == text_labels[None, :]
    return _ranks(sim, own), _ranks(sim.T, own.T)


def similarity_top_k(
    query_features: Tensor,  # [N, d]
    candidate_features: Tensor,  # [M, d]
    k: int,
) -> tuple[Tensor, Tensor]:
    """Return the k largest S_ij of each i, falling, and their j, int64; [N, k] each.

    Equal values are in the order of their indices. NaN counts as -inf.
    """
    sim = _comparable(similarity(query_features, candidate_features))
    values, indices = sim.sort(dim=1, descending=True, stable=True)
    return values[:, :k], indices[:, :k]


def _log_sum_exp(sim: Tensor, logit_scale: Tensor | float, masked: Tensor) -> Tensor:
    """Return log sum_j e^(s S_ij) of each row without the masked entries; [n]."""
    none = masked.all(dim=1)  # over -inf alone, logsumexp would have derivative NaN
    others = (logit_scale * sim).masked_fill(masked & ~none[:, None], -torch.inf)
    return others.logsumexp(dim=1).masked_fill(none, -torch.inf)


def _hardest(sim: Tensor, excluded: Tensor) -> Tensor:
    """Return the largest entry of each row that is not excluded; [n]."""
    return sim.masked_fill(excluded, -torch.inf).max(dim=1).values


def _comparable(sim: Tensor) -> Tensor:
    return sim.masked_fill(sim.isnan(), -torch.inf)


def _ranks(sim: Tensor, own: Tensor) -> Tensor:
    best = sim.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
    foreign_at_least_as_near = ((sim >= best) & ~own).sum(dim=1)
    return foreign_at_least_as_near.where(own.any(dim=1), -1)


def _reduce(difference: Tensor, reduction: str) -> Tensor:
    n = difference.shape[0]
    total = difference.square().sum()
    if reduction == "batchmean":
        return total / n
    if reduction == "mean":
        return total / n**2
    raise ValueError(
        f"reduction must be 'batchmean' (sum/N) or 'mean' (sum/N^2), got {reduction!r}"
    )
