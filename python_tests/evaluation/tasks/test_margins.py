"""Margins within batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from cyclip_ext import reference
from cyclip_ext.evaluation import Margins, batch_margins, margin_metrics, plot_margins
from cyclip_ext.evaluation.tasks import margins

from .cases import LargestTensor, pairs, visible_texts


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


def test_one_batch_equals_the_statistics_of_the_losses() -> None:
    images, texts = (features.double() for features in pairs(50, 6))
    _, _, positive, row_hardest, col_hardest = reference.pair_statistics(images, texts, 1.0)
    result = batch_margins(images, texts, 50)
    expected = (positive - row_hardest).sort().values
    torch.testing.assert_close(result.image_to_text.sort().values, expected)
    expected = (positive - col_hardest).sort().values
    torch.testing.assert_close(result.text_to_image.sort().values, expected)


def test_batches_partition_the_shuffled_set() -> None:
    # Orthonormal pairs but for pair 0, whose text resembles its image less: its margin tells it.
    images, texts = torch.eye(10), torch.eye(10)
    texts[0] = torch.tensor([0.6] + [0.0] * 8 + [0.8])
    for seed in range(5):
        values = batch_margins(images, texts, 5, seed=seed).image_to_text
        assert len(values) == 10
        assert int((values < 0.7).sum()) in (1, 2)  # pair 0, and pair 9 where both are together
    values = batch_margins(images, texts, 4, repeats=3)
    assert len(values.image_to_text) == len(values.text_to_image) == 3 * 8  # 2 of 10 remain
    same = batch_margins(images, texts, 4, seed=1).image_to_text
    assert torch.equal(same, batch_margins(images, texts, 4, seed=1).image_to_text)
    orders = {
        tuple(batch_margins(images, texts, 5, seed=s).image_to_text.tolist()) for s in range(9)
    }
    assert len(orders) > 1


def test_margins_by_hand() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    result = batch_margins(images, texts, 2)
    # S = [[1, 0.6], [0, 0.8]]
    assert sorted(result.image_to_text.tolist()) == pytest.approx([0.4, 0.8])
    assert sorted(result.text_to_image.tolist()) == pytest.approx([0.2, 1.0])


def test_larger_batches_have_smaller_margins() -> None:
    images, texts = pairs(256, 8)
    medians = [
        margin_metrics(batch_margins(images, texts, size).image_to_text)["q50"]
        for size in (2, 16, 256)
    ]
    assert medians[0] > medians[1] > medians[2]


def test_equal_captions() -> None:
    images, texts = torch.eye(3), torch.eye(3)[[0, 0, 1]]
    tied = batch_margins(images[[0, 0, 1]], texts, 3)
    assert margin_metrics(tied.image_to_text)["share_positive"] == pytest.approx(1 / 3)
    apart = batch_margins(images[[0, 0, 1]], texts, 3, labels=torch.tensor([0, 0, 1]))
    assert apart.image_to_text.tolist() == pytest.approx([1, 1, 1])


def test_pairs_without_negatives_have_no_margin() -> None:
    images, texts = pairs(3, 4)
    with pytest.raises(ValueError, match="no pair has a negative"):
        batch_margins(images, texts, 3, labels=torch.zeros(3).long())
    labels = torch.tensor([0, 0, 0, 1])
    images, texts = pairs(4, 4)
    for seed in range(4):  # the batch without label 1 has no margin, the other one has two
        assert len(batch_margins(images, texts, 2, labels=labels, seed=seed).image_to_text) == 2


def test_rounding_is_no_success() -> None:
    images, texts = pairs(1, 300)
    collapsed = batch_margins(images.expand(50, -1), texts.expand(50, -1), 50)
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
    with pytest.raises(ValueError, match="margins is empty"):
        margin_metrics(values[:0])


def test_no_tensor_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(margins, "BLOCK", 32)
    n, d = 300, 8
    images, texts = pairs(n, d)
    with LargestTensor() as largest:
        batch_margins(images, texts, n)
    assert largest.elements == n * d


def test_wrong_arguments_are_named() -> None:
    images, texts = pairs(4, 3)
    for size in (1, 5):
        with pytest.raises(ValueError, match=rf"batch_size must be in 2 \.\.\. 4 .*got {size}"):
            batch_margins(images, texts, size)
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        batch_margins(images, texts, 2, repeats=0)
    with pytest.raises(ValueError, match="text_features must be finite"):
        batch_margins(images, texts * torch.nan, 2)
    for labels in (torch.arange(3), torch.full((4,), torch.nan), torch.arange(4).byte()):
        with pytest.raises(ValueError, match=r"labels must be int64 \[4\]"):
            batch_margins(images, texts, 2, labels=labels)
    with pytest.raises(ValueError, match="margins is empty"):
        plot_margins(Figure(), {})
    with pytest.raises(ValueError, match="got 4 and 3 rows"):
        batch_margins(images, texts[:3], 2)


def test_plot_has_both_directions_and_all_names(render: Any) -> None:
    images, texts = pairs(128, 6)
    named = {f"batch of {size}": batch_margins(images, texts, size) for size in (2, 8, 64)}
    figure = render(plot_margins, named)
    shown = visible_texts(figure)
    assert {"image to text", "text to image", "batch of 2", "batch of 64"} <= set(shown)
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    tie = torch.zeros(3, dtype=torch.float64)
    render(plot_margins, {"collapsed": Margins(tie, tie)})  # no width at all
