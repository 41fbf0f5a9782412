"""The objectives that are known to be worse: values, gradients, and several ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from losses.ranks import World
from reproduction.ablations import ABLATIONS, make_ablation, mean_negative
from torch import Tensor

from cyclip_ext import reference
from cyclip_ext.training.config import LossConfig, TrainConfig
from cyclip_ext.training.objective import Objective

CONFIG = TrainConfig(loss=LossConfig(in_modal=0.5, cross_modal=0, margin=0.3))


def features(n: int, d: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    x, y = (torch.randn(n, d, dtype=torch.float64, generator=generator) for _ in range(2))
    return x, y


def loss_and_gradients(objective: Objective, x: Tensor, y: Tensor) -> tuple[Any, ...]:
    scale = torch.tensor(9.0, dtype=torch.float64)
    terms = objective.loss(x, y, scale, None, output_dict=True)
    losses = {name: value for name, value in terms.items() if name.endswith("_loss")}
    assert set(losses) == set(objective.weights)
    total = sum(losses.values())
    total.backward()
    return total.item(), x.grad, y.grad


@pytest.mark.parametrize("n", [1, 2, 7])
def test_mean_of_negatives_is_that_of_all_other_pairs(n: int) -> None:
    x, y = features(n)
    x[0] = 0  # a zero row counts, with cosines of 0
    sim = reference.similarity(x, y)
    negatives = [sim[i, j] for i in range(n) for j in range(n) if i != j]
    expected = sum(negatives) / len(negatives) if negatives else torch.zeros(()).double()
    torch.testing.assert_close(mean_negative(x, y), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ABLATIONS)
def test_terms_match_the_formulas(name: str) -> None:
    x, y = (rows.requires_grad_() for rows in features(6))
    total, _, _ = loss_and_gradients(make_ablation(name, CONFIG, 6), x, y)
    cycle = reference.cyclip_loss(x, y, torch.tensor(9.0), in_modal=0.5, cross_modal=0)
    margin, negatives = 0.3 * reference.margin_loss(x, y), 0.3 * mean_negative(x, y)
    expected = {
        "square": reference.square_loss(x, y),
        "both-sided": cycle + margin + negatives,
        "negative-only": cycle + negatives,
    }[name]
    assert total == pytest.approx(expected.item(), rel=1e-12)


def on_one_rank(rank: int, name: str, counts: list[int]) -> tuple[Any, ...]:
    x, y = (rows.split(counts)[rank].clone().requires_grad_() for rows in features(sum(counts)))
    return loss_and_gradients(make_ablation(name, CONFIG, sum(counts), dist.group.WORLD), x, y)


def test_ranks_have_the_loss_and_gradient_of_the_whole_batch() -> None:
    """Gradients are those of the whole batch after DDP's division by the number of ranks."""
    counts = [3, 1, 4]
    with World(3) as world:
        outcomes = {name: world.results(on_one_rank, name, counts) for name in ABLATIONS}
    for name, ranks in outcomes.items():
        x, y = (rows.requires_grad_() for rows in features(sum(counts)))
        loss, *whole = loss_and_gradients(make_ablation(name, CONFIG, sum(counts)), x, y)
        for rank, (own_loss, *own) in enumerate(ranks):
            assert own_loss == pytest.approx(loss, rel=1e-12), name
            expected = [3 * gradient.split(counts)[rank] for gradient in whole]
            torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-12)
