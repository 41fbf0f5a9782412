"""The example of a LightningModule trains on the pairs of all ranks."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from losses.ranks import World
from torch import Tensor

from cyclip_ext import CyCLIPLoss

pytest.importorskip("lightning")

import lightning
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, Subset

EXAMPLE = Path(__file__).parents[2] / "examples" / "lightning_module.py"


def fit(folder: Path, rank: int, ranks: int, **options: Any) -> dict[str, Tensor]:
    """Return the weights after an epoch in float64, and the last terms of the loss."""
    example = runpy.run_path(str(EXAMPLE))
    torch.manual_seed(0)
    model = example["DualEncoder"](torch.nn.Linear(32, 16), torch.nn.Linear(24, 16))
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        precision="64-true",
        log_every_n_steps=1,
        default_root_dir=folder,
        enable_checkpointing=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # it would shuffle
        **options,
    )
    pairs = example["pairs"](64).dataset
    trainer.fit(model, DataLoader(Subset(pairs, range(rank, len(pairs), ranks)), 64 // ranks))
    return {**model.state_dict(), **trainer.logged_metrics}


def _fit_on_a_rank(rank: int, folder: Path) -> dict[str, Tensor]:
    return fit(folder, rank, 2, devices=2, strategy=DDPStrategy(process_group_backend="gloo"))


def test_two_ranks_train_as_one_with_both_batches(world: World, tmp_path: Path) -> None:
    expected = fit(tmp_path, 0, 1, devices=1)
    assert {"contrastive_loss", "in_modal_loss", "cross_modal_loss"} < expected.keys()
    for actual in world.results(_fit_on_a_rank, tmp_path):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)


def test_documented_module_trains(run_documented: Callable[..., dict[str, Any]]) -> None:
    values = run_documented("Lightning", lightning=lightning, torch=torch, CyCLIPLoss=CyCLIPLoss)
    module = values["DualEncoder"](torch.nn.Linear(32, 16), torch.nn.Linear(24, 16))
    module.training_step([torch.randn(4, 32), torch.randn(4, 24)], 0).backward()
    assert module.log_scale.grad != 0
