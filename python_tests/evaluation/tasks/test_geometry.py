"""Alignment, uniformity, modality gap, and the spectrum."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from cyclip_ext.evaluation import (
    alignment,
    caption_geometry,
    cross_uniformity,
    cyclip_alignment,
    cyclip_uniformity,
    directions_for,
    effective_rank,
    modality_gap,
    plot_spectrum,
    prompt_geometry,
    singular_values,
    spectrum_metrics,
    uniformity,
)
from cyclip_ext.evaluation.tasks import geometry

from .cases import LargestTensor, pairs, unit, visible_texts


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
    images, texts = pairs(12, 5)
    own = list(range(12))
    expected = brute_force(images, texts, own, own, True)
    assert cyclip_uniformity(images, texts) == pytest.approx(expected, abs=1e-6)


def test_uniformity_equals_scipy() -> None:
    distance = pytest.importorskip("scipy.spatial.distance")
    rows = unit(40, 6)
    squared = torch.from_numpy(distance.pdist(rows.double().numpy(), "sqeuclidean"))
    assert uniformity(rows) == pytest.approx(squared.mul(-2).exp().mean().log().item(), abs=1e-6)


def test_alignment_and_uniformity_by_hand() -> None:
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


def test_both_alignments_agree() -> None:
    images, texts = pairs(20, 7)
    expected = 2 - 2 * cyclip_alignment(images, texts)
    assert alignment(images, texts) == pytest.approx(expected)


def test_modality_gap_by_hand() -> None:
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
    gap = modality_gap(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    assert gap["modality_gap"] == pytest.approx(2**0.5)
    assert math.isnan(gap["cosine_image"])
    with pytest.raises(ValueError, match="pair of different samples"):
        uniformity(torch.ones(1, 2))
    with pytest.raises(ValueError, match="pair of different samples"):
        cross_uniformity(
            torch.ones(3, 2), torch.ones(1, 2), torch.zeros(3).long(), torch.zeros(1).long()
        )


def test_captions_of_one_image_are_not_negatives() -> None:
    images, texts = torch.eye(3)[[0, 0, 1]], torch.eye(3)[[0, 2, 1]]
    labels = torch.tensor([0, 0, 1])
    measures = caption_geometry(images, texts, labels)
    assert measures["uniformity_image"] == pytest.approx(-4)
    assert caption_geometry(images, texts)["uniformity_image"] > -4
    assert measures["uniformity_cross"] == pytest.approx(-4)
    assert measures["alignment"] == pytest.approx(2 / 3)


def test_prompts_of_other_classes_are_the_negatives() -> None:
    classes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    labels = torch.tensor([0, 0, 1])
    measures = prompt_geometry(classes[labels], classes, labels)
    assert measures["alignment"] == 0
    assert measures["cyclip_alignment"] == pytest.approx(1)
    # Cosines: 0 and -1 for each image of class 0, 0 and 0 for that of class 1.
    assert measures["cyclip_uniformity"] == pytest.approx(math.log((2 * (1 + math.e) + 2) / 6))
    assert measures["uniformity_text"] == pytest.approx(
        math.log((2 * math.exp(-4) + math.exp(-8)) / 3)
    )
    # As the authors of CyCLIP count: every pair of different images, of one class too.
    theirs = caption_geometry(classes[labels], classes[labels])["cyclip_uniformity"]
    assert theirs == pytest.approx(math.log((2 * math.exp(-1) + 4) / 6))


def test_length_does_not_matter() -> None:
    images, texts = pairs(15, 4)
    assert caption_geometry(3 * images, 0.1 * texts) == pytest.approx(
        caption_geometry(images, texts), abs=1e-6
    )


def test_no_tensor_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "BLOCK", 32)
    n, d = 300, 8
    images, texts = pairs(n, d)
    with LargestTensor() as largest:
        caption_geometry(images, texts)
    assert largest.elements == n * d


def test_lengths_of_any_size_do_not_count() -> None:
    rows = torch.eye(3, dtype=torch.float64)
    scales = torch.tensor([1e-200, 1.0, 1e200], dtype=torch.float64)
    assert uniformity(rows * scales[:, None]) == pytest.approx(uniformity(rows))


def test_wrong_arguments_are_named() -> None:
    good, labels = torch.ones(3, 2), torch.arange(3)
    with pytest.raises(ValueError, match="text_features must be finite"):
        caption_geometry(good, good * torch.nan)
    with pytest.raises(ValueError, match="features must be finite"):
        uniformity(good * torch.inf)
    with pytest.raises(ValueError, match="image_features has 1 of 3 rows of zeros"):
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


@pytest.mark.parametrize(("n", "d"), [(40, 7), (7, 40), (1, 5)])
@pytest.mark.parametrize("centred", [True, False])
def test_singular_values_equal_numpy(n: int, d: int, centred: bool) -> None:
    rows = unit(n, d).double()
    rows = rows / rows.norm(dim=1, keepdim=True)
    matrix = rows.numpy() - (rows.numpy().mean(0) if centred else 0)
    expected = np.linalg.svd(matrix, compute_uv=False) / n**0.5
    values = singular_values(unit(n, d), centred=centred)
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-9, atol=1e-14)


def test_squares_are_the_variance() -> None:
    images, _ = pairs(50, 6)
    rows = images.double()
    total = singular_values(images).square().sum().item()
    assert total == pytest.approx(1 - rows.mean(0).square().sum().item(), abs=1e-6)
    assert singular_values(images, centred=False).square().sum().item() == pytest.approx(1)


def test_effective_rank_of_known_matrices() -> None:
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    assert effective_rank(torch.tensor([5.0, 0.0])) == pytest.approx(1)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(math.exp(entropy))
    line = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert effective_rank(singular_values(line)) == pytest.approx(1)
    assert effective_rank(singular_values(torch.eye(5), centred=False)) == pytest.approx(5)


def test_collapsed_towers_have_rank_zero() -> None:
    collapsed = unit(1, 30).expand(100, 30)
    values = singular_values(collapsed)
    assert not values.any()
    assert effective_rank(values) == 0
    assert directions_for(values, 0.9) == 0


def test_directions_for_a_share() -> None:
    values = torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=torch.float64)  # squares 9, 4, 1
    assert directions_for(values, 9 / 14) == 1
    assert directions_for(values, 9.01 / 14) == 2
    assert directions_for(values, 0.99) == 3
    assert directions_for(values, 1.0) == 3
    for count in range(1, 10):  # of ten equal ones: rounding must not ask for one more
        assert (
            directions_for(torch.full((10,), 3.0, dtype=torch.float64).sqrt(), count / 10) == count
        )
    for share in (0.0, 1.1):
        with pytest.raises(ValueError, match="share must be in"):
            directions_for(values, share)


def test_spectrum_of_both_towers() -> None:
    images = torch.eye(4)[[0, 1, 0, 1]]  # two points: one direction
    texts = torch.eye(4)  # a simplex: three equal directions
    metrics = spectrum_metrics(images, texts)
    assert metrics["effective_rank_image"] == pytest.approx(1)
    assert metrics["effective_rank_text"] == pytest.approx(3)
    assert (metrics["directions_90_image"], metrics["directions_90_text"]) == (1, 3)
    assert metrics["directions_99_text"] == 3
    with pytest.raises(ValueError, match="image_features must be finite"):
        spectrum_metrics(images * torch.nan, texts)


def test_plot_of_the_spectrum_names_curves_and_omits_zeros(render: Any) -> None:
    spectra = {"images": singular_values(torch.eye(4)), "texts": singular_values(unit(50, 20))}
    figure = render(plot_spectrum, spectra)
    texts = visible_texts(figure)
    assert "images (effective rank 3.0)" in texts
    assert "principal direction" in texts
    lines = figure.axes[0].get_lines()
    assert len(np.asarray(lines[0].get_ydata())) == 3
    assert lines[0].get_color() != lines[1].get_color()
    with pytest.raises(ValueError, match="spectra is empty"):
        plot_spectrum(Figure(), {})
