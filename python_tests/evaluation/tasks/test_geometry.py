"""Alignment, uniformity, modality gap, and the spectrum."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from losses.inputs import LargestTensor
from torch import Tensor

from cyclip_ext.evaluation import Embeddings, caption_geometry, prompt_geometry, run_tasks
from cyclip_ext.evaluation.embeddings import unit_rows
from cyclip_ext.evaluation.tasks import geometry
from cyclip_ext.evaluation.tasks.geometry import (
    directions_for,
    effective_rank,
    log_mean_exp,
    plot_spectrum,
    singular_values,
)

from .cases import pairs, unit, visible_texts

OPPOSITE = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])


def measure(images: Tensor, texts: Tensor) -> dict[str, float]:
    """Measure pairs of which each is a sample of its own."""
    return caption_geometry(images, texts, torch.arange(len(images)))


@pytest.mark.parametrize("block", [7, 2048])
@pytest.mark.parametrize("slope", [4.0, -1.0])
def test_mean_over_negatives_equals_a_double_loop(
    monkeypatch: pytest.MonkeyPatch, block: int, slope: float
) -> None:
    monkeypatch.setattr(geometry, "BLOCK", block)
    images, texts = unit_rows(unit(23, 5)), unit_rows(unit(31, 5, seed=1))
    generator = torch.Generator().manual_seed(2)
    image_labels, text_labels = (torch.randint(4, (n,), generator=generator) for n in (23, 31))
    terms = [
        math.exp(slope * float(x @ y))
        for x, a in zip(images, image_labels, strict=True)
        for y, b in zip(texts, text_labels, strict=True)
        if a != b
    ]
    found = log_mean_exp(images, texts, image_labels, text_labels, slope=slope)
    assert found == pytest.approx(math.log(sum(terms) / len(terms)))


@pytest.mark.parametrize(
    ("images", "texts", "expected"),
    [
        (
            torch.eye(4),
            torch.eye(4),
            {"alignment": 0, "cyclip_alignment": 1, "uniformity_image": -4, "cyclip_uniformity": 0},
        ),
        (torch.eye(4), -torch.eye(4), {"alignment": 4, "cyclip_alignment": -1}),
        (torch.eye(4), torch.eye(4).roll(1, 0), {"alignment": 2, "cyclip_alignment": 0}),
        (
            torch.ones(4, 3),
            torch.ones(4, 3),
            {
                "uniformity_image": 0,
                "uniformity_text": 0,
                "uniformity_cross": 0,
                "cyclip_uniformity": -1,
                "modality_gap": 0,
                "cosine_text": 1,
            },
        ),
        (OPPOSITE, OPPOSITE, {"uniformity_image": -8}),
        (
            torch.eye(2),
            torch.tensor([[1.0, 0.0], [0.0, -1.0]]),  # means (0.5, 0.5) and (0.5, -0.5)
            {"modality_gap": 1, "centroid_cosine": 0, "cosine_image": 0},
        ),
        (OPPOSITE, torch.ones(2, 2), {"centroid_cosine": math.nan}),
    ],
)
def test_measures_by_hand(images: Tensor, texts: Tensor, expected: dict[str, float]) -> None:
    found = measure(images, texts)
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_captions_of_one_image_are_not_negatives() -> None:
    images, texts = torch.eye(3)[[0, 0, 1]], torch.eye(3)[[0, 2, 1]]
    measures = caption_geometry(images, texts, torch.tensor([0, 0, 1]))
    assert measures["uniformity_image"] == pytest.approx(-4)
    assert measure(images, texts)["uniformity_image"] > -4
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
    # The authors of CyCLIP count every pair of different images, of one class as well.
    theirs = measure(classes[labels], classes[labels])["cyclip_uniformity"]
    assert theirs == pytest.approx(math.log((2 * math.exp(-1) + 4) / 6))


def test_length_does_not_matter() -> None:
    images, texts = (rows.double() for rows in pairs(15, 4))
    scales = torch.tensor([1e-200, 1.0, 1e200], dtype=torch.float64).repeat(5)[:, None]
    assert measure(images * scales, 0.1 * texts) == pytest.approx(measure(images, texts))


def test_memory_does_not_grow_with_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "BLOCK", 32)
    n, d = 300, 8
    with LargestTensor() as largest:
        measure(*pairs(n, d))
    assert largest.elements == n * d


@pytest.mark.parametrize(("n", "d"), [(40, 7), (7, 40), (1, 5)])
def test_singular_values_equal_numpy(n: int, d: int) -> None:
    rows = unit_rows(unit(n, d)).numpy()
    expected = np.linalg.svd(rows - rows.mean(0), compute_uv=False) / n**0.5
    np.testing.assert_allclose(singular_values(unit(n, d)), expected, rtol=1e-9, atol=1e-14)


def test_effective_rank_of_known_spectra() -> None:
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    assert effective_rank(torch.tensor([5.0, 0.0])) == pytest.approx(1)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(math.exp(entropy))
    assert effective_rank(singular_values(OPPOSITE)) == pytest.approx(1)


def test_collapsed_towers_have_rank_zero() -> None:
    values = singular_values(unit(1, 30).expand(100, 30))
    assert not values.any()
    assert effective_rank(values) == 0
    assert directions_for(values, 0.9) == 0


def test_directions_for_a_share() -> None:
    values = torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=torch.float64)  # squares 9, 4, 1
    assert [directions_for(values, s) for s in (9 / 14, 9.01 / 14, 0.99, 1.0)] == [1, 2, 3, 3]
    equal = torch.full((10,), 3.0, dtype=torch.float64).sqrt()
    # Rounding must not add a direction.
    assert [directions_for(equal, count / 10) for count in range(1, 10)] == [*range(1, 10)]


def test_task_measures_the_spectrum_of_each_tower() -> None:
    images = torch.eye(4)[[0, 1, 0, 1]]  # two points: one direction
    texts = torch.eye(4)  # a simplex: three equal directions
    (found,) = run_tasks(Embeddings(images, text_features=texts), tasks=("geometry",))
    assert found.values["effective_rank_image"] == pytest.approx(1)
    assert found.values["effective_rank_text"] == pytest.approx(3)
    assert found.values["directions_90_image"] == found.values["directions_99_image"] == 1
    assert found.values["directions_90_text"] == found.values["directions_99_text"] == 3


def test_plot_of_the_spectrum_names_curves_and_omits_zeros(render: Any) -> None:
    spectra = {"images": singular_values(torch.eye(4)), "texts": singular_values(unit(50, 20))}
    figure = render(plot_spectrum, spectra)
    texts = visible_texts(figure)
    assert "images (effective rank 3.0)" in texts
    assert "principal direction" in texts
    lines = figure.axes[0].get_lines()
    assert len(np.asarray(lines[0].get_ydata())) == 3
    assert lines[0].get_color() != lines[1].get_color()
