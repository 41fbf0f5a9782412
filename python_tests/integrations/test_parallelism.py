"""Gradients of all pairs through FSDP2, HSDP and accelerate are those of one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from losses.ranks import World
from losses.shares import Case, TwoTowers, features, rows_of, whole_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from cyclip_ext import CyCLIPLoss

ROWS = (4, 3, 4, 2)  # of each rank


def case(ranks: int) -> Case:
    return Case("CyCLIPLoss", ROWS[:ranks], frozen=("bias",))


def gradients(rank: int, of: Case, call: nn.Module, model: TwoTowers) -> dict[str, Tensor]:
    """Return the gradients of the parameters that are trained, from the pairs of all ranks."""
    image, text = (t[rows_of(rank, of)] for t in features(of))
    CyCLIPLoss(group="world")(*call(image, text)).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in found.items()}


def check(world: World, results: list[dict[str, Tensor]]) -> None:
    _, expected = whole_model(case(world.size))
    assert len(results[0]) == 5  # of each tower a weight and a bias, and the temperature
    for actual in results:
        for name, gradient in actual.items():
            torch.testing.assert_close(gradient.squeeze(), expected[name], rtol=1e-9, atol=1e-12)


def _sharded(rank: int, of: Case, shape: tuple[int, ...]) -> dict[str, Tensor]:
    names = ("replicate", "shard")[-len(shape) :]
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    model = TwoTowers(of)
    for name in "log_scale", "bias":  # FSDP2 takes no scalars
        parameter = getattr(model, name)
        setattr(model, name, nn.Parameter(parameter.detach().reshape(1), parameter.requires_grad))
    for module in model.image, model.text, model:
        fully_shard(module, mesh=mesh)
    return gradients(rank, of, model, model)


def test_fsdp2(world: World) -> None:
    check(world, world.results(_sharded, case(2), (2,)))


@pytest.fixture
def four_ranks() -> Iterator[World]:
    with World(4) as ranks:
        yield ranks


def test_hsdp(four_ranks: World) -> None:
    """Two replicas of a model that is sharded over two ranks."""
    check(four_ranks, four_ranks.results(_sharded, case(4), (2, 2)))


def _accelerated(rank: int, of: Case) -> dict[str, Tensor]:
    import accelerate

    accelerator = accelerate.Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    model = TwoTowers(of)
    return gradients(rank, of, accelerator.prepare(model), model)


def test_accelerate(world: World) -> None:
    pytest.importorskip("accelerate")
    check(world, world.results(_accelerated, case(2)))


def test_documented_usage_of_accelerate(run_documented: Callable[..., dict[str, Any]]) -> None:
    of = case(2)
    model = TwoTowers(of)
    run_documented(
        "accelerate",
        accelerate=pytest.importorskip("accelerate"),
        CyCLIPLoss=CyCLIPLoss,
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        loader=DataLoader(TensorDataset(*features(of)), 4),
    )
    assert not torch.equal(model.image.weight, TwoTowers(of).image.weight)
