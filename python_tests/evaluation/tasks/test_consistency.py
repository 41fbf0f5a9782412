"""k-NN votes and their agreement with the text side."""

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from cyclip_ext.evaluation import consistency_metrics, knn_predictions
from cyclip_ext.evaluation.tasks import consistency

from .cases import at, unit


def test_majority_wins_and_the_nearest_breaks_ties() -> None:
    train, labels = at(1, 10, 12, 40), torch.tensor([7, 3, 3, 5])
    predictions = knn_predictions(at(0), train, labels, (1, 2, 3))
    # k = 2: one vote each, so the nearest decides
    assert {k: each.item() for k, each in predictions.items()} == {1: 7, 2: 7, 3: 3}
    # Labels by distance: 9, 4, 2, 2, 4. Two votes each for 4 and 2: 4 is nearer; 9 has one vote.
    train, labels = at(1, 2, 3, 4, 5), torch.tensor([9, 4, 2, 2, 4])
    assert knn_predictions(at(0), train, labels, (5,))[5].item() == 4


def test_predictions_equal_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two classes and odd k: no vote can tie. On the sphere distance and cosine order alike. Blocks
    of a few images: none may be lost at their edges.
    """
    monkeypatch.setattr(consistency, "QUERIES", 7)
    monkeypatch.setattr(consistency, "VOTES", 100)
    images, train = unit(83, 6), unit(211, 6, seed=1)
    labels = torch.randint(2, (211,), generator=torch.Generator().manual_seed(0))
    ks = (1, 3, 5, 11)
    predictions = knn_predictions(images, train, labels, ks)
    for k in ks:
        expected = KNeighborsClassifier(k).fit(train, labels)
        assert predictions[k].tolist() == expected.predict(images).tolist()


def test_consistency_measures_agreement_for_each_k() -> None:
    classes = at(0, 90)
    train, labels = at(5, 80, 100), torch.tensor([1, 1, 0])
    # Text: 0, 1, 1; nearest: 1, 1, 0; of all three neighbours 1 is most frequent.
    metrics = consistency_metrics(at(2, 85, 95), classes, train, labels, (1, 3))
    assert metrics == pytest.approx({"consistency@1": 1 / 3, "consistency@3": 2 / 3})


def test_more_neighbours_than_training_images_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"1 .. 4 \(training images\), got 5"):
        consistency_metrics(unit(9, 6), unit(2, 6), unit(4, 6), torch.arange(4) % 2)
