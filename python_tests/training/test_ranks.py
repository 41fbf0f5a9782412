"""Several ranks train the same model as one rank, to the bit if the sums are the same."""

from __future__ import annotations

import math
import os
import signal
import socket
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from losses.ranks import World
from torch import Tensor

from cyclip_ext.data import emoji_available
from cyclip_ext.models import CreatedModel, create_model
from cyclip_ext.training.checkpoint import load_checkpoint
from cyclip_ext.training.config import TrainConfig
from cyclip_ext.training.data import open_data
from cyclip_ext.training.ranks import Ranks, join_ranks
from cyclip_ext.training.trainer import Trainer

from .parts import create_tiny, settings, with_loss


def train(
    rank: int, world: int, port: int, config: TrainConfig, folder: Path, dtype: Any, steps: int
) -> None:
    """Take the first steps of a run as one of its ranks, and leave checkpoints/last.pt."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with join_ranks(torch.device("cpu")) as ranks:
        torch.manual_seed(config.run.seed)
        created = created_model(config)
        created.model.to(dtype)
        visual: Any = created.model.visual
        visual.register_forward_pre_hook(lambda _, images: (images[0].to(dtype),))
        trainer = Trainer(config, open_data(config.data), created, folder, ranks)
        take_step = trainer._take_step

        def stopped(*arguments: Any) -> None:
            if trainer.step == steps - 1:
                signal.raise_signal(signal.SIGTERM)
            take_step(*arguments)

        trainer._take_step = stopped  # type: ignore[method-assign]
        assert not trainer.fit()
        assert trainer.step == steps


def created_model(config: TrainConfig) -> CreatedModel:
    return create_tiny() if config.run.model == "tiny" else create_model(config.run.model)


def weights_after(
    steps: int, config: TrainConfig, folder: Path, world: int, dtype: Any = torch.float32
) -> dict[str, Tensor]:
    """Return the parameters, without running statistics, that `world` ranks leave."""
    (folder / "checkpoints").mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(train, (world, port, config, folder, dtype, steps), nprocs=world)
    model = load_checkpoint(folder / "checkpoints/last.pt")["model"]
    return {name: value for name, value in model.items() if name in PARAMETERS}


PARAMETERS = frozenset(name for name, _ in create_model("mini").model.named_parameters())


@pytest.fixture
def default_run() -> TrainConfig:
    """Return the settings of the default run, in float32."""
    if not emoji_available():
        pytest.skip("the default data are not installed (extra `demo`)")
    config = TrainConfig()
    return replace(config, run=replace(config.run, precision="fp32", device="cpu"))


@pytest.mark.slow
def test_two_ranks_give_the_bits_of_one_rank_with_two_parts(
    tmp_path: Path, default_run: TrainConfig
) -> None:
    """The same sums in the same order: losses of the whole batch, gradients of two halves."""
    two_parts = replace(default_run, data=replace(default_run.data, accum_freq=2))
    one = weights_after(15, two_parts, tmp_path / "one", 1)
    two = weights_after(15, default_run, tmp_path / "two", 2)
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


@pytest.mark.slow
def test_two_ranks_give_the_weights_of_one_with_the_doubled_batch(
    tmp_path: Path, default_run: TrainConfig
) -> None:
    """With batch norm over both, in float64.

    AdamW makes a full step of a gradient that is zero but for rounding, so runs in float32 part
    wherever a sum is taken in another order (docs/training.md).
    """
    double = replace(default_run, data=replace(default_run.data, batch_size=256))
    one = weights_after(3, double, tmp_path / "one", 1, torch.float64)
    synchronized = replace(default_run, run=replace(default_run.run, use_bn_sync=True))
    two = weights_after(3, synchronized, tmp_path / "two", 2, torch.float64)
    for name, expected in one.items():
        worst = (two[name] - expected).abs().max() / expected.abs().max()
        assert worst < 1e-5, name


@pytest.mark.slow
def test_two_ranks_with_a_locked_tower_and_masks_match_one_with_the_doubled_batch(
    tmp_path: Path,
) -> None:
    """Labels span the ranks: most groups of 64 pairs have members on both."""
    config = with_loss(settings(), mask_duplicates=True)
    config = config.updated({"model": "tiny", "pretrained": "x", "lock_image": True})
    half = config.updated({"batch_size": 32})
    torch.manual_seed(config.run.seed)
    start = created_model(config).model.double().state_dict()
    one = weights_after(4, config, tmp_path / "one", 1, torch.float64)
    two = weights_after(4, half, tmp_path / "two", 2, torch.float64)
    for name, expected in one.items():
        worst = (two[name] - expected).abs().max()
        assert worst <= 1e-6 * expected.abs().max(), name
        assert torch.equal(two[name], start[name]) == name.startswith("visual."), name


def steps_with_an_infinite_loss(rank: int, folder: Path, precision: str) -> list[Any]:
    """Take three steps; in the second one the loss of rank 1 is infinite, and no gradient is."""
    group = dist.group.WORLD
    assert group is not None
    config = settings(epochs=1)
    config = replace(
        config,
        optim=replace(config.optim, skip_nonfinite=True),
        run=replace(config.run, precision=precision),
    )
    torch.manual_seed(0)
    trainer = Trainer(
        config, open_data(config.data), create_tiny(), folder, Ranks(rank, 2, group, group)
    )
    loss, step = trainer.stepper.loss, 0

    def spoilt(*arguments: Any, **options: Any) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = loss(*arguments, **options)
        terms["contrastive_loss"] = terms["contrastive_loss"] + (
            math.inf if rank == step == 1 else 0
        )
        return terms

    trainer.stepper.loss = spoilt  # type: ignore[assignment]
    finite = []
    for batch in islice(trainer.loader.epoch(0), 3):
        assert batch is not None
        trainer.stepper.launch(trainer.feeder(batch), step, 3)
        result = trainer.stepper.settle()
        assert result is not None
        finite.append(result.wait())
        step += 1
    return [finite, [parameter.detach() for parameter in trainer.model.parameters()]]


def test_ranks_agree_on_a_step_that_is_finite_on_one_of_them(tmp_path: Path) -> None:
    """Otherwise weights differ, and the ranks wait for each other forever."""
    with World(2) as world:
        for precision in "fp32", "amp_fp16":
            (finite, ours), (others, theirs) = world.results(
                steps_with_an_infinite_loss, tmp_path, precision
            )
            assert finite == others == [True, False, True]
            assert all(map(torch.equal, ours, theirs))
