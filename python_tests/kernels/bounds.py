"""First-order bounds of the absolute rounding error of each entry of a result.

All bounds follow from the errors of one cosine and of an operand of a product. They are tight
enough to detect a single missing or misplaced term in every precision, and do not depend on the
order of a kernel's sums. Feature gradients and their errors are multiplied by the norms of their
rows, as in losses/test_accuracy.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cyclip_ext import reference

from .cases import Precision

EPS64 = torch.finfo(torch.float64).eps
FUNCTIONS = 32  # roundings of exponentials, logarithms and sums of a tile, in units of eps


def eps_of(precision: Precision) -> float:
    """Return the relative rounding of sums and functions."""
    return torch.finfo(precision.accumulation).eps


def norms(features: Tensor) -> Tensor:
    """Return the factors of feature gradients, [n, 1]."""
    return features.double().norm(dim=1, keepdim=True).clamp_min(reference.EPS)


def product(a: Tensor, b: Tensor, precision: Precision, operands: float) -> Tensor:
    """Bound a b' if operands have the relative error `operands` and terms are added in order."""
    a, b = a.abs(), b.abs()
    terms = a @ b.T
    spread = (a.square() @ b.square().T).sqrt()  # roundings are independent of each other
    return 2 * operands * torch.minimum(terms, 4 * spread) + (
        (8 + a.shape[1] ** 0.5) * eps_of(precision) * terms
    )


def cosine(image: Tensor, text: Tensor, precision: Precision) -> Tensor:
    """Bound the cosines, [n, m]; 16-bit features are multiplied exactly."""
    operands = precision.operands if precision.allow_tf32 else 0.0
    return product(
        reference.normalize(image.double()), reference.normalize(text.double()), precision, operands
    )


def pair_gradient(
    magnitude: Tensor, scale: float, cosine_error: Tensor, precision: Precision
) -> Tensor:
    """Bound G, whose entries are at most `magnitude` and functions of z = s S."""
    return magnitude * (abs(scale) * cosine_error + FUNCTIONS * eps_of(precision))


def feature_gradient(
    magnitude: Tensor,  # [n, m], |G|
    error: Tensor,  # [n, m], of G
    own: Tensor,  # [n, d]
    other: Tensor,  # [m, d]
    exact: Tensor,  # [n, d], times norms
    precision: Precision,
) -> Tensor:
    """Bound the projection of G y^, stored in the dtype of the features."""
    other_unit = reference.normalize(other.double()).abs()
    of_sum = error @ other_unit + product(magnitude, other_unit.T, precision, precision.operands)
    return stored(projected(of_sum, own), own, exact)


def projected(error: Tensor, own: Tensor) -> Tensor:
    """Bound g - <g, x^> x^."""
    unit = reference.normalize(own.double()).abs()
    return error + unit * error.norm(dim=1, keepdim=True)


def stored(error: Tensor, own: Tensor, exact: Tensor) -> Tensor:
    """Add the rounding to the dtype of the features, including its subnormal numbers."""
    limits = torch.finfo(own.dtype)
    return error + limits.eps * exact.abs() + limits.smallest_normal * limits.eps * norms(own)


def assert_within(actual: Tensor, exact: Tensor, bound: Tensor | float, what: str) -> None:
    """Compare every entry; infinities must be equal, and NaN is never within a bound."""
    actual, exact = actual.double(), exact.double()
    bound = torch.as_tensor(bound, dtype=torch.float64).expand(exact.shape)
    fine = ((actual - exact).abs() <= bound) | (actual == exact)
    if not fine.all():
        worst = torch.where(fine, 0.0, (actual - exact).abs() / bound).nan_to_num(1e300, 1e300)
        at = tuple(torch.unravel_index(worst.argmax(), worst.shape)) if worst.dim() else ()
        place = [int(i) for i in at]
        raise AssertionError(
            f"{what}: {int((~fine).sum())} of {fine.numel()} wrong; worst at {place}: got "
            f"{float(actual[at]):.9g}, exact {float(exact[at]):.9g}, bound {float(bound[at]):.3g}"
        )
