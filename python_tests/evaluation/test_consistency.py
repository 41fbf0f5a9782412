"""k-NN votes and their agreement with the text side."""

import pytest
import torch

from cyclip_ext.evaluation import knn_predict, text_image_consistency


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


def test_consistency_asks_for_agreement_not_for_truth() -> None:
    classes = at(0, 90)
    train, labels = at(5, 80, 100), torch.tensor([1, 1, 0])
    images = at(2, 85, 95)  # text: 0, 1, 1; nearest: 1, 1, 0
    assert text_image_consistency(images, classes, train, labels) == pytest.approx(1 / 3)
