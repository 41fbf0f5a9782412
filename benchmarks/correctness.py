"""Compares every operator with the float64 formulas, before anything is timed.

This is a quick check on a new machine. python_tests/ contains the complete tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cyclip_ext import functional, libraries, reference

from .inputs import Batch, make_batch
from .measure import gradients

SHAPES = [(1, 1), (5, 7), (77, 72), (128, 64), (129, 513), (300, 48)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
BIAS = -5.0


@dataclass(frozen=True)
class Finding:
    """The largest error of one operator and dtype, relative to its bound; wrong if it exceeds 1."""

    operator: str
    dtype: torch.dtype
    share: float
    quantity: str  # the result with this error, and the scale


@dataclass(frozen=True)
class Differentiable:
    """A loss that is computed by one operator."""

    operator: str
    native: Callable[[Batch], Tensor]
    dense: Callable[[Batch], Tensor]
    applies: Callable[[int, int], bool] = lambda n, d: True
    scales: tuple[float, ...] = (1.0, 14.3, 100.0)
    case: str = ""

    @property
    def name(self) -> str:
        return f"{self.operator}{self.case}"


def _native_pairs(b: Batch) -> Tensor:
    features = b.image_features, b.text_features
    return functional.contrastive_loss(
        *features, b.logit_scale, backend="native"
    ) + functional.hinge_margin_loss(*features, backend="native")


def _dense_pairs(b: Batch) -> Tensor:
    features = b.image_features, b.text_features
    return reference.contrastive_loss(*features, b.logit_scale) + reference.hinge_margin_loss(
        *features
    )


def _native_sigmoid(b: Batch) -> Tensor:
    return functional.sigmoid_loss(*b.leaves, backend="native")


def _dense_sigmoid(b: Batch) -> Tensor:
    return reference.sigmoid_loss(*b.leaves)


def _native_cycle(b: Batch) -> Tensor:
    return functional.cycle_consistency(
        b.image_features, b.text_features, in_modal=0.25, cross_modal=0.5, backend="native"
    )


def _dense_cycle(b: Batch) -> Tensor:
    features = b.image_features, b.text_features
    return 0.25 * reference.in_modal_loss(*features) + 0.5 * reference.cross_modal_loss(*features)


def _labels(b: Batch) -> Tensor:
    """Return labels that most pairs share with two others."""
    return torch.arange(len(b.image_features), device=b.image_features.device) // 3


def _native_labelled_pairs(b: Batch) -> Tensor:
    features = b.image_features, b.text_features
    return functional.contrastive_loss(
        *features, b.logit_scale, labels=_labels(b), backend="native"
    )


def _dense_labelled_pairs(b: Batch) -> Tensor:
    features = b.image_features, b.text_features
    return reference.contrastive_loss(*features, b.logit_scale, labels=_labels(b))


def _native_labelled_sigmoid(b: Batch) -> Tensor:
    return functional.sigmoid_loss(
        *b.leaves, labels=_labels(b), same_label="positive", backend="native"
    )


def _dense_labelled_sigmoid(b: Batch) -> Tensor:
    return reference.sigmoid_loss(*b.leaves, labels=_labels(b), same_label="positive")


_WITH_LABELS: dict[str, Any] = {"scales": (14.3,), "case": ", labels"}

LOSSES = [
    Differentiable("pair_statistics", _native_pairs, _dense_pairs),
    Differentiable("sigmoid_rows", _native_sigmoid, _dense_sigmoid),
    Differentiable("cycle_grams", _native_cycle, _dense_cycle, lambda n, d: n >= 2 * d),
    Differentiable("cycle_direct", _native_cycle, _dense_cycle, lambda n, d: n < 2 * d),
    Differentiable(
        "pair_statistics", _native_labelled_pairs, _dense_labelled_pairs, **_WITH_LABELS
    ),
    Differentiable(
        "sigmoid_rows", _native_labelled_sigmoid, _dense_labelled_sigmoid, **_WITH_LABELS
    ),
]


def check(device: torch.device, shape: tuple[int, int]) -> Iterator[Finding]:
    """Yield a finding for each operator and dtype, with batches of this shape (N, d)."""
    for loss in LOSSES:
        if not loss.applies(*shape) or not libraries.has_operator(loss.operator, device.type):
            continue
        for dtype in DTYPES:
            yield max(
                (
                    finding
                    for scale in loss.scales
                    for finding in _check_loss(
                        loss, make_batch(*shape, scale, BIAS, dtype, device), f"s = {scale:g}"
                    )
                ),
                key=_badness,
            )
    for dtype in DTYPES:
        yield _check_row_norms(make_batch(*shape, 1.0, 0.0, dtype, device))
    yield from _check_retrieval(make_batch(*shape, 1.0, 0.0, torch.float64, device))


def _badness(finding: Finding) -> float:
    return math.inf if math.isnan(finding.share) else finding.share


def _check_loss(loss: Differentiable, batch: Batch, case: str) -> Iterator[Finding]:
    """Yield errors relative to their bound: twice the error of dense PyTorch in float32 or float64.

    Dense 16-bit code is not a yardstick: its sums overflow in float16, and the operators add up in
    float32. The bound includes one more rounding, of the result in its dtype and of each cosine,
    times the scale, because dense code can be exact by chance on shapes as small as these. The
    roundings of the cosines add up over the pairs whose logits count.
    """
    dtype = batch.image_features.dtype
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    exact = _flat(loss.dense, batch.in_float64())
    dense = _flat(loss.dense, batch.of_dtype(compute, compute))
    ours = _flat(loss.native, batch)
    of_cosine = torch.finfo(compute).eps * 8 * (1 + float(batch.logit_scale.detach()))
    pairs = max(1.0, float(exact[-1].abs()))  # the bias has the gradient of all logits together
    for name, truth, expected, found in zip(
        ("loss", "image gradient", "text gradient", "scale gradient", "bias gradient"),
        *(exact, dense, ours),
        strict=True,
    ):
        limits = torch.finfo(dtype if truth.dim() else torch.float32)
        of_result = limits.eps * (truth.norm() + limits.smallest_normal * truth.numel() ** 0.5)
        rounding = of_result + of_cosine * (1.0 if truth.dim() else pairs)
        bound = float(2 * (expected - truth).norm() + rounding)
        error = float((found - truth).norm())
        yield Finding(loss.name, dtype, error / bound, f"{name}, {case}: error {error:.2e}")


def _flat(loss: Callable[[Batch], Tensor], batch: Batch) -> list[Tensor]:
    value, grads = gradients(loss, batch)
    zero = torch.zeros((), dtype=torch.float64, device=value.device)
    return [value.double(), *(zero if g is None else g.double() for g in grads)]


def _check_row_norms(batch: Batch) -> Finding:
    features = batch.image_features.detach()
    norms = torch.ops.cyclip_ext.row_norms(features)
    error = float((norms / features.double().norm(dim=1) - 1).abs().max())
    share = error / (4 * torch.finfo(norms.dtype).eps)
    return Finding("row_norms", features.dtype, share, f"relative error {error:.2e}")


def _check_retrieval(batch: Batch) -> Iterator[Finding]:
    """Yield whether ranks and top-k are right in float64, which does not reorder cosines."""
    image, text = batch.image_features.detach(), batch.text_features.detach()
    (n, d), device = image.shape, image.device
    cosines = reference.similarity(image, text)
    if d > 1:
        labels = torch.arange(n, device=device)
        found = torch.ops.cyclip_ext.retrieval_ranks(image, text, labels, labels)
        others = ~torch.eye(n, dtype=torch.bool, device=device)
        reached = (cosines >= cosines.diagonal()[:, None]) & others
        expected = (reached.sum(1), ((cosines >= cosines.diagonal()) & others).sum(0))
        right = all(map(torch.equal, found, expected))
        yield Finding("retrieval_ranks", image.dtype, 0.0 if right else math.inf, "ranks")
    k = min(5, n)
    values, indices = torch.ops.cyclip_ext.similarity_top_k(image, text, k)
    right = bool((values - cosines.topk(k, dim=1).values).abs().max() < 1e-12)
    right &= torch.allclose(cosines.gather(1, indices), values, atol=1e-12)
    yield Finding("similarity_top_k", image.dtype, 0.0 if right else math.inf, "entries")
