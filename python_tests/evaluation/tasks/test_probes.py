"""Probes: against scikit-learn itself, by hand, and that the test rows choose nothing."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import normalize

from cyclip_ext.evaluation.tasks import probes
from cyclip_ext.evaluation.tasks.probes import (
    knn_probe,
    linear_probe,
    plot_sweep,
    validation_rows,
)

Rows = tuple[Tensor, Tensor]


def clusters(rows: int, classes: int, noise: float, seed: int = 0, width: int = 12) -> Rows:
    """Return unit vectors around a random centre per class, each class with a row."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    more = torch.randint(classes, (rows - classes,), generator=generator)
    labels = torch.cat([torch.arange(classes), more])
    features = centres[labels] + noise * torch.randn(rows, width, generator=generator)
    return normalize(features, dim=1), labels


def at(*degrees: float) -> Tensor:
    radians = torch.tensor(degrees).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_linear_probe_equals_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

    train, test = clusters(300, 9, 2.0), clusters(400, 9, 2.0, seed=1)
    probe = linear_probe(*train, *test, C=3.0)
    direct = LogisticRegression(C=3.0, tol=1e-8, max_iter=1000)
    direct.fit(train[0].double().numpy(), train[1].numpy())
    X, y = test[0].double().numpy(), test[1].numpy()
    predictions = direct.predict(X)
    assert (probe.predictions.numpy() == predictions).mean() > 0.99
    assert probe.metrics["acc1"] == pytest.approx(accuracy_score(y, predictions), abs=0.006)
    assert probe.metrics["mean_per_class_recall"] == pytest.approx(
        balanced_accuracy_score(y, predictions), abs=0.01
    )
    assert probe.metrics["acc5"] == pytest.approx(
        top_k_accuracy_score(y, direct.decision_function(X), k=5), abs=0.006
    )
    assert probe.metrics["acc1"] < probe.metrics["acc5"] < 1
    assert (probe.setting, probe.chosen, probe.sweep, probe.notes) == ("C", 3.0, (), ())


def test_two_classes_and_class_numbers_with_gaps() -> None:
    train = at(0, 5, 90, 95), torch.tensor([7, 7, 3, 3])
    probe = linear_probe(*train, at(2, 92, 93), torch.tensor([7, 3, 3]), C=100.0)
    assert probe.predictions.tolist() == [7, 3, 3]
    assert probe.metrics == {"acc1": 1.0, "acc5": 1.0, "mean_per_class_recall": 1.0}


def test_a_class_without_training_rows_is_missed() -> None:
    train = at(0, 5, 90, 95, 180, 185), torch.tensor([0, 0, 1, 1, 6, 6])
    test = at(2, 92, 181, 92), torch.tensor([0, 1, 6, 4])
    for probe in (linear_probe(*train, *test, C=100.0), knn_probe(*train, *test, ks=[1])):
        assert probe.predictions.tolist() == [0, 1, 6, 1]
        assert probe.metrics["acc1"] == 0.75
        assert probe.metrics.get("acc5", 0.75) == 0.75  # of 7 classes it comes last
        assert probe.metrics["mean_per_class_recall"] == 0.75


def test_c_is_chosen_on_validation_rows() -> None:
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
    probe = linear_probe(*train, *test, validation=held_out)
    by_test = linear_probe(*train, *held_out, validation=test)
    assert probe.chosen < 100 < by_test.chosen
    accuracy = {point.value: point.validation_acc1 for point in probe.sweep}
    assert accuracy[probe.chosen] == max(accuracy.values())
    assert accuracy[1e6] < 0.5


def test_search_goes_from_coarse_to_fine() -> None:
    train, test = clusters(400, 5, 2.0), clusters(300, 5, 2.0, seed=1)
    probe = linear_probe(*train, *test)
    tried = [point.value for point in probe.sweep]
    assert tried == sorted(tried)
    assert {1e-2, 1.0, 1e2, 1e4, 1e6} <= set(tried)
    assert 7 <= len(tried) <= 9  # 7 where the best is at an end
    best = max(point.validation_acc1 for point in probe.sweep)
    assert probe.chosen == min(p.value for p in probe.sweep if p.validation_acc1 == best)
    neighbours = [value for value in tried if abs(np.log10(value / probe.chosen)) < 0.6]
    assert len(neighbours) >= 2
    assert probe.metrics["acc1"] > 0.6


def test_last_fit_includes_the_validation_rows() -> None:
    train = at(0, 10, 90, 100), torch.tensor([0, 0, 1, 1])
    # Beyond the bisector at 50 degrees: without these rows every C puts them into class 1.
    held_out = at(60, 62, 64), torch.tensor([0, 0, 0])
    test = at(60), torch.tensor([0])
    assert linear_probe(*train, *test, C=1e-2).metrics["acc1"] == 0
    probe = linear_probe(*train, *test, validation=held_out)
    assert {point.validation_acc1 for point in probe.sweep} == {0}
    assert probe.metrics["acc1"] == 1
    assert knn_probe(*train, *(at(60), torch.tensor([0])), ks=[1]).metrics["acc1"] == 0
    found = knn_probe(*train, at(60), torch.tensor([0]), ks=[1], validation=held_out)
    assert found.metrics["acc1"] == 1


def test_single_rows_leave_nothing_to_choose_on() -> None:
    train = torch.eye(6), torch.arange(6)
    probe = linear_probe(*train, *train)
    assert probe.metrics["acc1"] == 1
    assert (probe.chosen, probe.sweep) == (100.0, ())
    assert "single training row" in probe.notes[0]
    nearest = knn_probe(*train, *train)
    assert (nearest.chosen, nearest.sweep, nearest.metrics["acc1"]) == (1, (), 1)
    assert "single training row" in nearest.notes[0]
    with pytest.raises(ValueError, match="no sweep"):
        plot_sweep(Figure(), probe)


def test_missing_convergence_is_a_note_not_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_MOST_STEPS", 1)
    train = clusters(200, 5, 0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe = linear_probe(*train, *train)
    assert "fits did not converge in 1 steps" in probe.notes[0]


def test_linear_probe_ignores_global_random_state() -> None:
    train, test = clusters(200, 5, 0.9), clusters(100, 5, 0.9, seed=1)
    first = linear_probe(*train, *test, seed=3)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    again = linear_probe(*train, *test, seed=3)
    assert first.sweep == again.sweep
    assert first.metrics == again.metrics
    assert any(linear_probe(*train, *test, seed=seed).sweep != first.sweep for seed in (4, 5))


def test_votes_by_hand() -> None:
    train = at(1, 10, 12, 40), torch.tensor([7, 3, 3, 5])
    test = at(0), torch.tensor([7])
    held_out = at(0.5), torch.tensor([7])
    answers = {}
    for k in (1, 2, 3, 4):
        answers[k] = knn_probe(
            torch.cat([train[0], at(180)]),  # the validation row joins the training rows
            torch.cat([train[1], torch.tensor([0])]),
            *test,
            ks=[k],
            validation=(at(179), torch.tensor([0])),
        ).predictions.item()
    # k = 2: a vote each, the nearest (7) decides; k = 3 and 4: two votes for 3
    assert answers == {1: 7, 2: 7, 3: 3, 4: 3}
    around = at(1, 2, 3, 4), torch.tensor([7, 3, 3, 7])  # two votes each; of the nearest, 7
    found = knn_probe(*around, *test, ks=[4], validation=(at(180), torch.tensor([7])))
    assert found.predictions.item() == 7
    swept = knn_probe(*train, *test, ks=(1, 2, 3, 50), validation=held_out)
    assert [(p.value, p.validation_acc1) for p in swept.sweep] == [(1, 1), (2, 1), (3, 0)]
    assert swept.chosen == 1
    with pytest.raises(ValueError, match=r"ks must be in 1 .. 4 .*got \[9\]"):
        knn_probe(*train, *test, ks=[9], validation=held_out)
    with pytest.raises(ValueError, match=r"got \[0, 1\]"):
        knn_probe(*train, *test, ks=[0, 1], validation=held_out)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_knn_equals_scikit_learn(k: int) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    features, labels = clusters(300, 4, 1.2)
    features = features * torch.linspace(0.5, 3, 300)[:, None]  # cosine does not see lengths
    test = clusters(200, 4, 1.2, seed=1)
    held_out = test[0][:50], test[1][:50]
    direct = KNeighborsClassifier(k, metric="cosine", weights="uniform")
    direct.fit(torch.cat([features, held_out[0]]).numpy(), torch.cat([labels, held_out[1]]).numpy())
    votes = torch.tensor(direct.predict_proba(test[0].numpy())).sort(descending=True).values
    clear = votes[:, 0] > votes[:, 1] + 1e-6  # where votes tie scikit-learn takes the first class
    probe = knn_probe(features, labels, *test, ks=[k], validation=held_out)
    expected = torch.tensor(direct.predict(test[0].numpy()))
    assert clear.sum() > 100
    assert torch.equal(probe.predictions[clear], expected[clear])


def test_validation_rows_leave_each_class_one() -> None:
    labels = torch.cat([torch.arange(1601), torch.arange(1601)])  # two rows each, as the emoji have
    chosen = validation_rows(labels, 0.1, seed=0)
    assert chosen.sum() == 320
    assert len(labels[~chosen].unique()) == 1601
    assert len(labels[chosen].unique()) == 320  # no class gives both
    assert chosen[:1601].any()
    assert chosen[1601:].any()
    assert not torch.equal(chosen, validation_rows(labels, 0.1, seed=1))

    uneven = torch.tensor([0] * 100 + [1] * 50 + [2] + [9])
    chosen = validation_rows(uneven, 0.2, seed=0)
    counts = torch.bincount(uneven[chosen], minlength=10)
    assert chosen.sum() == 30
    assert counts[0] in (19, 20, 21)
    assert counts[2] == counts[9] == 0

    few = torch.tensor([0, 1, 2, 3, 3])  # 0.9 of 5 rows, but only one can be spared
    assert few[validation_rows(few, 0.9, seed=0)].tolist() == [3]
    assert not validation_rows(torch.arange(5), 0.5, seed=0).any()
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="validation_share"):
            validation_rows(labels, share, seed=0)


def test_wrong_arguments_are_named() -> None:
    rows = torch.eye(4), torch.tensor([0, 0, 1, 1])
    for probe in (linear_probe, knn_probe):
        with pytest.raises(ValueError, match="test_features must be finite"):
            probe(*rows, rows[0] * torch.nan, rows[1])
        with pytest.raises(ValueError, match="test_features must be"):
            probe(*rows, torch.eye(3), torch.tensor([0, 0, 1]))
        with pytest.raises(ValueError, match=r"train_labels must be int64 \[4\]"):
            probe(rows[0], rows[1][:3], *rows)
        with pytest.raises(ValueError, match="test_labels must be 0 or more"):
            probe(*rows, rows[0], rows[1] - 1)
        with pytest.raises(ValueError, match="validation_features"):
            probe(*rows, *rows, validation=(torch.empty(0, 4), torch.empty(0, dtype=torch.int64)))
    with pytest.raises(ValueError, match="two classes"):
        linear_probe(rows[0], torch.zeros(4, dtype=torch.int64), *rows)
    with pytest.raises(ValueError, match="C must be above 0"):
        linear_probe(*rows, *rows, C=0.0)


def test_plot_marks_the_chosen_value() -> None:
    train, test = clusters(200, 5, 0.9), clusters(100, 5, 0.9, seed=1)
    for probe in (linear_probe(*train, *test), knn_probe(*train, *test)):
        figure = Figure(figsize=(6.4, 4.0))
        plot_sweep(figure, probe)
        (axes,) = figure.axes
        curve, mark = axes.lines
        assert list(curve.get_xdata()) == [point.value for point in probe.sweep]
        assert list(mark.get_xdata()) == [probe.chosen]
        assert axes.get_xscale() == "log"
        assert probe.setting in axes.get_xlabel()
        figure.canvas.draw()
