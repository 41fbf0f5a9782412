"""Probes: the accuracy of a classifier that is trained on frozen image features alone.

linear_probe is logistic regression, knn_probe a vote of the nearest training rows. A setting (C, k)
is chosen on validation rows; the test rows are scored once.

Source: Radford et al. 2021, section 3.2 and appendix A.3.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..._optional import require
from ..._plotting import BLUE, VERMILION
from ..embeddings import Embeddings
from .base import Metric, Plot, Table, TaskOptions, TaskResult, Unit
from .consistency import knn_predictions
from .zero_shot import LABELS, Classified

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINEAR, KNN = "linear_probe", "knn_probe"

# Decimal exponents of C, for features of unit length. CLIP's grid is 1e-6 .. 1e6 for features some
# ten times as long, for which the right C is inversely quadratic; with smaller values all weights
# are nearly zero.
_COARSE = (-2.0, 0.0, 2.0, 4.0, 6.0)
_FINEST = 0.5  # decades between the last candidates

# The gradient's largest entry at the end, relative to the start. An absolute tolerance like
# scikit-learn's does not fit: entries shrink with the number of classes, and with 1,600 classes its
# default of 1e-4 is met at a quarter of the first gradient.
_TOLERANCE = 1e-2
_MOST_STEPS = 100

_SMALL_PRODUCT = 2**28  # multiplications

_UNSEARCHED = 100.0  # in the middle of the results of searches for features of unit length
_VALIDATION = 0.1  # share of the training rows

_BLOCK = 2**22  # scores held at a time

KS = (1, 3, 5, 10, 20)

Rows = tuple[Tensor, Tensor]  # features [n, d], labels int64 [n]


# ------------------------------------------------------------------------------------ probes


@dataclass(frozen=True)
class Probe:
    """The result of a probe.

    setting: the setting that was chosen, "C" or "k"; chosen: its value. sweep: value -> accuracy
    on the validation rows, ordered by value; empty if there was nothing to choose on. scored: the
    test rows. notes: remarks for readers of the numbers.
    """

    setting: str
    chosen: float
    sweep: dict[float, float]
    scored: Classified
    notes: list[str] = field(default_factory=list)


def linear_probe(train: Rows, test: Rows, seed: int = 0) -> Probe:
    """Fit multinomial logistic regression (scikit-learn: L-BFGS, L2) and score the test rows.

    C, the inverse strength of regularization, is chosen on validation rows. It goes over 1e-2, 1,
    1e2, 1e4 and 1e6, then over the values a decade beside the best, then half a decade; of equally
    good values the smallest is taken. All rows, validation included, are fitted with it in the end.

    A fit, in float32, ends when the gradient has fallen to a hundredth, and starts at that of the
    next smaller C: 3,000 rows of 128 in 1,600 classes take 46 s on one core, all fits together.
    If every class has a single row there is nothing to choose on: C is 100, and a note mentions it.
    Test classes without training rows count as errors. Raises ImportError without scikit-learn.
    """
    notes: list[str] = []
    part, held_out = _split(train, seed)
    fits = search(part, held_out) if len(held_out[1]) else {}
    sweep = {C: fits[C].accuracy for C in sorted(fits)}
    if fits:
        chosen = best_value(sweep)
        model, converged = fit(_joined(part, held_out), chosen, fits[chosen].model)
    else:
        chosen = _UNSEARCHED
        model, converged = fit(train, chosen)
        notes.append(f"every class has a single training row: C was not chosen, it is {chosen:g}")
    unfinished = sum(not each.converged for each in fits.values()) + (not converged)
    if unfinished:
        notes.append(
            f"{unfinished} of {len(fits) + 1} fits did not converge in {_MOST_STEPS} steps; their "
            "accuracies may be a little low"
        )
    return Probe("C", chosen, sweep, score(model, test, _classes(train, test)), notes)


def knn_probe(train: Rows, test: Rows, seed: int = 0, ks: Sequence[int] = KS) -> Probe:
    """Score the vote of the k training rows of largest cosine, see `knn_predictions`.

    k is chosen from ks on validation rows, the smallest of equally good ones; those beyond the
    number of training rows are omitted. All rows, validation included, are searched in the end. If
    every class has a single row k is the smallest of ks, and a note mentions it.
    """
    part, held_out = _split(train, seed)
    possible = [k for k in ks if k <= len(part[1])]
    sweep: dict[float, float] = {}
    notes = []
    if len(held_out[1]):
        for k, predictions in knn_predictions(held_out[0], *part, possible).items():
            sweep[k] = (predictions == held_out[1]).double().mean().item()
        chosen = int(best_value(sweep))
    else:
        chosen = possible[0]
        notes.append(f"every class has a single training row: k was not chosen, it is {chosen}")
    predictions = knn_predictions(test[0], *_joined(part, held_out), (chosen,))[chosen]
    wrong = (predictions != test[1]).long()  # as ranks: 0 is a hit at 1
    scored = Classified(test[1], wrong, predictions, _classes(train, test))
    return Probe("k", chosen, sweep, scored, notes)


def validation_rows(
    labels: Tensor,  # int64 [T]
    seed: int,
    share: float = _VALIDATION,
) -> Tensor:  # bool [T]
    """Choose a random share of the rows, stratified, but not the last row of a class.

    The number of rows of a class is proportional to its size minus one. Classes too small for a
    whole row give one at random, so that the total is the share. If most classes have a single row,
    the total is smaller: all rows but one of each class.
    """
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    classes, counts = labels.unique(return_counts=True)
    shuffled = torch.randperm(len(classes), generator=generator)
    classes, spare = classes[shuffled], counts[shuffled] - 1
    total = int(spare.sum())
    if not total:
        return chosen
    wanted = min(max(1, round(share * len(labels))), total)
    # Systematic sampling, in integers: parts add up to `wanted`, and none exceeds the spare rows.
    start = torch.randint(total, (), generator=generator)
    bounds = (spare.cumsum(0) * wanted + start) // total
    parts = torch.diff(bounds, prepend=torch.zeros(1, dtype=torch.int64))
    for label, part, rest in zip(classes.tolist(), parts.tolist(), spare.tolist(), strict=True):
        rows = (labels == label).nonzero().squeeze(1)
        chosen[rows[torch.randperm(rest + 1, generator=generator)[:part]]] = True
    return chosen


def _split(train: Rows, seed: int) -> tuple[Rows, Rows]:
    """Return rows to train on while choosing, and rows to choose on, which may be none."""
    features, labels = train
    held_out = validation_rows(labels, seed)
    return (features[~held_out], labels[~held_out]), (features[held_out], labels[held_out])


def _joined(first: Rows, second: Rows) -> Rows:
    return torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])


def _classes(*parts: Rows) -> int:
    return 1 + max(int(labels.max()) for _, labels in parts)


def best_value(accuracy: Mapping[float, float]) -> float:
    """Return the value of largest accuracy, of equals the smallest: the more regular classifier."""
    return min(accuracy, key=lambda value: (-accuracy[value], value))


# ------------------------------------------------------------------------ logistic regression


class Fit(NamedTuple):
    """A fitted LogisticRegression and its accuracy on the validation rows."""

    model: Any
    converged: bool
    accuracy: float


def search(train: Rows, held_out: Rows) -> dict[float, Fit]:
    """Fit by C, from coarse steps to fine ones around the best."""
    fits: dict[float, Fit] = {}
    classes = _classes(train, held_out)

    def add(exponent: float) -> None:
        C = 10.0**exponent
        if C in fits or not _COARSE[0] <= exponent <= _COARSE[-1]:
            return
        # A fit that starts at the larger weights of a larger C would end too early.
        smaller = [value for value in fits if value < C]
        model, converged = fit(train, C, fits[max(smaller)].model if smaller else None)
        fits[C] = Fit(model, converged, score(model, held_out, classes).accuracy())

    for exponent in _COARSE:
        add(exponent)
    step = _COARSE[1] - _COARSE[0]
    while step > _FINEST:
        step /= 2
        best = best_value({C: each.accuracy for C, each in fits.items()})
        for sign in (-1, 1):
            add(round(math.log10(best), 3) + sign * step)
    return fits


def fit(rows: Rows, C: float, start: Any | None = None) -> tuple[Any, bool]:
    """Fit a LogisticRegression from the weights of `start`; return it, and whether it converged."""
    purpose = "the linear probe needs scikit-learn"
    linear_model = require("sklearn.linear_model", purpose, "eval")
    exceptions = require("sklearn.exceptions", purpose, "eval")
    from threadpoolctl import threadpool_limits  # scikit-learn depends on it

    X, y = rows[0].float().numpy(), rows[1].numpy()
    classes, index = np.unique(y, return_inverse=True)
    shares = np.bincount(index) / len(y)
    model = linear_model.LogisticRegression(
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
        if issubclass(each.category, exceptions.ConvergenceWarning):
            converged = False
        elif "number of unique classes" not in str(each.message):  # not a regression
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    return model, converged


def _first_gradient(
    X: npt.NDArray[np.float32], index: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]
) -> float:
    """Return the largest entry of the mean loss's gradient at weights of zero."""
    sums = np.zeros((len(shares), X.shape[1]))
    np.add.at(sums, index, X)
    return float(np.abs(np.outer(shares, X.mean(0)) - sums / len(X)).max())


def score(model: Any, rows: Rows, classes: int) -> Classified:
    """Classify rows in blocks; a class that was not trained has the logit -inf."""
    X, labels = rows[0].float().numpy(), rows[1]
    step = max(1, _BLOCK // classes)
    ranks, predictions = [], []
    for start in range(0, len(labels), step):
        logits = torch.from_numpy(model.decision_function(X[start : start + step]))
        if logits.ndim == 1:  # two classes: the logit of the second
            logits = torch.stack([torch.zeros_like(logits), logits], dim=1)
        every = torch.full((len(logits), classes), -torch.inf, dtype=logits.dtype)
        every[:, torch.from_numpy(model.classes_)] = logits
        target = every.gather(1, labels[start : start + step, None])
        ranks.append((every >= target).sum(1) - 1)
        predictions.append(every.argmax(1))
    return Classified(labels, torch.cat(ranks), torch.cat(predictions), classes)


# ------------------------------------------------------------------------------ plot and tasks


def plot_sweep(figure: Figure, probe: Probe) -> None:
    """Plot the validation accuracy against the setting, with the chosen value marked."""
    axes = figure.subplots()
    values = list(probe.sweep)
    axes.plot(values, [100 * accuracy for accuracy in probe.sweep.values()], "o-", color=BLUE)
    axes.plot(
        [probe.chosen],
        [100 * probe.sweep[probe.chosen]],
        "D",
        color=VERMILION,
        markersize=9,
        label=f"chosen: {probe.setting} = {probe.chosen:.3g}",
    )
    axes.set_xscale("log")
    if probe.setting == "k":
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
        axes.set_xlabel("k, neighbours that vote")
    else:
        axes.set_xlabel("C, inverse strength of regularization")
    axes.set_ylabel("accuracy on validation rows, %")
    axes.grid(alpha=0.3)
    axes.legend()


def run_linear(embeddings: Embeddings, options: TaskOptions) -> TaskResult | None:
    """Measure lp_acc1, lp_acc5 and lp_mean_per_class_recall with options.train."""
    return _run(embeddings, options, LINEAR, "Linear probe", "lp", (1, 5), linear_probe)


def run_knn(embeddings: Embeddings, options: TaskOptions) -> TaskResult | None:
    """Measure knn_acc1 and knn_mean_per_class_recall with options.train."""
    return _run(embeddings, options, KNN, "k-NN probe", "knn", (1,), knn_probe)


def _run(
    embeddings: Embeddings,
    options: TaskOptions,
    task: str,
    title: str,
    prefix: str,
    ks: Sequence[int],
    run_probe: Callable[[Rows, Rows, int], Probe],
) -> TaskResult | None:
    train, labels = options.train, embeddings.labels
    if train is None or train.labels is None or labels is None or len(train.labels.unique()) < 2:
        return None
    rows = (train.image_features, train.labels), (embeddings.image_features, labels)
    probe = run_probe(*rows, options.seed)
    setting = probe.setting
    sweep = Table(
        f"Choice of {setting}",
        (setting, "top-1 on the validation rows (%)"),
        tuple((f"{value:.4g}", 100 * accuracy) for value, accuracy in probe.sweep.items()),
        "; ".join([f"{setting} = {probe.chosen:.4g} is taken", *probe.notes]) + ".",
    )
    plot = Plot(
        f"{task}_choice",
        f"Accuracy on the part of the training images that {setting} is chosen on.",
        partial(plot_sweep, probe=probe),
        (6.4, 3.2),
    )
    headline = task == LINEAR
    return TaskResult(
        embeddings.name,
        task,
        {
            Metric(
                f"{prefix}_{key}", LABELS[key], Unit.SHARE, headline=headline and key == "acc1"
            ): value
            for key, value in probe.scored.metrics(ks).items()
        },
        title,
        "A classifier is trained on the image features of labelled training images; text is not "
        "involved. Its setting is chosen on a part of them, and the dataset is only scored.",
        (sweep,),
        (plot,) if probe.sweep else (),
        (train,),
    )
