"""The numbers of a run: log records, trackers, and the profile of some steps."""

from __future__ import annotations

import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from cyclip_ext.training import run
from cyclip_ext.training.__main__ import main
from cyclip_ext.training.logging import MetricsLog

from .parts import create_tiny, settings, tiny_trainer


def test_record_has_terms_speed_and_statistics(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, settings(epochs=1).updated({"log_every_n_steps": 2}))
    assert trainer.fit()
    records = trainer.log.read("train")
    assert [record["step"] for record in records] == list(range(2, 15, 2))
    assert set(records[0]) == {
        *("kind", "step", "epoch", "loss", "lr", "logit_scale", "grad_norm"),
        *("images_per_second", "data_wait", "contrastive_loss"),
        *("in_modal_loss", "in_modal_loss_raw", "cross_modal_loss", "cross_modal_loss_raw"),
        *("positive_similarity", "image_margin", "text_margin", "image_accuracy", "text_accuracy"),
    }
    assert all(0 <= record["data_wait"] < 1 and record["grad_norm"] > 0 for record in records)


def test_tensorboard_gets_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setattr(run, "create_model", create_tiny)
    words = ["--train-data", "shapes", "--epochs", "1", "--batch-size", "64"]
    assert main([*words, "--logs-dir", str(tmp_path), "--name", "r"]) == 0
    events = accumulator.EventAccumulator(str(tmp_path / "r/tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/grad_norm", "validation/acc1", "evaluation/shifted/acc1"} <= tags
    assert [event.step for event in events.Scalars("train/loss")] == [10, 14]


def test_wandb_gets_project_and_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "create_model", create_tiny)
    words = ["--train-data", "shapes", "--epochs", "1", "--batch-size", "64", "--wandb", "clips"]
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main([*words, "--logs-dir", str(tmp_path), "--name", "without"]) == 2
    assert "--wandb clips needs the package: pip install wandb" in capsys.readouterr().err
    asked: dict[str, Any] = {}
    logged: list[tuple[dict[str, float], int]] = []
    run_of_it = types.SimpleNamespace(
        log=lambda values, step: logged.append((values, step)),
        finish=lambda: logged.append(({}, -1)),
    )
    fake = types.SimpleNamespace(init=lambda **options: asked.update(options) or run_of_it)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    assert main([*words, "--logs-dir", str(tmp_path), "--name", "with"]) == 0
    assert (asked["project"], asked["id"], asked["resume"]) == ("clips", "with", "allow")
    assert asked["config"]["data"]["train_data"] == "shapes"
    assert logged[0][1] == 10
    assert "train/loss" in logged[0][0]
    assert logged[-1] == ({}, -1)


def test_profile_covers_the_chosen_steps(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, settings(epochs=1).updated({"profile": 2}))
    assert trainer.fit()
    trace = json.loads((tmp_path / "profile.json").read_text())
    names = {event["name"] for event in trace["traceEvents"]}
    assert {"ProfilerStep#3", "ProfilerStep#4"} <= names
    assert "ProfilerStep#5" not in names


def test_log_is_cut_back_to_the_resumed_step(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (10, 20, 30):
        log.write("train", step, {"loss": 1.0})
    with log.path.open("a") as file:
        file.write('{"kind": "tr')  # killed while writing
    log.truncate(20, ())
    assert [record["step"] for record in log.read("train")] == [10, 20]


def test_resumed_run_does_not_log_its_measurements_twice(tmp_path: Path) -> None:
    """The run is killed after it wrote its measurements and before it saved a checkpoint."""
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for kind in ("train", "validation", "evaluation"):
        log.write(kind, 10, {"loss": 1.0})
    log.truncate(10, {"evaluation"})
    assert [len(log.read(kind)) for kind in ("train", "validation", "evaluation")] == [1, 1, 0]
    log.truncate(10, {"validation"})
    assert [len(log.read(kind)) for kind in ("train", "validation")] == [1, 0]


def test_logged_speed_excludes_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asleep, clock = [0.0], time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + asleep[0])
    config = settings(epochs=1).updated({"evaluate_frequency": 2, "log_every_n_steps": 1})
    trainer = tiny_trainer(tmp_path, config)

    def evaluate() -> None:
        asleep[0] += 1e6

    monkeypatch.setattr(trainer, "_evaluate", evaluate)
    assert trainer.fit()
    assert asleep[0] > 0
    assert all(record["images_per_second"] > 0.1 for record in trainer.log.read("train"))
