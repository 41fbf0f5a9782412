"""Winoground's scores against hand-computed values and brute force."""

import pytest
import torch
from cyclip_ext.evaluation.composition import CHANCE
from torch.nn.functional import normalize

from cyclip_ext.evaluation import Composed, compose, per_tag, quadruple_similarities


@pytest.mark.parametrize(
    ("similarity", "expected"),
    [
        ([[2, 1], [1, 2]], (1, 1, 1)),
        # Both pictures prefer their own caption; caption 0 prefers picture 1.
        ([[2, 1], [3, 4]], (1, 0, 0)),
        # Both captions prefer their own picture; picture 0 prefers caption 1.
        ([[2, 3], [1, 4]], (0, 1, 0)),
        ([[1, 2], [2, 1]], (0, 0, 0)),
        # Only the first picture and the first caption are right.
        ([[3, 1], [2, 1]], (0, 0, 0)),
        ([[1, 1], [1, 1]], (0, 0, 0)),  # collapsed towers
        ([[1, 1], [0, 1]], (0, 0, 0)),  # caption 1 ties, and picture 0
        ([[2, 1], [2, 3]], (1, 0, 0)),  # caption 0 ties
    ],
)
def test_by_hand(similarity: list[list[float]], expected: tuple[int, int, int]) -> None:
    """Wrong: text and image score are swapped, one of the two suffices, or a tie counts."""
    metrics = compose(torch.tensor([similarity], dtype=torch.float32)).metrics()
    assert (metrics["text_acc"], metrics["image_acc"], metrics["acc"]) == expected


def test_equals_brute_force_from_embeddings() -> None:
    rows = torch.randn(4, 300, 5, generator=torch.Generator().manual_seed(0))
    first, second, own, other = normalize(rows, dim=-1)
    similarity = quadruple_similarities(first, second, own, other)
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
def test_equal_pictures_or_captions_tie_to_the_last_bit(width: int) -> None:
    """Wrong: a product of matrices rounds equal rows differently, and a blind tower scores."""
    rows = torch.randn(3, 300, width, generator=torch.Generator().manual_seed(0))
    same, one, other = normalize(rows, dim=-1)
    assert compose(quadruple_similarities(same, same, one, other)).metrics()["image_acc"] == 0
    assert compose(quadruple_similarities(one, other, same, same)).metrics()["text_acc"] == 0


def test_chance() -> None:
    """Wrong: the levels the docs give are not those of a model that knows nothing."""
    noise = torch.rand(100_000, 2, 2, generator=torch.Generator().manual_seed(0))
    metrics = compose(noise).metrics()
    assert [metrics["text_acc"], metrics["image_acc"], metrics["acc"]] == pytest.approx(
        [CHANCE["text_acc"], CHANCE["image_acc"], CHANCE["group_acc"]], abs=0.01
    )


def test_per_tag() -> None:
    composed = Composed(torch.tensor([True, True, False]), torch.tensor([True, False, True]))
    relation, thing = per_tag(composed, ["thing", "relation", "thing"])
    assert (relation.tag, relation.count) == ("relation", 1)
    assert (relation.text_acc, relation.image_acc, relation.group_acc) == (1, 0, 0)
    assert (thing.count, thing.text_acc, thing.image_acc, thing.group_acc) == (2, 0.5, 1, 0.5)
    with pytest.raises(ValueError, match="tags has 1 entries for 3 quadruples"):
        per_tag(composed, ["thing"])


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"\[n, 2, 2\].*got \[4, 2, 3\]"):
        compose(torch.ones(4, 2, 3))
    with pytest.raises(ValueError, match=r"similarities must be finite, got .* in 1 of 2 rows"):
        compose(torch.tensor([[[1.0, torch.nan], [0, 0]], [[1, 0], [0, 1]]]))
    with pytest.raises(ValueError, match="no quadruples"):
        compose(torch.ones(0, 2, 2)).metrics()
    with pytest.raises(ValueError, match=r"one n and one d, got \[2, 3\], \[4, 3\]"):
        quadruple_similarities(*[torch.ones(4, 3)] * 3, torch.ones(2, 3))
