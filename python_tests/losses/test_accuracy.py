"""The error bound: at most twice that of dense PyTorch in the same precision, both against float64.

Dense PyTorch is cyclip_ext.reference run on tensors of the precision under test; the truth is the
float64 formula on the very same (already rounded) numbers. Errors are root mean squares over seeds,
more of them where a case is small, because a single number can be right by luck. What is compared:

    loss                 |error|
    feature gradients    |error| with each row multiplied by its norm, max(|x_i|, eps): the gradient
                         of a row is of the order 1/|x_i|, and 1e12 for a zero row
    scale gradient       |error|

Dense code can also be right by construction (d = 1 and ties make all its cosines exact, duplicated
rows give it bit-identical cosines that cancel), so one rounding is granted to everyone: of the
result's own dtype at its size, because it has to be stored, and of each cosine in float32, carried
to the result to first order (`_roundings_*`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import pytest
import torch
from torch import Tensor

from cyclip_ext import functional, reference

from . import truth
from .inputs import INPUTS, make_features

pytestmark = pytest.mark.native

BIAS = -5.0
FLOAT32_ULP = torch.finfo(torch.float32).eps
FLOAT64_NOISE = 1e-14  # of the truth itself, relative to s

SHAPES_OF_SCALE = {
    1e-3: [(2, 3), (129, 72)],
    1.0: [(1, 72), (5, 1), (300, 3)],
    14.3: [(2, 513), (5, 3), (129, 513), (300, 72)],
    100.0: [(1, 1), (2, 1), (2, 3), (5, 3), (5, 72), (5, 513), (129, 72), (300, 72), (1025, 129)],
}
SHAPES = sorted({shape for shapes in SHAPES_OF_SCALE.values() for shape in shapes})

Inputs = tuple[Tensor, Tensor, Tensor]  # image_features, text_features, logit_scale
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Term:
    """One loss in three forms, and what a rounded cosine does to it."""

    native: Loss
    dense: Loss
    exact: Loss
    roundings: Callable[[Loss, Inputs, list[Tensor]], list[float]]


def _roundings_of_pairs(exact: Loss, inputs: Inputs, results: list[Tensor]) -> list[float]:
    """By G = dL/dS: gradients are differences of sums of |G_ij| over a row or a column."""
    image, text, scale = _float64(inputs)
    sim = reference.similarity(image, text).requires_grad_()
    with mock.patch.object(reference, "similarity", return_value=sim):
        (gradient,) = torch.autograd.grad(exact(image, text, scale), sim)
    rows, cols = (float(gradient.abs().sum(dim=dim).norm()) for dim in (1, 0))
    s, n = float(scale), image.shape[0]
    # dL/ds is a difference of mean cosines; through the softmax it has the error of s S besides.
    of_scale = float(gradient.abs().sum()) / s * (1 + s / n**0.5)
    return [max(rows, cols), rows, cols, of_scale]


def _roundings_of_margin(exact: Loss, inputs: Inputs, results: list[Tensor]) -> list[float]:
    """dL/dS_ii = -1/N."""
    return [inputs[0].shape[0] ** -0.5] * 3 + [0.0]


def _roundings_of_cycle(exact: Loss, inputs: Inputs, results: list[Tensor]) -> list[float]:
    """1/N sum D_jk^2, where each D_jk is a difference of two rounded cosines."""
    n, loss = inputs[0].shape[0], float(results[0])
    return [4 * (loss / n) ** 0.5 + 4 * n * FLOAT32_ULP, 4.0, 4.0, 0.0]


def _cycle(in_modal: float, cross_modal: float) -> Loss:
    return lambda x, y, s: functional.cycle_consistency(
        x, y, in_modal=in_modal, cross_modal=cross_modal, backend="native"
    )


def _unscaled(loss: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    return lambda x, y, s: loss(x, y)


def _dense_cycle_sum(image: Tensor, text: Tensor) -> Tensor:
    return reference.in_modal_loss(image, text) + reference.cross_modal_loss(image, text)


def _dense_sigmoid(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    return reference.sigmoid_loss(image, text, scale, BIAS)


SCALED = {
    "contrastive": Term(
        lambda x, y, s: functional.contrastive_loss(x, y, s, backend="native"),
        reference.contrastive_loss,
        truth.contrastive_loss,
        _roundings_of_pairs,
    ),
    "sigmoid": Term(
        lambda x, y, s: functional.sigmoid_loss(x, y, s, BIAS, backend="native"),
        _dense_sigmoid,
        _dense_sigmoid,
        _roundings_of_pairs,
    ),
}


def _thirds(features: Tensor) -> Tensor:
    return torch.arange(len(features)) // 3


def _exact_positives(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    labels = _thirds(image)
    same = (labels[:, None] == labels).double()
    logits = scale * reference.similarity(image, text)
    means = (logits * same).sum(dim=1) / same.sum(dim=1)
    return truth.contrastive_loss(image, text, scale) + (logits.diagonal() - means).mean()


def _with_labels(loss: Callable[..., Tensor], *scalars: float, **options: str) -> Loss:
    return lambda x, y, s: loss(x, y, s, *scalars, labels=_thirds(x), **options)


def _labelled(same_label: str, exact: Loss) -> Term:
    losses = functional.contrastive_loss, reference.contrastive_loss
    native, dense = (_with_labels(loss, same_label=same_label) for loss in losses)
    return Term(native, dense, exact, _roundings_of_pairs)


def _labelled_sigmoid(same_label: str) -> Term:
    losses = functional.sigmoid_loss, reference.sigmoid_loss
    native, dense = (_with_labels(loss, BIAS, same_label=same_label) for loss in losses)
    return Term(native, dense, dense, _roundings_of_pairs)


LABELLED = {
    "mask": _labelled("mask", _with_labels(truth.contrastive_loss)),
    "positive": _labelled("positive", _exact_positives),
    "sigmoid, mask": _labelled_sigmoid("mask"),
    "sigmoid, positive": _labelled_sigmoid("positive"),
}
UNSCALED = {
    "in_modal": Term(
        _cycle(1.0, 0.0), *[_unscaled(reference.in_modal_loss)] * 2, _roundings_of_cycle
    ),
    "cross_modal": Term(
        _cycle(0.0, 1.0), *[_unscaled(reference.cross_modal_loss)] * 2, _roundings_of_cycle
    ),
    "both cycle terms": Term(
        _cycle(1.0, 1.0), *[_unscaled(_dense_cycle_sum)] * 2, _roundings_of_cycle
    ),
    "margin": Term(
        _unscaled(functional.margin_loss),
        *[_unscaled(reference.margin_loss)] * 2,
        _roundings_of_margin,
    ),
}


def _run(loss: Loss, inputs: Inputs) -> list[Tensor]:
    """Loss, both feature gradients times row norms, and the scale's gradient, all float64."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    value = loss(*leaves)
    gradients = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    norms = [t.double().norm(dim=1, keepdim=True).clamp_min(reference.EPS) for t in inputs[:2]]
    return [
        value.detach().double(),
        *(g.double() * norm for g, norm in zip(gradients[:2], norms, strict=True)),
        gradients[2].double(),
    ]


def _float64(inputs: Inputs) -> Inputs:
    return tuple(t.double() for t in inputs)


def _granted(term: Term, inputs: Inputs, results: list[Tensor]) -> Tensor:
    """Squares of what every implementation may be off, for each of the four results of _run."""
    dtypes = [torch.float32, inputs[0].dtype, inputs[1].dtype, torch.float32]
    carried = term.roundings(term.exact, inputs, results)
    noise = FLOAT64_NOISE * (1 + float(inputs[2]))
    granted = [
        torch.finfo(dtype).eps * float(result.norm()) + FLOAT32_ULP * size + noise
        for dtype, result, size in zip(dtypes, results, carried, strict=True)
    ]
    return torch.tensor(granted, dtype=torch.float64).square()


def _square_errors(actual: list[Tensor], exact: list[Tensor]) -> Tensor:
    return torch.stack([(a - e).square().sum() for a, e in zip(actual, exact, strict=True)])


def _assert_bound(ours: Tensor, dense: Tensor, granted: Tensor, what: str) -> None:
    """All three are mean squares of the four results."""
    ours, dense, granted = ours.sqrt(), dense.sqrt(), granted.sqrt()
    results = ["loss", "image gradient", "text gradient", "scale gradient"]
    for result, a, b, c in zip(results, *map(Tensor.tolist, (ours, dense, granted)), strict=True):
        assert a <= 2 * b + c, f"{what}: {result} error {a:.3g}, dense {b:.3g}, granted {c:.3g}"


def _seeds(n: int) -> range:
    return range(8 if n <= 5 else 1)


def _inputs(kind: str, n: int, d: int, seed: int, scale: float, dtype: torch.dtype) -> Inputs:
    return (*make_features(kind, n, d, seed, dtype), torch.tensor(scale))


def _check(term: Term, kind: str, n: int, d: int, scale: float, dtype: torch.dtype) -> None:
    ours, dense, granted = (torch.zeros(4, dtype=torch.float64) for _ in range(3))
    for seed in _seeds(n):
        inputs = _inputs(kind, n, d, seed, scale, dtype)
        exact = _run(term.exact, _float64(inputs))
        ours += _square_errors(_run(term.native, inputs), exact)
        dense += _square_errors(_run(term.dense, inputs), exact)
        granted += _granted(term, inputs, exact)
    _assert_bound(ours, dense, granted, f"{kind} N={n} d={d} s={scale} {dtype}")


PRECISIONS = [torch.float32, torch.bfloat16]


def _fits(n: int, dtype: torch.dtype) -> bool:
    """Dense bfloat16 is slow on a CPU without bfloat16 instructions; large shapes in float32."""
    return n <= 129 or dtype == torch.float32


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("scale", SHAPES_OF_SCALE)
@pytest.mark.parametrize("name", SCALED)
def test_error_of_scaled_terms_is_within_the_bound(
    name: str, scale: float, kind: str, dtype: torch.dtype
) -> None:
    for n, d in SHAPES_OF_SCALE[scale]:
        if _fits(n, dtype):
            _check(SCALED[name], kind, n, d, scale, dtype)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", LABELLED)
def test_error_with_labels_is_within_the_bound(name: str, kind: str, dtype: torch.dtype) -> None:
    for n, d in (5, 3), (129, 72):
        for scale in 1.0, 14.3:
            _check(LABELLED[name], kind, n, d, scale, dtype)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", UNSCALED)
def test_error_of_unscaled_terms_is_within_the_bound(
    name: str, kind: str, dtype: torch.dtype
) -> None:
    """A cancelling expansion of the cycle terms would exceed it.

    So would products that round a cone's large common direction.
    """
    for n, d in SHAPES:
        if _fits(n, dtype):
            _check(UNSCALED[name], kind, n, d, 1.0, dtype)


def _hinge_at(rows: Tensor, cols: Tensor) -> Loss:
    """Return the hinge with given hardest negatives: for ties its gradient is not unique."""

    def loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        sim = reference.similarity(image, text)
        if sim.shape[0] == 1:
            return 0 * sim.sum()
        by_row, by_col = sim.gather(1, rows[:, None])[:, 0], sim.gather(0, cols[None, :])[0]
        positive = sim.diagonal()
        return ((0.2 - positive + by_row).relu() + (0.2 - positive + by_col).relu()).mean() / 2

    return loss


def _native_hinge(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    return functional.hinge_margin_loss(image, text, backend="native")


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("kind", INPUTS)
def test_error_of_the_hinge_is_within_the_bound(kind: str, dtype: torch.dtype) -> None:
    """Two cosines may tie to within rounding, and each side may then choose its own negative.

    It is judged by the gradient that its own choice has in float64, and the choice by how much
    cosine it gives away.
    """
    for n, d in SHAPES:
        if n == 1 or not _fits(n, dtype):
            continue
        ours, dense, granted = (torch.zeros(4, dtype=torch.float64) for _ in range(3))
        for seed in _seeds(n):
            inputs = _inputs(kind, n, d, seed, 1.0, dtype)
            exact_stats = truth.pair_statistics(*_float64(inputs))
            our_stats = truth.PairStatistics(*torch.ops.cyclip_ext.pair_statistics(*inputs)[:7])
            dense_stats = truth.pair_statistics(*inputs)
            sim = reference.similarity(*_float64(inputs)[:2])
            for best, index, along in (
                (exact_stats.row_hardest, our_stats.row_hardest_index, sim),
                (exact_stats.col_hardest, our_stats.col_hardest_index, sim.T),
            ):
                assert (index != torch.arange(n)).all()
                given_away = best - along.gather(1, index[:, None])[:, 0]
                assert given_away.max() <= 8 * FLOAT32_ULP
            our_exact, dense_exact = (
                _hinge_at(stats.row_hardest_index, stats.col_hardest_index)
                for stats in (our_stats, dense_stats)
            )
            exact = _run(our_exact, _float64(inputs))
            ours += _square_errors(_run(_native_hinge, inputs), exact)
            dense += _square_errors(
                _run(_unscaled(reference.hinge_margin_loss), inputs),
                _run(dense_exact, _float64(inputs)),
            )
            term = Term(_native_hinge, our_exact, our_exact, _roundings_of_pairs)
            granted += _granted(term, inputs, exact)
        _assert_bound(ours, dense, granted, f"{kind} N={n} d={d} {dtype}")


@pytest.mark.parametrize("scale", [14.3, 100.0])
@pytest.mark.parametrize("kind", ["random", "narrow_cone", "modality_gap"])
def test_scale_gradient_is_as_exact_as_that_of_cross_entropy(kind: str, scale: float) -> None:
    """The shares of positives and negatives nearly cancel, so they must meet before rounding.

    The gradient of the scale by cross_entropy is better than that by logsumexp.
    """

    def dense(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        logits = scale * reference.similarity(image, text)
        labels = torch.arange(len(image))
        cross_entropy = torch.nn.functional.cross_entropy
        return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2

    native, exact_loss = SCALED["contrastive"].native, SCALED["contrastive"].exact
    for n, d in (300, 72), (1024, 512):
        ours, theirs, largest = 0.0, 0.0, 0.0
        for seed in range(8):
            inputs = _inputs(kind, n, d, seed, scale, torch.float32)
            exact = _run(exact_loss, _float64(inputs))[3]
            ours += float((_run(native, inputs)[3] - exact).square())
            theirs += float((_run(dense, inputs)[3] - exact).square())
            largest = max(largest, float(exact.abs()))
        mean_cosine = FLOAT32_ULP / 2 / n**0.5  # of N positives, each rounded once
        assert (ours / 8) ** 0.5 <= 2 * (theirs / 8) ** 0.5 + mean_cosine + FLOAT32_ULP * largest
