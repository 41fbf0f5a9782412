"""A run from pretrained weights whose image or text tower is locked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cyclip_ext.models.locking import Tower, train_unlocked
from cyclip_ext.training import run
from cyclip_ext.training.__main__ import main
from cyclip_ext.training.checkpoint import load_checkpoint
from cyclip_ext.training.config import TrainConfig

from .parts import create_tiny, settings, tiny_trainer

TOWERS: tuple[Tower, ...] = ("image", "text")


def locked(tower: Tower, accum_freq: int = 1, **optim: float) -> TrainConfig:
    config = settings(epochs=1, **optim)
    data = replace(config.data, batch_size=64 // accum_freq, accum_freq=accum_freq)
    own = replace(config.run, pretrained="x.pt", evaluate_frequency=5, **{f"lock_{tower}": True})
    return replace(config, data=data, run=own)


def tower_of(name: str) -> str:
    first = name.split(".")[0]
    return {"visual": "image", "text": "text"}.get(first, "temperature")


@pytest.mark.parametrize("accum_freq", [1, 2])
@pytest.mark.parametrize("tower", TOWERS)
def test_locked_tower_stays_as_it_is_and_the_other_learns(
    tmp_path: Path, tower: Tower, accum_freq: int
) -> None:
    trainer = tiny_trainer(tmp_path, locked(tower, accum_freq, ema_decay=0.5))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    loss = trainer.stepper.loss
    needed = []

    def recorded(x: Tensor, y: Tensor, *others: Any, **options: Any) -> Any:
        needed.append((x.requires_grad, y.requires_grad))
        return loss(x, y, *others, **options)

    trainer.stepper.loss = recorded  # type: ignore[assignment]
    assert trainer.fit()  # with evaluations, which change the mode of the towers
    assert set(needed) == {(tower != "image", tower != "text")}  # a product less in the loss
    assert trainer.ema is not None
    for after in (trainer.model.state_dict(), trainer.ema.module.state_dict()):
        for name, value in after.items():
            assert torch.equal(value, before[name]) == (tower_of(name) == tower), name
    trained = {id(p) for group in trainer.stepper.optimizer.param_groups for p in group["params"]}
    for name, parameter in trainer.model.named_parameters():
        assert (id(parameter) in trained) == (tower_of(name) != tower)


@pytest.mark.parametrize("tower", TOWERS)
def test_features_of_a_locked_tower_are_those_of_evaluation(tmp_path: Path, tower: Tower) -> None:
    """Statistics of the batch, or dropout, would make other features of the same weights."""
    trainer = tiny_trainer(tmp_path, locked(tower, 2))
    batch = next(trainer.loader.epoch(0))
    assert batch is not None
    inputs = trainer.feeder(batch)
    seen = []
    loss = trainer.stepper.loss
    trainer.stepper.loss = lambda *a, **o: (seen.append(a[:2]), loss(*a, **o))[1]  # type: ignore[assignment]
    train_unlocked(trainer.model)
    trainer.stepper.launch(inputs, 0, 10)
    trainer.model.eval()
    with torch.no_grad():
        expected = {
            "image": trainer.model.encode_image(inputs.images),
            "text": trainer.model.encode_text(inputs.tokens),
        }[tower]
    torch.testing.assert_close(seen[0][TOWERS.index(tower)], expected)


def test_resumed_run_needs_no_pretrained_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "create_model", create_tiny)
    torch.manual_seed(7)
    start = create_tiny().model.state_dict()
    weights = tmp_path / "w.pt"
    torch.save({"state_dict": {f"module.{name}": v for name, v in start.items()}}, weights)
    words = ["--train-data", "shapes", "--batch-size", "64", "--precision", "fp32"]
    words += ["--logs-dir", str(tmp_path), "--no-tensorboard", "--warmup", "2"]
    words += ["--pretrained", str(weights), "--lock-image"]
    assert main([*words, "--name", "whole", "--epochs", "2"]) == 0
    assert main([*words, "--name", "broken", "--epochs", "1"]) == 0
    weights.unlink()
    assert main(["--resume", str(tmp_path / "broken"), "--epochs", "2"]) == 0
    whole, broken = (
        load_checkpoint(tmp_path / name / "checkpoints/last.pt")["model"]
        for name in ("whole", "broken")
    )
    for name, value in start.items():
        same = tower_of(name) == "image"
        assert torch.equal(broken[name], value) == torch.equal(whole[name], value) == same, name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lock-image"], "--lock-image needs --pretrained, got None"),
        (["--lock-text"], "--lock-text needs --pretrained, got None"),
        (["--lock-image", "--lock-text", "--pretrained", "x"], "leave nothing to train"),
        (["--pretrained", "x"], "must be a file or run folder that exists, got 'x'"),
    ],
)
def test_locks_without_sense_are_rejected(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--train-data", "shapes", "--logs-dir", str(tmp_path), "--tokenizer", "words"]
    assert main([*line, *words]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*/checkpoints"))
