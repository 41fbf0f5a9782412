"""k-NN votes and their agreement with the text side."""

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn.functional import normalize

from cyclip_ext.evaluation import (
    consistency,
    consistency_metrics,
    knn_predict,
    knn_predictions,
    text_image_consistency,
)


def at(*angles: float) -> torch.Tensor:
    radians = torch.tensor(angles).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_majority_and_ties() -> None:
    train, labels = at(1, 10, 12, 40), torch.tensor([7, 3, 3, 5])
    query = at(0)
    assert knn_predict(query, train, labels, 1).item() == 7
    assert knn_predict(query, train, labels, 2).item() == 7  # one vote each: the nearest decides
    assert knn_predict(query, train, labels, 3).item() == 3
    with pytest.raises(ValueError, match="got 5"):
        knn_predict(query, train, labels, 5)
    with pytest.raises(ValueError, match="train_features must be finite"):
        knn_predict(query, train * torch.nan, labels, 1)


def test_nearest_of_the_tied_labels_decides_not_the_nearest_of_all() -> None:
    # Labels by distance: 9, 4, 2, 2, 4. Two votes each for 4 and 2: 4 is nearer; 9 has one vote.
    train, labels = at(1, 2, 3, 4, 5), torch.tensor([9, 4, 2, 2, 4])
    assert knn_predict(at(0), train, labels, 5).item() == 4


def random_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = normalize(torch.randn(83, 6, generator=generator), dim=-1)
    train = normalize(torch.randn(211, 6, generator=generator), dim=-1)
    return images, train, torch.randint(2, (211,), generator=generator)


def test_predictions_equal_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong: another neighbourhood or another vote, for one of several k of one search.

    Two classes and odd k: no vote can tie. On the sphere distance and cosine order alike. Blocks
    of a few pictures: none may be lost at their edges.
    """
    monkeypatch.setattr(consistency, "QUERIES", 7)
    monkeypatch.setattr(consistency, "VOTES", 100)
    images, train, labels = random_case()
    ks = (1, 3, 5, 11)
    predictions = knn_predictions(images, train, labels, ks)
    for k in ks:
        outside = KNeighborsClassifier(k).fit(train, labels)
        assert predictions[k].tolist() == outside.predict(images).tolist()
        assert torch.equal(predictions[k], knn_predict(images, train, labels, k))


def test_consistency_asks_for_agreement_not_for_truth() -> None:
    classes = at(0, 90)
    train, labels = at(5, 80, 100), torch.tensor([1, 1, 0])
    images = at(2, 85, 95)  # text: 0, 1, 1; nearest: 1, 1, 0
    assert text_image_consistency(images, classes, train, labels) == pytest.approx(1 / 3)


def test_several_k_at_once() -> None:
    """Wrong: all k share one vote. Text: 0, 1, 1; of all three neighbours 1 is most frequent."""
    classes = at(0, 90)
    train, labels = at(5, 80, 100), torch.tensor([1, 1, 0])
    metrics = consistency_metrics(at(2, 85, 95), classes, train, labels, (1, 3))
    assert metrics == pytest.approx({"consistency@1": 1 / 3, "consistency@3": 2 / 3})


def test_wrong_arguments_are_named() -> None:
    images, train, labels = random_case()
    classes = train[:2]
    with pytest.raises(ValueError, match=r"1 .. 4 \(training pictures\), got 5"):
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
