"""The four corners of two pairs."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from losses.inputs import LargestTensor

from cyclip_ext.evaluation.tasks.corners import (
    Corners,
    corner_metrics,
    corner_positions,
    plot_corners,
    plot_quadrilaterals,
    sample_corners,
)
from cyclip_ext.functional import cycle_consistency

from .cases import pairs, visible_texts


def metrics_of(corners: Corners) -> dict[str, float]:
    return {metric.key: value for metric, value in corner_metrics(corners).items()}


def test_all_couples_of_a_small_dataset_by_hand() -> None:
    images = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    corners = sample_corners(images, texts)
    assert corners.pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    for values, expected in (
        (corners.image_image, [0.6, 0.0, 0.8]),
        (corners.text_text, [0.0, 0.8, 0.6]),
        (corners.image_text, [0.0, 0.8, 0.96]),
        (corners.text_image, [0.6, 0.0, 1.0]),
        (corners.gaps["cross"], [-0.6, 0.8, -0.04]),
        (corners.gaps["in-modal"], [0.6, -0.8, 0.2]),
    ):
        assert values.tolist() == pytest.approx(expected, abs=1e-6)


def test_rms_is_penalized_by_the_loss() -> None:
    n = 30
    images, texts = pairs(n, 6)
    metrics = metrics_of(sample_corners(images, texts))
    scale = n**2 / (n * (n - 1))
    for name, weights in (("in_modal_gap_rms", (1.0, 0.0)), ("cross_gap_rms", (0.0, 1.0))):
        loss = cycle_consistency(
            images.double(),
            texts.double(),
            in_modal=weights[0],
            cross_modal=weights[1],
            reduction="mean",
            backend="reference",
        )
        assert metrics[name] ** 2 == pytest.approx(loss.item() * scale)


def test_sample_is_of_different_pairs_and_reproducible() -> None:
    images, texts = pairs(400, 6)
    corners = sample_corners(images, texts, count=5000, seed=3)
    first, second = corners.pairs.T
    assert len(first) == 5000
    assert bool((first < second).all())
    assert int(second.max()) == 399
    same = sample_corners(images, texts, count=5000, seed=3)
    assert torch.equal(corners.pairs, same.pairs)
    assert not torch.equal(corners.pairs, sample_corners(images, texts, count=5000, seed=4).pairs)
    # An estimate of the value over all 79,800 couples.
    every = metrics_of(sample_corners(images, texts, count=10**6))
    assert metrics_of(corners)["cross_gap_rms"] == pytest.approx(every["cross_gap_rms"], rel=0.05)


def test_couples_are_uniform() -> None:
    images, texts = pairs(5, 3)
    counts = np.zeros((5, 5))
    for seed in range(400):
        for i, j in sample_corners(images, texts, count=9, seed=seed).pairs.tolist():
            counts[i, j] += 1
    assert len({*map(tuple, sample_corners(images, texts, count=10).pairs.tolist())}) == 10
    drawn_counts = counts[np.triu_indices(5, 1)]
    assert drawn_counts.sum() == 3600
    assert abs(drawn_counts / 360 - 1).max() < 0.2  # 0.2 is four deviations


def test_quantiles_are_of_absolute_values() -> None:
    gap = torch.arange(-100, 101, dtype=torch.float64) / 100
    zero = torch.zeros_like(gap)
    metrics = metrics_of(Corners(torch.zeros(201, 2, dtype=torch.long), gap, zero, zero, zero))
    assert metrics["in_modal_gap_q50"] == pytest.approx(0.5)
    assert metrics["in_modal_gap_q99"] == pytest.approx(0.99)
    assert metrics["in_modal_gap_rms"] == pytest.approx(gap.square().mean().item() ** 0.5)
    assert metrics["cross_gap_q99"] == 0


def test_positions_preserve_the_distances_of_plane_points() -> None:
    plane = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 1.0], [0.5, 2.0]], dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(0)))[0]
    points = plane @ basis[:2].double() + 5
    places = corner_positions(points)
    torch.testing.assert_close(torch.cdist(places, places), torch.cdist(plane, plane))
    assert corner_positions(points[:1]).tolist() == [[0, 0]]
    on_a_line = corner_positions(torch.tensor([[1.0], [2.0]]))
    assert on_a_line[:, 0].diff().abs().item() == pytest.approx(1)


def test_memory_does_not_grow_with_all_couples() -> None:
    images, texts = pairs(1000, 8)
    with LargestTensor() as largest:
        corner_metrics(sample_corners(images, texts, count=2000))
    assert largest.elements <= 2000 * 8


def test_plot_of_gaps_has_their_rms_and_one_scale(render: Any) -> None:
    images, texts = pairs(200, 6)
    corners = sample_corners(images, texts)
    figure = render(plot_corners, corners)
    shown = visible_texts(figure)
    metrics = metrics_of(corners)
    assert f"in-modal: rms gap {metrics['in_modal_gap_rms']:.3f}" in shown
    assert f"cross-modal: rms gap {metrics['cross_gap_rms']:.3f}" in shown
    assert "couples of pairs" in shown
    in_modal, cross, _ = figure.axes
    assert in_modal.collections[0].get_clim() == cross.collections[0].get_clim()
    render(plot_corners, sample_corners(images[:2], images[:2]))  # one couple, no gap at all


def test_edges_of_quadrilaterals_have_their_cosines(render: Any) -> None:
    images, texts = pairs(6, 5, seed=4)
    figure = render(plot_quadrilaterals, images, texts, [(0, 1), (4, 2)])
    first, second = figure.axes
    corners = (images[4], texts[4], images[2], texts[2])
    places = [np.array(line.get_xydata())[0] for line in second.get_lines()[6:]]
    found = set()
    for label in second.texts[:6]:
        place = np.array(label.get_position())
        for a, b in itertools.combinations(range(4), 2):
            detour = np.linalg.norm(place - places[a]) + np.linalg.norm(place - places[b])
            if detour < np.linalg.norm(places[a] - places[b]) * (1 + 1e-6):
                assert label.get_text() == f"{float(corners[a] @ corners[b]):.2f}"
                found.add((a, b))
    assert len(found) == 6
    assert first.get_xlim() == second.get_xlim()  # one scale
    render(plot_quadrilaterals, images[:2], images[:2], [(0, 1)])  # corners on top of each other
