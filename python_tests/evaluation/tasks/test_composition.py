"""Winoground's scores against hand-computed values and brute force."""

import pytest
import torch
from torch.nn.functional import normalize

from cyclip_ext.evaluation import Composed, compose, per_tag, quadruple_similarities
from cyclip_ext.evaluation.tasks.composition import CHANCE


@pytest.mark.parametrize(
    ("similarity", "expected"),
    [
        ([[2, 1], [1, 2]], (1, 1, 1)),
        # Both images prefer their own caption; caption 0 prefers image 1.
        ([[2, 1], [3, 4]], (1, 0, 0)),
        # Both captions prefer their own image; image 0 prefers caption 1.
        ([[2, 3], [1, 4]], (0, 1, 0)),
        ([[1, 2], [2, 1]], (0, 0, 0)),
        # Only the first image and the first caption are right.
        ([[3, 1], [2, 1]], (0, 0, 0)),
        ([[1, 1], [1, 1]], (0, 0, 0)),  # collapsed towers
        ([[1, 1], [0, 1]], (0, 0, 0)),  # caption 1 ties, and image 0
        ([[2, 1], [2, 3]], (1, 0, 0)),  # caption 0 ties
    ],
)
def test_scores_by_hand(similarity: list[list[float]], expected: tuple[int, int, int]) -> None:
    metrics = compose(torch.tensor([similarity], dtype=torch.float32)).metrics()
    assert (metrics["text_acc"], metrics["image_acc"], metrics["acc"]) == expected


def test_scores_equal_brute_force() -> None:
    rows = torch.randn(4, 300, 5, generator=torch.Generator().manual_seed(0))
    first, second, own, other = normalize(rows, dim=-1)
    similarity = quadruple_similarities(
        torch.stack([first, second], dim=1), torch.stack([own, other], dim=1)
    )
    text = image = group = 0
    for i0, i1, c0, c1 in zip(first, second, own, other, strict=True):
        text_hit = bool(c0 @ i0 > c1 @ i0 and c1 @ i1 > c0 @ i1)
        image_hit = bool(c0 @ i0 > c0 @ i1 and c1 @ i1 > c1 @ i0)
        text, image, group = text + text_hit, image + image_hit, group + (text_hit and image_hit)
    assert compose(similarity).metrics() == {
        "text_acc": text / 300,
        "image_acc": image / 300,
        "acc": group / 300,
    }


@pytest.mark.parametrize("width", [129, 777])
def test_equal_images_or_captions_tie_to_the_last_bit(width: int) -> None:
    rows = torch.randn(3, 300, width, generator=torch.Generator().manual_seed(0))
    same, one, other = normalize(rows, dim=-1)
    equal, different = torch.stack([same, same], dim=1), torch.stack([one, other], dim=1)
    assert compose(quadruple_similarities(equal, different)).metrics()["image_acc"] == 0
    assert compose(quadruple_similarities(different, equal)).metrics()["text_acc"] == 0


def test_random_similarities_reach_chance() -> None:
    noise = torch.rand(100_000, 2, 2, generator=torch.Generator().manual_seed(0))
    assert compose(noise).metrics() == pytest.approx(CHANCE, abs=0.01)


def test_scores_are_grouped_by_tag() -> None:
    composed = Composed(torch.tensor([True, True, False]), torch.tensor([True, False, True]))
    found = per_tag(composed, ["thing", "relation", "thing"])
    assert {tag: len(own) for tag, own in found.items()} == {"relation": 1, "thing": 2}
    assert found["relation"].metrics() == {"text_acc": 1, "image_acc": 0, "acc": 0}
    assert found["thing"].metrics() == {"text_acc": 0.5, "image_acc": 1, "acc": 0.5}
    with pytest.raises(ValueError, match="tags has 1 entries for 3 quadruples"):
        per_tag(composed, ["thing"])


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"\[n, 2, 2\].*got \[4, 2, 3\]"):
        compose(torch.ones(4, 2, 3))
    with pytest.raises(ValueError, match=r"similarities must be finite, got .* in 1 of 2 rows"):
        compose(torch.tensor([[[1.0, torch.nan], [0, 0]], [[1, 0], [0, 1]]]))
    with pytest.raises(ValueError, match="no quadruples"):
        compose(torch.ones(0, 2, 2)).metrics()
    with pytest.raises(ValueError, match=r"one n and one d, got \[4, 2, 3\] and \[2, 2, 3\]"):
        quadruple_similarities(torch.ones(4, 2, 3), torch.ones(2, 2, 3))
