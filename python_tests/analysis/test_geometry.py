"""Alignment, uniformity and the modality gap."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cyclip_ext.analysis import (
    alignment,
    caption_geometry,
    cross_uniformity,
    cyclip_alignment,
    cyclip_uniformity,
    geometry,
    modality_gap,
    prompt_geometry,
    uniformity,
)

from .common import LargestTensor, pairs, unit


def brute_force(rows: Tensor, cols: Tensor, rl: list[int], cl: list[int], cyclip: bool) -> float:
    terms = []
    for x, a in zip(rows.double(), rl, strict=True):
        for y, b in zip(cols.double(), cl, strict=True):
            if a != b:
                power = -float(x @ y) if cyclip else -2 * float((x - y).square().sum())
                terms.append(math.exp(power))
    return math.log(sum(terms) / len(terms))


@pytest.mark.parametrize("block", [7, 2048])
def test_uniformity_equals_a_double_loop(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Wrong: a pair left out or counted twice at the edge of a block, labels not heeded."""
    monkeypatch.setattr(geometry, "BLOCK", block)
    images, texts = unit(23, 5), unit(31, 5, seed=1)
    generator = torch.Generator().manual_seed(2)
    il, tl = (torch.randint(4, (n,), generator=generator) for n in (23, 31))
    expected = brute_force(images, texts, il.tolist(), tl.tolist(), False)
    assert cross_uniformity(images, texts, il, tl) == pytest.approx(expected, abs=1e-6)
    expected = brute_force(images, texts, il.tolist(), tl.tolist(), True)
    assert cyclip_uniformity(images, texts, il, tl) == pytest.approx(expected, abs=1e-6)
    expected = brute_force(images, images, il.tolist(), il.tolist(), False)
    assert uniformity(images, il) == pytest.approx(expected, abs=1e-6)


def test_without_labels_each_row_is_its_own_sample() -> None:
    """Wrong: the positives counted among the negatives."""
    images, texts = pairs(12, 5)
    own = list(range(12))
    expected = brute_force(images, texts, own, own, True)
    assert cyclip_uniformity(images, texts) == pytest.approx(expected, abs=1e-6)


def test_uniformity_equals_scipy() -> None:
    """Wrong: another kernel width or another set of pairs than Wang and Isola's."""
    distance = pytest.importorskip("scipy.spatial.distance")
    rows = unit(40, 6)
    squared = torch.from_numpy(distance.pdist(rows.double().numpy(), "sqeuclidean"))
    assert uniformity(rows) == pytest.approx(squared.mul(-2).exp().mean().log().item(), abs=1e-6)


def test_values_known_by_hand() -> None:
    """Wrong: a sign or a factor. Orthonormal rows lie at squared distance 2, cosine 0."""
    eye, same = torch.eye(4), torch.ones(4, 3)
    assert alignment(eye, eye) == 0
    assert alignment(eye, -eye) == 4
    assert cyclip_alignment(eye, -eye) == -1
    assert alignment(eye, eye.roll(1, 0)) == 2
    assert uniformity(eye) == pytest.approx(-4)
    assert cyclip_uniformity(eye, eye) == pytest.approx(0)
    assert uniformity(same) == pytest.approx(0, abs=1e-12)
    assert cyclip_uniformity(same, same) == pytest.approx(-1)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert uniformity(opposite) == pytest.approx(-8)


def test_the_two_alignments_say_the_same() -> None:
    """Wrong: one of them is over other pairs. |x - y|^2 = 2 - 2 <x, y> for unit vectors."""
    images, texts = pairs(20, 7)
    expected = 2 - 2 * cyclip_alignment(images, texts)
    assert alignment(images, texts) == pytest.approx(expected)


def test_modality_gap_by_hand() -> None:
    """Wrong: the distance of pairs instead of that of the means, a pair of a row with itself."""
    images, texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    gap = modality_gap(images, texts)
    assert gap["modality_gap"] == pytest.approx(1)  # (0.5, 0.5) and (0.5, -0.5)
    assert gap["centroid_cosine"] == pytest.approx(0)
    assert gap["cosine_image"] == pytest.approx(0)  # the diagonal would make it 0.5
    same = torch.ones(3, 2)
    assert modality_gap(same, same)["modality_gap"] == 0
    assert modality_gap(same, same)["cosine_text"] == pytest.approx(1)
    narrow = torch.tensor([[1.0, 0.0]])
    assert modality_gap(narrow, images)["centroid_cosine"] == pytest.approx(0.5**0.5)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert math.isnan(modality_gap(opposite, same)["centroid_cosine"])


def test_one_row_has_a_gap_and_no_mean_cosine() -> None:
    """Wrong: division by zero, or a number where there is no pair."""
    gap = modality_gap(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    assert gap["modality_gap"] == pytest.approx(2**0.5)
    assert math.isnan(gap["cosine_image"])
    with pytest.raises(ValueError, match="pair of different samples"):
        uniformity(torch.ones(1, 2))
    with pytest.raises(ValueError, match="pair of different samples"):
        cross_uniformity(
            torch.ones(3, 2), torch.ones(1, 2), torch.zeros(3).long(), torch.zeros(1).long()
        )


def test_captions_of_one_picture_are_no_negatives() -> None:
    """Wrong: the same picture, twice in the rows, counted as a negative of itself."""
    images, texts = torch.eye(3)[[0, 0, 1]], torch.eye(3)[[0, 2, 1]]
    labels = torch.tensor([0, 0, 1])
    measures = caption_geometry(images, texts, labels)
    assert measures["uniformity_image"] == pytest.approx(-4)
    assert caption_geometry(images, texts)["uniformity_image"] > -4
    assert measures["uniformity_cross"] == pytest.approx(-4)
    assert measures["alignment"] == pytest.approx(2 / 3)


def test_prompts_of_other_classes_are_the_negatives() -> None:
    """Wrong: a class weighted by its pictures, or the prompt of the own class as a negative."""
    classes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    labels = torch.tensor([0, 0, 1])
    measures = prompt_geometry(classes[labels], classes, labels)
    assert measures["alignment"] == 0
    assert measures["cyclip_alignment"] == pytest.approx(1)
    # Cosines: 0 and -1 for each picture of class 0, 0 and 0 for that of class 1.
    assert measures["cyclip_uniformity"] == pytest.approx(math.log((2 * (1 + math.e) + 2) / 6))
    assert measures["uniformity_text"] == pytest.approx(
        math.log((2 * math.exp(-4) + math.exp(-8)) / 3)
    )
    # As the authors of CyCLIP count: every pair of different pictures, of one class too.
    theirs = caption_geometry(classes[labels], classes[labels])["cyclip_uniformity"]
    assert theirs == pytest.approx(math.log((2 * math.exp(-1) + 4) / 6))


def test_length_does_not_matter() -> None:
    """Wrong: embeddings stored without normalization give other numbers."""
    images, texts = pairs(15, 4)
    assert caption_geometry(3 * images, 0.1 * texts) == pytest.approx(
        caption_geometry(images, texts), abs=1e-6
    )


def test_no_tensor_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong: memory grows as N^2 and a large set does not fit."""
    monkeypatch.setattr(geometry, "BLOCK", 32)
    n, d = 300, 8
    images, texts = pairs(n, d)
    with LargestTensor() as largest:
        caption_geometry(images, texts)
    assert largest.elements == n * d


def test_lengths_of_any_size_do_not_count() -> None:
    """Wrong: squares that overflow or vanish, so that all rows are equal or zero."""
    rows = torch.eye(3, dtype=torch.float64)
    scales = torch.tensor([1e-200, 1.0, 1e200], dtype=torch.float64)
    assert uniformity(rows * scales[:, None]) == pytest.approx(uniformity(rows))


def test_wrong_arguments_are_named() -> None:
    """Wrong: NaN passes for a result, or a user cannot see which argument to mend."""
    good, labels = torch.ones(3, 2), torch.arange(3)
    with pytest.raises(ValueError, match="text_features must be finite"):
        caption_geometry(good, good * torch.nan)
    with pytest.raises(ValueError, match="features must be finite"):
        uniformity(good * torch.inf)
    with pytest.raises(ValueError, match="image_features has 1 rows of zeros"):
        alignment(torch.eye(3)[:, :2], good)
    with pytest.raises(ValueError, match="got 3 and 2 rows"):
        caption_geometry(good, good[:2])
    with pytest.raises(ValueError, match=r"same width d, got \[3, 2\] and \[3, 4\]"):
        modality_gap(good, torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"not empty, got shape \[0, 2\]"):
        uniformity(good[:0])
    with pytest.raises(ValueError, match=r"labels must be int64 \[3\]"):
        uniformity(good, labels[:2])
    with pytest.raises(ValueError, match=r"labels must be int64 \[3\], .* got torch.uint8"):
        prompt_geometry(good, good, labels.byte())  # bytes would be taken for a mask
    with pytest.raises(ValueError, match="both be given"):
        cyclip_uniformity(good, good, labels)
    with pytest.raises(ValueError, match=r"labels must be in 0 \.\.\. 1"):
        prompt_geometry(good, good[:2], labels)
