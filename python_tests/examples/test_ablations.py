"""The objectives that are known to be worse: their values, gradients, and shares of a group."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.distributed as dist
from losses.ranks import World
from torch import Tensor, nn

from cyclip_ext import reference
from cyclip_ext.training.ablations import mean_negative
from cyclip_ext.training.config import LossConfig, TrainConfig
from cyclip_ext.training.objective import make_loss, term_weights

CONFIGS = {
    "square": LossConfig(loss="square"),
    "both": LossConfig(margin=0.3, margin_pairs="both"),
    "negative": LossConfig(in_modal=0, cross_modal=0, margin=0.3, margin_pairs="negative"),
}


def features(n: int, d: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    x, y = (torch.randn(n, d, dtype=torch.float64, generator=generator) for _ in range(2))
    return x, y


@pytest.mark.parametrize("n", [1, 2, 7])
def test_mean_of_negatives_is_that_of_all_other_pairs(n: int) -> None:
    """Wrong: positives are among them, or the mean is over N^2."""
    x, y = features(n)
    x[0] = 0  # a zero row counts, with cosines of 0
    sim = reference.similarity(x, y)
    negatives = [sim[i, j] for i in range(n) for j in range(n) if i != j]
    expected = sum(negatives) / len(negatives) if negatives else torch.zeros(()).double()
    torch.testing.assert_close(mean_negative(x, y, None), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", CONFIGS)
def test_terms_are_the_formulas(name: str) -> None:
    """Wrong: a weight counts twice, or the one side is added where only the other was asked for."""
    config = CONFIGS[name]
    x, y = features(6)
    scale = torch.tensor(9.0, dtype=torch.float64)
    terms = make_loss(config, 6, statistics=False)(x, y, scale, None, output_dict=True)
    negatives = mean_negative(x, y, None)
    expected = {
        "square": reference.square_loss(x, y),
        "both": reference.cyclip_loss(x, y, scale, margin=0.3) + 0.3 * negatives,
        "negative": reference.contrastive_loss(x, y, scale) + 0.3 * negatives,
    }[name]
    torch.testing.assert_close(sum(terms.values()), expected, rtol=1e-12, atol=0)
    assert set(terms) == set(term_weights(config))


def _share(rank: int, config: LossConfig, counts: list[int]) -> tuple[Any, ...]:
    x, y = features(sum(counts))
    x, y = (rows.split(counts)[rank].clone().requires_grad_() for rows in (x, y))
    return _gradients(make_loss(config, sum(counts), dist.group.WORLD), x, y)


def _gradients(loss: nn.Module, x: Tensor, y: Tensor) -> tuple[Any, ...]:
    terms = loss(x, y, torch.tensor(9.0, dtype=torch.float64), None, output_dict=True)
    total = sum(value for name, value in terms.items() if name.endswith("_loss"))
    total.backward()
    return total.item(), x.grad, y.grad


@pytest.mark.parametrize("exchange", ["gather", "replicate"])
@pytest.mark.parametrize("name", CONFIGS)
def test_group_has_the_loss_of_the_whole(name: str, exchange: str) -> None:
    """Wrong: a rank averages over its own pairs, or the gradient lacks the factor for DDP."""
    counts = [3, 1, 4]
    x, y = (rows.requires_grad_() for rows in features(sum(counts)))
    config = dataclasses.replace(CONFIGS[name], exchange=exchange)
    loss, grad_x, grad_y = _gradients(make_loss(config, sum(counts)), x, y)
    with World(3) as world:
        outcomes = world.results(_share, config, counts)
    for rank, (own_loss, own_x, own_y) in enumerate(outcomes):
        assert own_loss == pytest.approx(loss, rel=1e-12)
        for own, whole in ((own_x, grad_x), (own_y, grad_y)):
            torch.testing.assert_close(own, 3 * whole.split(counts)[rank], rtol=1e-9, atol=1e-12)


def test_views_have_nothing_to_do_with_regression() -> None:
    with pytest.raises(ValueError, match="--inmodal contrasts views"):
        TrainConfig(loss=LossConfig(loss="square", inmodal=True))
