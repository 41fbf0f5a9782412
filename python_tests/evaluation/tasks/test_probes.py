"""Probes: against scikit-learn itself, by hand, and that the test rows choose nothing."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn.functional import normalize

from cyclip_ext.evaluation.tasks import probes
from cyclip_ext.evaluation.tasks.probes import (
    best_value,
    fit,
    knn_probe,
    linear_probe,
    plot_sweep,
    score,
    search,
    validation_rows,
)

from .cases import at

Rows = tuple[Tensor, Tensor]


def clusters(rows: int, classes: int, noise: float, seed: int = 0, width: int = 12) -> Rows:
    """Return unit vectors around a random centre per class, each class with a row."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    more = torch.randint(classes, (rows - classes,), generator=generator)
    labels = torch.cat([torch.arange(classes), more])
    features = centres[labels] + noise * torch.randn(rows, width, generator=generator)
    return normalize(features, dim=1), labels


def rows_of(points: Tensor, *labels: int) -> Rows:
    return points, torch.tensor(labels)


@pytest.fixture
def hold_out_last(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Choose settings on the last rows of the training rows."""

    def hold_out(count: int) -> None:
        monkeypatch.setattr(
            probes,
            "validation_rows",
            lambda labels, seed: torch.arange(len(labels)) >= len(labels) - count,
        )

    return hold_out


def test_logistic_regression_equals_scikit_learn() -> None:
    train, test = clusters(300, 9, 2.0), clusters(400, 9, 2.0, seed=1)
    model, converged = fit(train, 3.0)
    scored = score(model, test, 9)
    direct = LogisticRegression(C=3.0, tol=1e-8, max_iter=1000)
    direct.fit(train[0].double().numpy(), train[1].numpy())
    X, y = test[0].double().numpy(), test[1].numpy()
    predictions = direct.predict(X)
    top5 = sklearn_metrics.top_k_accuracy_score(y, direct.decision_function(X), k=5)
    recall = sklearn_metrics.balanced_accuracy_score(y, predictions)
    assert converged
    assert (scored.predictions.numpy() == predictions).mean() > 0.99
    assert scored.accuracy() == pytest.approx((y == predictions).mean(), abs=0.006)
    assert scored.accuracy(5) == pytest.approx(top5, abs=0.006)
    assert scored.metrics()["mean_per_class_recall"] == pytest.approx(recall, abs=0.01)
    assert scored.accuracy() < scored.accuracy(5) < 1


def test_two_classes_and_class_numbers_with_gaps() -> None:
    model, _ = fit(rows_of(at(0, 5, 90, 95), 7, 7, 3, 3), 100.0)
    scored = score(model, rows_of(at(2, 92, 93), 7, 3, 3), 8)
    assert scored.predictions.tolist() == [7, 3, 3]
    assert set(scored.metrics((1, 5)).values()) == {1}


def test_a_class_without_training_rows_is_missed() -> None:
    train = rows_of(at(0, 5, 90, 95, 180, 185), 0, 0, 1, 1, 6, 6)
    test = rows_of(at(2, 92, 181, 92), 0, 1, 6, 4)
    for scored in (score(fit(train, 100.0)[0], test, 7), knn_probe(train, test).scored):
        assert scored.predictions.tolist() == [0, 1, 6, 1]
        assert set(scored.metrics((1,)).values()) == {0.75}
    assert score(fit(train, 100.0)[0], test, 7).accuracy(5) == 0.75  # of 7 classes it comes last


def test_c_is_chosen_on_validation_rows(hold_out_last: Any) -> None:
    """A third axis separates the training rows better than the first two; the validation
    rows have it the other way round, the test rows as in training.
    """
    generator = torch.Generator().manual_seed(0)

    def rows(count: int, third: float) -> Rows:
        labels = torch.arange(count) % 2
        sign = labels[:, None] * 2.0 - 1
        first = sign * 0.5 + 0.5 * torch.randn(count, 1, generator=generator)
        return torch.cat([0.3 * first, torch.ones(count, 1), 0.02 * third * sign], 1), labels

    train, held_out, test = rows(200, 1), rows(200, -1), rows(200, 1)
    hold_out_last(200)
    probe = linear_probe((torch.cat([train[0], held_out[0]]), torch.cat([train[1]] * 2)), test)
    by_test = {C: each.accuracy for C, each in search(train, test).items()}
    assert probe.chosen < 100 < best_value(by_test)
    assert probe.sweep[probe.chosen] == max(probe.sweep.values())
    assert probe.sweep[1e6] < 0.5


def test_search_goes_from_coarse_to_fine() -> None:
    train, test = clusters(400, 5, 2.0), clusters(300, 5, 2.0, seed=1)
    probe = linear_probe(train, test)
    tried = list(probe.sweep)
    assert tried == sorted(tried)
    assert {1e-2, 1.0, 1e2, 1e4, 1e6} <= set(tried)
    assert 7 <= len(tried) <= 9  # 7 if the best is at an end
    best = max(probe.sweep.values())
    assert probe.chosen == min(C for C, accuracy in probe.sweep.items() if accuracy == best)
    neighbours = [value for value in tried if abs(np.log10(value / probe.chosen)) < 0.6]
    assert len(neighbours) >= 2
    assert probe.scored.accuracy() > 0.6


def test_last_fit_includes_the_validation_rows(hold_out_last: Any) -> None:
    # Beyond the bisector at 50 degrees: without these rows every C puts them into class 1.
    train = rows_of(at(0, 10, 90, 100, 60, 62, 64), 0, 0, 1, 1, 0, 0, 0)
    test = rows_of(at(60), 0)
    hold_out_last(3)
    probe = linear_probe(train, test)
    assert set(probe.sweep.values()) == {0}
    assert probe.scored.accuracy() == 1
    assert knn_probe(train, test, ks=(1,)).scored.accuracy() == 1


def test_single_rows_leave_nothing_to_choose_on() -> None:
    train = torch.eye(6), torch.arange(6)
    for probe, chosen in ((linear_probe(train, train), 100.0), (knn_probe(train, train), 1)):
        assert (probe.chosen, probe.sweep, probe.scored.accuracy()) == (chosen, {}, 1)
        assert "single training row" in probe.notes[0]


def test_missing_convergence_is_a_note_not_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_MOST_STEPS", 1)
    train = clusters(200, 5, 0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe = linear_probe(train, train)
    assert "fits did not converge in 1 steps" in probe.notes[0]


def test_other_warnings_of_a_fit_are_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(*arguments: Any) -> None:
        warnings.warn("overflow", RuntimeWarning, stacklevel=2)

    monkeypatch.setattr(LogisticRegression, "fit", warn)
    with pytest.warns(RuntimeWarning, match="overflow"):
        fit(clusters(20, 3, 0.9), 1.0)


def test_linear_probe_ignores_global_random_state() -> None:
    train, test = clusters(200, 5, 0.9), clusters(100, 5, 0.9, seed=1)
    first = linear_probe(train, test, seed=3)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    again = linear_probe(train, test, seed=3)
    assert first.sweep == again.sweep
    assert first.scored.metrics() == again.scored.metrics()
    assert any(linear_probe(train, test, seed=seed).sweep != first.sweep for seed in (4, 5))


def test_k_is_the_smallest_of_the_best_on_validation_rows(hold_out_last: Any) -> None:
    train = rows_of(at(1, 10, 12, 40, 0.5), 7, 3, 3, 5, 7)
    hold_out_last(1)
    probe = knn_probe(train, rows_of(at(0), 7), ks=(1, 2, 3, 50))
    assert probe.sweep == {1: 1, 2: 1, 3: 0}
    assert probe.chosen == 1


@pytest.mark.parametrize("k", [1, 3, 7])
def test_knn_equals_scikit_learn(k: int) -> None:
    features, labels = clusters(300, 4, 1.2)
    features = features * torch.linspace(0.5, 3, 300)[:, None]  # cosine does not see lengths
    test = clusters(200, 4, 1.2, seed=1)
    direct = KNeighborsClassifier(k, metric="cosine", weights="uniform")
    direct.fit(features.numpy(), labels.numpy())
    votes = torch.tensor(direct.predict_proba(test[0].numpy())).sort(descending=True).values
    clear = votes[:, 0] > votes[:, 1] + 1e-6  # scikit-learn takes the first of tied classes
    predictions = knn_probe((features, labels), test, ks=(k,)).scored.predictions
    expected = torch.tensor(direct.predict(test[0].numpy()))
    assert clear.sum() > 100
    assert torch.equal(predictions[clear], expected[clear])


def test_validation_rows_leave_each_class_one() -> None:
    labels = torch.cat([torch.arange(1601), torch.arange(1601)])  # two rows each, as the emoji have
    chosen = validation_rows(labels, 0)
    assert chosen.sum() == 320
    assert len(labels[~chosen].unique()) == 1601
    assert len(labels[chosen].unique()) == 320  # no class gives both
    assert chosen[:1601].any()
    assert chosen[1601:].any()
    assert not torch.equal(chosen, validation_rows(labels, 1))

    uneven = torch.tensor([0] * 100 + [1] * 50 + [2] + [9])
    chosen = validation_rows(uneven, 0, share=0.2)
    counts = torch.bincount(uneven[chosen], minlength=10)
    assert chosen.sum() == 30
    assert counts[0] in (19, 20, 21)
    assert counts[2] == counts[9] == 0

    few = torch.tensor([0, 1, 2, 3, 3])  # 0.9 of 5 rows, but only one can be spared
    assert few[validation_rows(few, 0, share=0.9)].tolist() == [3]
    assert not validation_rows(torch.arange(5), 0, share=0.5).any()


def test_plot_marks_the_chosen_value(render: Any) -> None:
    train, test = clusters(200, 5, 0.9), clusters(100, 5, 0.9, seed=1)
    for probe in (linear_probe(train, test), knn_probe(train, test)):
        (axes,) = render(plot_sweep, probe).axes
        curve, mark = axes.lines
        assert list(curve.get_xdata()) == list(probe.sweep)
        assert list(mark.get_xdata()) == [probe.chosen]
        assert axes.get_xscale() == "log"
        assert probe.setting in axes.get_xlabel()
