"""k-NN votes and their agreement with the text side."""

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn.functional import normalize

from cyclip_ext.evaluation import consistency_metrics, knn_predictions
from cyclip_ext.evaluation.tasks import consistency


def at(*angles: float) -> torch.Tensor:
    radians = torch.tensor(angles).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_majority_wins_and_the_nearest_breaks_ties() -> None:
    train, labels = at(1, 10, 12, 40), torch.tensor([7, 3, 3, 5])
    predictions = knn_predictions(at(0), train, labels, (1, 2, 3))
    # k = 2: one vote each, so the nearest decides
    assert {k: each.item() for k, each in predictions.items()} == {1: 7, 2: 7, 3: 3}
    # Labels by distance: 9, 4, 2, 2, 4. Two votes each for 4 and 2: 4 is nearer; 9 has one vote.
    train, labels = at(1, 2, 3, 4, 5), torch.tensor([9, 4, 2, 2, 4])
    assert knn_predictions(at(0), train, labels, (5,))[5].item() == 4


def random_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = normalize(torch.randn(83, 6, generator=generator), dim=-1)
    train = normalize(torch.randn(211, 6, generator=generator), dim=-1)
    return images, train, torch.randint(2, (211,), generator=generator)


def test_predictions_equal_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two classes and odd k: no vote can tie. On the sphere distance and cosine order alike. Blocks
    of a few images: none may be lost at their edges.
    """
    monkeypatch.setattr(consistency, "QUERIES", 7)
    monkeypatch.setattr(consistency, "VOTES", 100)
    images, train, labels = random_case()
    ks = (1, 3, 5, 11)
    predictions = knn_predictions(images, train, labels, ks)
    for k in ks:
        outside = KNeighborsClassifier(k).fit(train, labels)
        assert predictions[k].tolist() == outside.predict(images).tolist()


def test_consistency_measures_agreement_for_each_k() -> None:
    classes = at(0, 90)
    train, labels = at(5, 80, 100), torch.tensor([1, 1, 0])
    # Text: 0, 1, 1; nearest: 1, 1, 0; of all three neighbours 1 is most frequent.
    metrics = consistency_metrics(at(2, 85, 95), classes, train, labels, (1, 3))
    assert metrics == pytest.approx({"consistency@1": 1 / 3, "consistency@3": 2 / 3})


def test_wrong_arguments_are_named() -> None:
    images, train, labels = random_case()
    classes = train[:2]
    with pytest.raises(ValueError, match=r"1 .. 4 \(training images\), got 5"):
        consistency_metrics(images, classes, train[:4], labels[:4])
    with pytest.raises(ValueError, match="ks is empty"):
        knn_predictions(images, train, labels, ())
    for wrong in (labels[:3], labels.float(), labels.to(torch.uint8)):
        with pytest.raises(ValueError, match=r"train_labels must be int64 \[211\]"):
            knn_predictions(images, train, wrong)
    with pytest.raises(ValueError, match="query_features must be"):
        knn_predictions(images[0], train, labels)
    with pytest.raises(ValueError, match="image_features is empty"):
        consistency_metrics(images[:0], classes, train, labels)
    with pytest.raises(ValueError, match="image_features must be finite"):
        consistency_metrics(images / 0, classes, train, labels)
    with pytest.raises(ValueError, match="train_features must be finite"):
        consistency_metrics(images, classes, train / 0, labels)
