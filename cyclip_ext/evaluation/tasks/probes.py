"""Probes: the accuracy of a classifier that is trained on frozen image features alone.

linear_probe is logistic regression, knn_probe a vote of the nearest training rows. A setting (C, k)
is chosen on validation rows; the test rows are scored once.

Source: Radford et al. 2021, section 3.2 and appendix A.3.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..._plotting import BLUE, VERMILION
from ..embeddings import Embeddings, check_labels, require_finite
from .base import Metric, Plot, Table, TaskOptions, TaskResult, Unit
from .consistency import knn_predictions
from .zero_shot import Classified

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

_BLOCK = 2**22  # scores held at a time

KS = (1, 3, 5, 10, 20)

Rows = tuple[Tensor, Tensor]  # features [n, d], labels int64 [n]


# ------------------------------------------------------------------------------------ metrics


@dataclass(frozen=True)
class SweepPoint:
    """Accuracy on the validation rows, from 0 to 1, with one value of the setting."""

    value: float
    validation_acc1: float


@dataclass(frozen=True)
class Probe:
    """The result of a probe.

    metrics: acc1 and mean_per_class_recall on the test rows; of linear_probe also acc5, which is 1
        with 5 classes or fewer. setting: the chosen setting, "C" or "k"; chosen: its value.
    sweep: the comparison it was chosen by, ordered by value; empty if nothing was compared.
    predictions: int64 [N], of the test rows. notes: remarks for readers of the numbers.
    """

    metrics: dict[str, float]
    setting: str
    chosen: float
    sweep: tuple[SweepPoint, ...]
    predictions: Tensor
    notes: tuple[str, ...]


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
    """Fit multinomial logistic regression (scikit-learn: L-BFGS, L2) and score the test rows.

    C, the inverse strength of regularization, is chosen on validation rows. It goes over 1e-2, 1,
    1e2, 1e4 and 1e6, then over the values a decade beside the best, then half a decade; of equally
    good values the smallest is taken. All rows, validation included, are fitted with it in the end.
    validation: separate rows to choose on; default: validation_share of the training rows, drawn
    with seed, see validation_rows. C: if given, nothing is chosen.

    A fit, in float32, ends when the gradient has fallen to a hundredth, and starts at that of the
    next smaller C: 3,000 rows of 128 in 1,600 classes take 46 s on one core, all fits together.
    If every class has a single row there is nothing to choose on: C is 100, and a note mentions it.
    Test classes without training rows count as errors.

    Raises ValueError for shapes that do not fit, features that are not finite, fewer than two
    classes, and a C that is not above 0; ImportError without scikit-learn.
    """
    train, test = (train_features, train_labels), (test_features, test_labels)
    _check_rows(train, test, validation)
    if C is not None and not 0 < C < math.inf:
        raise ValueError(f"C must be above 0 and finite, got {C}")
    if len(train_labels.unique()) < 2:
        raise ValueError("train_labels must have two classes at least, got one")
    notes: list[str] = []
    fits: dict[float, _Fit] = {}
    if C is None:
        part, held_out = _split_rows(train, validation, validation_share, seed)
        if len(held_out[1]):
            fits = _search(part, held_out)
            C = _best_value(_accuracies(fits))
            train = _joined(part, held_out)
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
    scored = _score(model, test, _number_of_classes(train, test))
    return Probe(
        scored.metrics((1, 5)),
        "C",
        C,
        tuple(SweepPoint(value, fits[value].accuracy) for value in sorted(fits)),
        scored.predictions,
        tuple(notes),
    )


def knn_probe(
    train_features: Tensor,  # [T, d]
    train_labels: Tensor,  # int64 [T]
    test_features: Tensor,  # [N, d]
    test_labels: Tensor,  # int64 [N]
    *,
    ks: Sequence[int] = KS,
    validation: Rows | None = None,
    validation_share: float = 0.1,
    seed: int = 0,
) -> Probe:
    """Score the vote of the k training rows of largest cosine, see `knn_predictions`.

    k is chosen from ks on validation rows, the smallest of equally good ones; those beyond the
    number of training rows are omitted. All rows, validation included, are searched in the end.
    validation, validation_share, seed: see linear_probe.

    If every class has a single row k is the smallest of ks, and a note mentions it. Raises
    ValueError as linear_probe, and if no k, or one below 1, is possible.
    """
    train, test = (train_features, train_labels), (test_features, test_labels)
    _check_rows(train, test, validation)
    part, held_out = _split_rows(train, validation, validation_share, seed)
    possible = sorted({k for k in ks if k <= len(part[1])})
    if not possible or possible[0] < 1:
        raise ValueError(f"ks must be in 1 .. {len(part[1])} (training rows), got {[*ks]}")
    accuracy: dict[float, float] = {}
    notes: tuple[str, ...] = ()
    chosen = possible[0]
    if len(held_out[1]):
        for k, predictions in knn_predictions(held_out[0], *part, possible).items():
            accuracy[k] = (predictions == held_out[1]).double().mean().item()
        chosen = int(_best_value(accuracy))
    else:
        notes = (f"every class has a single training row: k was not chosen, it is {chosen}",)
    predictions = knn_predictions(test_features, *_joined(part, held_out), (chosen,))[chosen]
    wrong = (predictions != test_labels).long()  # as ranks: 0 is a hit at 1
    scored = Classified(test_labels, wrong, predictions, _number_of_classes(part, held_out, test))
    return Probe(
        scored.metrics((1,)),
        "k",
        chosen,
        tuple(SweepPoint(k, accuracy[k]) for k in sorted(accuracy)),
        predictions,
        notes,
    )


def validation_rows(
    labels: Tensor,  # int64 [T]
    share: float,
    seed: int,
) -> Tensor:  # bool [T]
    """Choose a random share of the rows, stratified; every class keeps at least one training row.

    A class gives in proportion to its rows but one, and classes too small for a whole row give one
    at random, so that all together give the share. If they cannot, because most classes have a
    single row, they give all they can spare: none if every class has a single row.
    Raises ValueError for a share that is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"validation_share must be between 0 and 1, neither of them, got {share}")
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    classes, counts = labels.unique(return_counts=True)
    shuffled = torch.randperm(len(classes), generator=generator)
    classes, spare = classes[shuffled], counts[shuffled] - 1
    total = int(spare.sum())
    if not total:
        return chosen
    wanted = min(max(1, round(share * len(labels))), total)
    # Systematic sampling, in integers: parts add up to `wanted`, and none exceeds what is spare.
    start = torch.randint(total, (), generator=generator)
    bounds = (spare.cumsum(0) * wanted + start) // total
    parts = torch.diff(bounds, prepend=torch.zeros(1, dtype=torch.int64))
    for label, part, rest in zip(classes.tolist(), parts.tolist(), spare.tolist(), strict=True):
        rows = (labels == label).nonzero().squeeze(1)
        chosen[rows[torch.randperm(rest + 1, generator=generator)[:part]]] = True
    return chosen


def _check_rows(train: Rows, test: Rows, validation: Rows | None) -> None:
    """Raise ValueError, naming the argument, for rows and labels that no probe can take."""
    parts = {"train": train, "test": test}
    if validation is not None:
        parts["validation"] = validation
    for name, (features, labels) in parts.items():
        if features.ndim != 2 or not len(features) or features.shape[1:] != train[0].shape[1:]:
            raise ValueError(
                f"{name}_features must be [n, d], n above 0 and d as of train_features, got "
                f"{[*features.shape]} (train_features is {[*train[0].shape]})"
            )
        check_labels(labels, f"{name}_labels", features, f"{name}_features")
        if int(labels.min()) < 0:
            raise ValueError(f"{name}_labels must be 0 or more, got {int(labels.min())}")
        require_finite(**{f"{name}_features": features})


def _split_rows(train: Rows, validation: Rows | None, share: float, seed: int) -> tuple[Rows, Rows]:
    """Return rows to train on while choosing, and rows to choose on, which may be none."""
    if validation is not None:
        return train, validation
    held_out = validation_rows(train[1], share, seed)
    return (train[0][~held_out], train[1][~held_out]), (train[0][held_out], train[1][held_out])


def _joined(first: Rows, second: Rows) -> Rows:
    return torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])


def _number_of_classes(*parts: Rows) -> int:
    return 1 + max(int(labels.max()) for _, labels in parts if len(labels))


def _best_value(accuracy: dict[float, float]) -> float:
    """Return the value of largest accuracy, of equals the smallest: the more regular classifier."""
    return min(accuracy, key=lambda value: (-accuracy[value], value))


@dataclass(frozen=True)
class _Fit:
    model: Any
    converged: bool
    accuracy: float


def _search(train: Rows, held_out: Rows) -> dict[float, _Fit]:
    """Fit by C, from coarse steps to fine ones around the best."""
    fits: dict[float, _Fit] = {}
    classes = _number_of_classes(train, held_out)

    def add(exponent: float) -> None:
        C = 10.0**exponent
        if C in fits or not _COARSE[0] <= exponent <= _COARSE[-1]:
            return
        # From a larger C, whose weights are larger, a fit would end too early with those.
        smaller = [value for value in fits if value < C]
        model, converged = _fit(train, C, fits[max(smaller)].model if smaller else None)
        accuracy = _score(model, held_out, classes).metrics((1,))["acc1"]
        fits[C] = _Fit(model, converged, accuracy)

    for exponent in _COARSE:
        add(exponent)
    step = _COARSE[1] - _COARSE[0]
    while step > _FINEST:
        step /= 2
        best = round(math.log10(_best_value(_accuracies(fits))), 3)
        add(best - step)
        add(best + step)
    return fits


def _accuracies(fits: dict[float, _Fit]) -> dict[float, float]:
    return {value: fit.accuracy for value, fit in fits.items()}


def _fit(rows: Rows, C: float, start: Any | None) -> tuple[Any, bool]:
    """Return a fitted LogisticRegression, and whether it converged."""
    library = _sklearn()
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
    """Return the largest entry of the mean loss's gradient at weights of zero."""
    sums = np.zeros((len(shares), X.shape[1]))
    np.add.at(sums, index, X)
    return float(np.abs(np.outer(shares, X.mean(0)) - sums / len(X)).max())


def _score(model: Any, rows: Rows, classes: int) -> Classified:
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


def _sklearn() -> Any:
    """Import scikit-learn. Raises ImportError if that fails."""
    try:
        import sklearn.exceptions
        import sklearn.linear_model
    except Exception as error:
        raise ImportError(
            "the linear probe needs scikit-learn: pip install 'cyclip_ext[eval]'; importing it "
            f"failed with: {error}"
        ) from error
    return sklearn


# --------------------------------------------------------------------------------------- plot


def plot_sweep(figure: Figure, probe: Probe) -> None:
    """Plot the validation accuracy against the setting, with the chosen value marked.

    Raises ValueError for a probe without a sweep.
    """
    if not probe.sweep:
        raise ValueError(
            f"probe has no sweep to plot: {'; '.join(probe.notes) or 'its setting was given'}"
        )
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    values = [point.value for point in probe.sweep]
    axes.plot(values, [100 * point.validation_acc1 for point in probe.sweep], "o-", color=BLUE)
    best = next(point for point in probe.sweep if point.value == probe.chosen)
    axes.plot(
        [best.value],
        [100 * best.validation_acc1],
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


# --------------------------------------------------------------------------------------- task


def run_linear(embeddings: Embeddings, options: TaskOptions) -> TaskResult | None:
    """Measure lp_acc1, lp_acc5 and lp_mean_per_class_recall with options.train."""
    rows = _task_rows(embeddings, options)
    if rows is None:
        return None
    return _result(
        embeddings, options, LINEAR, "lp", "Linear probe", linear_probe(*rows, seed=options.seed)
    )


def run_knn(embeddings: Embeddings, options: TaskOptions) -> TaskResult | None:
    """Measure knn_acc1 and knn_mean_per_class_recall with options.train."""
    rows = _task_rows(embeddings, options)
    if rows is None:
        return None
    return _result(
        embeddings, options, KNN, "knn", "k-NN probe", knn_probe(*rows, seed=options.seed)
    )


def _task_rows(
    embeddings: Embeddings, options: TaskOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    train, labels = options.train, embeddings.labels
    if train is None or train.labels is None or labels is None or len(train.labels.unique()) < 2:
        return None
    return train.image_features, train.labels, embeddings.image_features, labels


def _result(
    embeddings: Embeddings,
    options: TaskOptions,
    task: str,
    prefix: str,
    title: str,
    probe: Probe,
) -> TaskResult:
    labels = {"acc1": "top-1", "acc5": "top-5", "mean_per_class_recall": "per-class recall"}
    sweep = Table(
        f"Choice of {probe.setting}",
        (probe.setting, "top-1 on the validation rows (%)"),
        tuple((f"{point.value:.4g}", 100 * point.validation_acc1) for point in probe.sweep),
        "; ".join([f"{probe.setting} = {probe.chosen:.4g} is taken", *probe.notes]) + ".",
    )
    plot = Plot(
        f"{task}_choice",
        f"Accuracy on the part of the training images that {probe.setting} is chosen on.",
        partial(plot_sweep, probe=probe),
        (6.4, 3.2),
    )
    assert options.train is not None
    return TaskResult(
        embeddings.name,
        task,
        {f"{prefix}_{key}": value for key, value in probe.metrics.items()},
        tuple(
            Metric(
                f"{prefix}_{key}", labels[key], Unit.SHARE, headline=f"{prefix}_{key}" == "lp_acc1"
            )
            for key in probe.metrics
        ),
        title,
        "A classifier is trained on the image features of labelled training images; text is not "
        "involved. Its setting is chosen on a part of them, and the dataset is only scored.",
        (sweep,) if options.details else (),
        (plot,) if options.details and probe.sweep else (),
        (options.train,),
    )
