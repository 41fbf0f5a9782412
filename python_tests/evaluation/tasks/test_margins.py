"""Margins within batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from losses.inputs import LargestTensor
from torch import Tensor

from cyclip_ext.evaluation import batch_margins, margin_metrics
from cyclip_ext.evaluation.tasks import margins
from cyclip_ext.evaluation.tasks.margins import Margins, plot_margins

from .cases import pairs, visible_texts


def alone(images: Tensor, texts: Tensor, batch_size: int, seed: int = 0) -> Margins:
    """Return margins of pairs of which each is a negative of all others."""
    return batch_margins(images, texts, batch_size, torch.arange(len(images)), seed=seed)


def brute_force(
    images: Tensor, texts: Tensor, labels: list[int]
) -> tuple[list[float], list[float]]:
    """Return the margins of one batch in both directions, of pairs with a negative."""
    similarity = images.double() @ texts.double().T
    to_text, to_image = [], []
    for i, own in enumerate(labels):
        others = [j for j, other in enumerate(labels) if other != own]
        if others:
            positive = float(similarity[i, i])
            to_text.append(positive - max(float(similarity[i, j]) for j in others))
            to_image.append(positive - max(float(similarity[j, i]) for j in others))
    return to_text, to_image


@pytest.mark.parametrize("block", [7, 2048])
def test_one_batch_equals_a_double_loop(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(margins, "BLOCK", block)
    images, texts = pairs(20, 4)
    labels = torch.tensor([0] * 3 + list(range(1, 18)))
    result = batch_margins(images, texts, 20, labels=labels)
    for values, expected in zip(
        (result.image_to_text, result.text_to_image),
        brute_force(images, texts, labels.tolist()),
        strict=True,
    ):
        assert sorted(values.tolist()) == pytest.approx(sorted(expected), abs=1e-6)


def test_batches_partition_the_shuffled_dataset() -> None:
    # Pairs are orthonormal except for pair 0, which is recognized by its smaller margin.
    images, texts = torch.eye(10), torch.eye(10)
    texts[0] = torch.tensor([0.6] + [0.0] * 8 + [0.8])
    orders = set()
    for seed in range(9):
        values = alone(images, texts, 5, seed).image_to_text
        assert len(values) == 10
        assert int((values < 0.7).sum()) in (1, 2)  # pair 0, and pair 9 if they are in one batch
        assert torch.equal(values, alone(images, texts, 5, seed).image_to_text)
        orders.add(tuple(values.tolist()))
    assert len(orders) > 1
    rest = alone(images, texts, 4)
    assert len(rest.image_to_text) == len(rest.text_to_image) == 8  # 2 of 10 remain


def test_pairs_without_negatives_have_no_margin() -> None:
    images, texts = pairs(3, 4)
    with pytest.raises(ValueError, match="no pair has a negative"):
        batch_margins(images, texts, 3, labels=torch.zeros(3).long())
    labels = torch.tensor([0, 0, 0, 1])
    images, texts = pairs(4, 4)
    for seed in range(4):  # the batch without label 1 has no margin, the other one has two
        assert len(batch_margins(images, texts, 2, labels=labels, seed=seed).image_to_text) == 2


def test_margins_of_rounding_are_ties() -> None:
    images, texts = pairs(1, 300)
    collapsed = alone(images.expand(50, -1), texts.expand(50, -1), 50)
    assert margin_metrics(collapsed.image_to_text)["share_positive"] == 0
    last_bit = torch.tensor([2.0**-53, 0.1], dtype=torch.float64)
    assert margin_metrics(last_bit)["share_positive"] == 0.5


def test_quantiles_equal_torch() -> None:
    values = torch.randn(101 * 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    metrics = margin_metrics(values)
    for q in (5, 25, 50, 75, 95):
        assert metrics[f"q{q}"] == pytest.approx(torch.quantile(values, q / 100).item())
    assert metrics["mean"] == pytest.approx(values.mean().item())
    assert metrics["share_positive"] == pytest.approx((values > 0).double().mean().item())
    assert margin_metrics(torch.tensor([0.25]))["q95"] == 0.25


def test_memory_does_not_grow_with_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(margins, "BLOCK", 32)
    n, d = 300, 8
    images, texts = pairs(n, d)
    with LargestTensor() as largest:
        alone(images, texts, n)
    assert largest.elements == n * d


@pytest.mark.parametrize("size", [1, 5])
def test_batches_of_no_negative_or_too_many_pairs_are_rejected(size: int) -> None:
    with pytest.raises(ValueError, match=rf"batch_size must be in 2 \.\.\. 4 .*got {size}"):
        alone(*pairs(4, 3), size)


def test_plot_has_both_directions_and_all_names(render: Any) -> None:
    images, texts = pairs(128, 6)
    named = {f"batch of {size}": alone(images, texts, size) for size in (2, 8, 64)}
    figure = render(plot_margins, named)
    shown = visible_texts(figure)
    assert {"image to text", "text to image", "batch of 2", "batch of 64"} <= set(shown)
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    tie = torch.zeros(3, dtype=torch.float64)
    render(plot_margins, {"collapsed": Margins(tie, tie)})  # no width at all
