"""Singular values, effective rank and their drawing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from cyclip_ext.analysis import (
    directions_for,
    effective_rank,
    plot_spectrum,
    singular_values,
    spectrum_metrics,
)

from .common import drawn, pairs, unit, visible_texts


@pytest.mark.parametrize(("n", "d"), [(40, 7), (7, 40), (1, 5)])
@pytest.mark.parametrize("centred", [True, False])
def test_singular_values_equal_numpy(n: int, d: int, centred: bool) -> None:
    """Wrong: rows and columns exchanged, the mean taken over the wrong axis, or not scaled."""
    rows = unit(n, d).double()
    rows = rows / rows.norm(dim=1, keepdim=True)
    matrix = rows.numpy() - (rows.numpy().mean(0) if centred else 0)
    expected = np.linalg.svd(matrix, compute_uv=False) / n**0.5
    values = singular_values(unit(n, d), centred=centred)
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-9, atol=1e-14)


def test_squares_are_the_variance() -> None:
    """Wrong: values that grow with N and cannot be compared between sets."""
    images, _ = pairs(50, 6)
    rows = images.double()
    total = singular_values(images).square().sum().item()
    assert total == pytest.approx(1 - rows.mean(0).square().sum().item(), abs=1e-6)
    assert singular_values(images, centred=False).square().sum().item() == pytest.approx(1)


def test_effective_rank_of_known_matrices() -> None:
    """Wrong: squares in place of values, a logarithm of another base, 0 log 0."""
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    assert effective_rank(torch.tensor([5.0, 0.0])) == pytest.approx(1)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(math.exp(entropy))
    line = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert effective_rank(singular_values(line)) == pytest.approx(1)
    assert effective_rank(singular_values(torch.eye(5), centred=False)) == pytest.approx(5)


def test_collapsed_towers_have_rank_zero() -> None:
    """Wrong: rounding of the subtraction of the mean is taken for directions."""
    collapsed = unit(1, 30).expand(100, 30)
    values = singular_values(collapsed)
    assert not values.any()
    assert effective_rank(values) == 0
    assert directions_for(values, 0.9) == 0


def test_directions_for_a_share() -> None:
    """Wrong: one too many or too few, or the share of values in place of squares."""
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


def test_metrics_of_both_towers() -> None:
    """Wrong: the towers exchanged."""
    images = torch.eye(4)[[0, 1, 0, 1]]  # two points: one direction
    texts = torch.eye(4)  # a simplex: three equal directions
    metrics = spectrum_metrics(images, texts)
    assert metrics["effective_rank_image"] == pytest.approx(1)
    assert metrics["effective_rank_text"] == pytest.approx(3)
    assert (metrics["directions_90_image"], metrics["directions_90_text"]) == (1, 3)
    assert metrics["directions_99_text"] == 3
    with pytest.raises(ValueError, match="image_features must be finite"):
        spectrum_metrics(images * torch.nan, texts)


def test_plot_names_curves_and_leaves_zeros_out() -> None:
    """Wrong: curves nobody can tell apart, or a logarithm of zero."""
    spectra = {"images": singular_values(torch.eye(4)), "texts": singular_values(unit(50, 20))}
    figure = drawn(plot_spectrum, spectra)
    texts = visible_texts(figure)
    assert "images (effective rank 3.0)" in texts
    assert "principal direction" in texts
    lines = figure.axes[0].get_lines()
    assert len(np.asarray(lines[0].get_ydata())) == 3
    assert lines[0].get_color() != lines[1].get_color()
    with pytest.raises(ValueError, match="spectra is empty"):
        plot_spectrum(Figure(), {})
