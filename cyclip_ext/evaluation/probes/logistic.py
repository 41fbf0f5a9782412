"""Linear probe: logistic regression on frozen features.

Source: Radford et al. 2021, section 3.2 and appendix A.3.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .result import (
    Probe,
    Rows,
    Scores,
    SweepPoint,
    best_value,
    check_rows,
    joined,
    number_of_classes,
    scored,
    sklearn,
    split_rows,
)

# Decimal exponents of C, for features of unit length. CLIP's grid is 1e-6 .. 1e6 for features some
# ten times as long, to which the right C is inversely quadratic; and below, all weights are nearly
# zero.
_COARSE = (-2.0, 0.0, 2.0, 4.0, 6.0)
_FINEST = 0.5  # decades between the last candidates

# The gradient's largest entry at the end, relative to the start. An absolute tolerance, which is
# scikit-learn's, means nothing here: entries shrink with the number of classes, and with 1,600 its
# default of 1e-4 is met at a quarter of the first gradient.
_TOLERANCE = 1e-2
_MOST_STEPS = 100

_SMALL_PRODUCT = 2**28  # multiplications

_UNSEARCHED = 100.0  # in the middle of what searches find for features of unit length


def linear_probe(
    train_features: Tensor,  # [T, d], unit length
    train_labels: Tensor,  # int64 [T]
    test_features: Tensor,  # [N, d], unit length
    test_labels: Tensor,  # int64 [N]
    *,
    validation: Rows | None = None,
    validation_share: float = 0.1,
    seed: int = 0,
    C: float | None = None,
) -> Probe:
    """Multinomial logistic regression (scikit-learn's: L-BFGS, L2), C chosen on validation rows.

    C, the inverse strength of regularization, goes over 1e-2, 1, 1e2, 1e4 and 1e6, then over the
    values a decade off the best, then half a decade; of equally good ones the smallest is taken.
    All rows, validation included, are fitted with it in the end.
    validation: rows of their own to choose on; default: validation_share of the training rows,
    drawn with seed, see validation_rows. C: given, nothing is chosen.

    A fit, in float32, ends when the gradient has fallen to a hundredth, and starts at that of the
    next smaller C: 3,000 rows of 128 in 1,600 classes take 46 s on one core, all fits together.
    Where every class has a single row there is nothing to choose on: C is 100, and notes say so.
    Test classes without training rows count as errors.

    Raises: ValueError for shapes that do not fit, features that are not finite, fewer than two
    classes and a C that is not above 0; MissingDependency without scikit-learn.
    """
    train, test = (train_features, train_labels), (test_features, test_labels)
    check_rows(train, test, validation)
    if C is not None and not 0 < C < math.inf:
        raise ValueError(f"C must be above 0 and finite, got {C}")
    if len(train_labels.unique()) < 2:
        raise ValueError("train_labels must have two classes at least, got one")
    notes: list[str] = []
    fits: dict[float, _Fit] = {}
    if C is None:
        part, held_out = split_rows(train, validation, validation_share, seed)
        if len(held_out[1]):
            fits = _search(part, held_out)
            C = best_value(_accuracies(fits))
            train = joined(part, held_out)
        else:
            C = _UNSEARCHED
            notes.append(f"every class has a single training row: C was not chosen, it is {C:g}")
    model, converged = _fit(train, C, fits[C].model if C in fits else None)
    unfinished = sum(not fit.converged for fit in fits.values()) + (not converged)
    if unfinished:
        notes.append(
            f"{unfinished} of {len(fits) + 1} fits did not converge in {_MOST_STEPS} steps; their "
            "accuracies may be a little low"
        )
    classes = number_of_classes(train, test)
    result = scored(test_labels, classes, _scores(model, test_features, classes))
    return Probe(
        result.metrics((1, 5)),
        "C",
        C,
        tuple(SweepPoint(value, fits[value].accuracy) for value in sorted(fits)),
        result.predictions,
        tuple(notes),
    )


@dataclass(frozen=True)
class _Fit:
    model: Any
    converged: bool
    accuracy: float


def _search(train: Rows, held_out: Rows) -> dict[float, _Fit]:
    """Fits by C, from coarse steps to fine ones around the best."""
    fits: dict[float, _Fit] = {}
    classes = number_of_classes(train, held_out)

    def add(exponent: float) -> None:
        C = 10.0**exponent
        if C in fits or not _COARSE[0] <= exponent <= _COARSE[-1]:
            return
        # From a larger C, whose weights are larger, a fit would end too early with those.
        smaller = [value for value in fits if value < C]
        model, converged = _fit(train, C, fits[max(smaller)].model if smaller else None)
        result = scored(held_out[1], classes, _scores(model, held_out[0], classes))
        fits[C] = _Fit(model, converged, result.metrics((1,))["acc1"])

    for exponent in _COARSE:
        add(exponent)
    step = _COARSE[1] - _COARSE[0]
    while step > _FINEST:
        step /= 2
        best = round(math.log10(best_value(_accuracies(fits))), 3)
        add(best - step)
        add(best + step)
    return fits


def _accuracies(fits: dict[float, _Fit]) -> dict[float, float]:
    return {value: fit.accuracy for value, fit in fits.items()}


def _fit(rows: Rows, C: float, start: Any | None) -> tuple[Any, bool]:
    """A fitted LogisticRegression, and whether it converged."""
    library = sklearn()
    from threadpoolctl import threadpool_limits  # scikit-learn depends on it

    X, y = rows[0].float().numpy(), rows[1].numpy()
    classes, index = np.unique(y, return_inverse=True)
    shares = np.bincount(index) / len(y)
    model = library.linear_model.LogisticRegression(
        C=C,
        tol=_TOLERANCE * _first_gradient(X, index, shares),
        max_iter=_MOST_STEPS,
        warm_start=True,
    )
    model.classes_ = classes
    if start is not None and np.array_equal(start.classes_, classes):
        model.coef_, model.intercept_ = start.coef_, start.intercept_
    else:
        # The class shares are the optimum of small C. From zero, scikit-learn's start, such a fit
        # takes 25 times as many steps with many classes: intercepts are not regularized.
        logits = np.log(shares)
        intercept = logits if len(classes) > 2 else logits[1:] - logits[:1]
        model.coef_, model.intercept_ = np.zeros((len(intercept), X.shape[1])), intercept
    # BLAS threads that wait for the next small product take each other's time: on a busy machine
    # two of them need ten times as long as one.
    threads = 1 if X.size * len(classes) < _SMALL_PRODUCT else None
    with (
        threadpool_limits(threads, user_api="blas"),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        model.fit(X, y)
    converged = True
    for each in caught:
        if issubclass(each.category, library.exceptions.ConvergenceWarning):
            converged = False
        elif "number of unique classes" not in str(each.message):  # labels are no measurements
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    return model, converged


def _first_gradient(
    X: npt.NDArray[np.float32], index: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]
) -> float:
    """Largest entry of the mean loss's gradient with respect to the weights, all weights zero."""
    sums = np.zeros((len(shares), X.shape[1]))
    np.add.at(sums, index, X)
    return float(np.abs(np.outer(shares, X.mean(0)) - sums / len(X)).max())


def _scores(model: Any, features: Tensor, classes: int) -> Scores:
    """Logits; -inf for classes that were not trained."""
    X = features.float().numpy()

    def scores(rows: slice) -> Tensor:
        logits = torch.from_numpy(model.decision_function(X[rows]))
        if logits.ndim == 1:  # two classes: the logit of the second
            logits = torch.stack([torch.zeros_like(logits), logits], dim=1)
        every = torch.full((len(logits), classes), -torch.inf, dtype=logits.dtype)
        every[:, torch.from_numpy(model.classes_)] = logits
        return every

    return scores
