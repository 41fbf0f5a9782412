"""Winoground's scores against hand-computed values and brute force."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cyclip_ext.evaluation import Embeddings, run_tasks
from cyclip_ext.evaluation.tasks.composition import CHANCE, compose

from .cases import unit


def scores(images: Tensor, captions: Tensor) -> list[float]:
    scored: list[float] = compose(images, captions).double().mean(0).tolist()
    return scored


@pytest.mark.parametrize(
    ("similarity", "expected"),
    [
        ([[2, 1], [1, 2]], [1, 1, 1]),
        # Both images prefer their own caption; caption 0 prefers image 1.
        ([[2, 1], [3, 4]], [1, 0, 0]),
        # Both captions prefer their own image; image 0 prefers caption 1.
        ([[2, 3], [1, 4]], [0, 1, 0]),
        ([[1, 2], [2, 1]], [0, 0, 0]),
        # Only the first image and the first caption are right.
        ([[3, 1], [2, 1]], [0, 0, 0]),
        ([[1, 1], [1, 1]], [0, 0, 0]),  # collapsed towers
        ([[1, 1], [0, 1]], [0, 0, 0]),  # caption 1 ties, and image 0
        ([[2, 1], [2, 3]], [1, 0, 0]),  # caption 0 ties
    ],
)
def test_scores_by_hand(similarity: list[list[float]], expected: list[float]) -> None:
    images = torch.tensor([similarity], dtype=torch.float32)
    assert scores(images, torch.eye(2)[None]) == expected


@pytest.mark.parametrize("width", [129, 777])
def test_equal_images_or_captions_tie_to_the_last_bit(width: int) -> None:
    same, one, other = normalize(unit(3, 300, width), dim=-1)
    equal, different = torch.stack([same, same], dim=1), torch.stack([one, other], dim=1)
    assert scores(equal, different)[1] == 0
    assert scores(different, equal)[0] == 0


def test_random_similarities_reach_chance() -> None:
    noise = torch.rand(100_000, 2, 2, generator=torch.Generator().manual_seed(0))
    assert scores(noise, torch.eye(2).expand_as(noise)) == pytest.approx(CHANCE, abs=0.01)


def test_quadruples_have_one_task_with_a_table_by_tag() -> None:
    images = unit(8, 8)
    captions = images[[0, 1, 3, 2, 4, 5, 6, 7]]  # the second quadruple is swapped
    data = Embeddings(images, text_features=captions, quadruple_tags=("x", "", "x", ""))
    (found,) = run_tasks(data)
    assert found.values == {"text_acc": 0.75, "image_acc": 0.75, "acc": 0.75}
    assert found.tables[0].rows == (("none", 2, 50, 50, 50), ("x", 2, 100, 100, 100))
    assert "25%, 25% and 16.7%" in found.explanation
    untagged = Embeddings(images, text_features=captions, quadruple_tags=("",) * 4)
    assert run_tasks(untagged)[0].tables == ()
