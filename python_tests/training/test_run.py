"""A tiny run from end to end: it learns, writes its folder, resumes exactly, stops cleanly."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cyclip_ext.data import Batch
from cyclip_ext.training import run
from cyclip_ext.training.__main__ import main
from cyclip_ext.training.assess import Assessor
from cyclip_ext.training.checkpoint import load_checkpoint
from cyclip_ext.training.compare import run_comparison
from cyclip_ext.training.data import RunData
from cyclip_ext.training.folder import read_result
from cyclip_ext.training.logging import MetricsLog
from cyclip_ext.training.step import DivergedError
from cyclip_ext.training.trainer import Trainer

from .parts import create_tiny, settings, shapes, tiny_trainer, with_loss


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "create_model", create_tiny)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_identical(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_command_line_run_learns_and_leaves_a_complete_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--train-data", "shapes", "--epochs", "6", "--batch-size", "64", "--warmup", "5"]
    words += ["--precision", "fp32", "--logs-dir", str(tmp_path), "--name", "r", "--margin", "0.1"]
    assert main(words) == 0
    folder = tmp_path / "r"
    records = MetricsLog(folder / "metrics.jsonl").read("train")
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]
    assert records[-1]["margin_loss_raw"] == pytest.approx(10 * records[-1]["margin_loss"])
    assert records[-1]["loss"] == pytest.approx(
        sum(value for name, value in records[-1].items() if name.endswith("_loss"))
    )
    result = json.loads((folder / "result.json").read_text())
    assert {"in_domain", "validation", "shifted", "all_shifted"} <= set(result["metrics"])
    assert {"acc1", "acc5", "group_acc1", "subgroup_acc1", "consistency@1"} <= set(
        result["metrics"]["shifted"]
    )
    for name in ("config.json", "report.md", "checkpoints/last.pt", "checkpoints/best.pt"):
        assert (folder / name).is_file(), name
    shown = capsys.readouterr().out
    assert "training images" in shown
    assert "losses:" in shown
    assert "shifted" in shown
    # The folder is not overwritten by accident.
    assert main(words) == 1
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize(("stop_at", "lock"), [(3, None), (7, None), (10, None), (10, "image")])
def test_resumed_run_equals_uninterrupted(tmp_path: Path, stop_at: int, lock: str | None) -> None:
    config = settings()
    if lock:
        run_options = {"pretrained": "x", f"lock_{lock}": True}
        config = with_loss(config, mask_duplicates=True).updated({**run_options, "ema_decay": 0.9})
    whole = tiny_trainer(tmp_path / "whole", config)
    assert whole.fit()
    assert 0 < stop_at < whole.total_steps
    broken = tiny_trainer(tmp_path / "broken", config)
    take_step = broken._take_step

    def interrupted(batch: Batch) -> None:
        if broken.step == stop_at - 1:
            signal.raise_signal(signal.SIGINT)  # Ctrl-C during this step
        take_step(batch)

    broken._take_step = interrupted  # type: ignore[method-assign]
    assert not broken.fit()
    assert broken.step == stop_at

    resumed = tiny_trainer(tmp_path / "broken", config)
    torch.rand(3)  # whatever the global generator did in between
    resumed.restore(load_checkpoint(tmp_path / "broken/checkpoints/last.pt"))
    assert resumed.step == stop_at
    assert resumed.fit()
    assert_identical(weights(whole), weights(resumed))
    if whole.ema is not None and resumed.ema is not None:
        assert_identical(whole.ema.state_dict(), resumed.ema.state_dict())
    assert resumed.log.read("train")[-1]["step"] == whole.total_steps


def test_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)

    def interrupted(batch: Batch) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached")

    trainer._take_step = interrupted  # type: ignore[method-assign]
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert signal.getsignal(signal.SIGINT) is before


def test_resume_rejects_other_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = tiny_trainer(tmp_path / "a")
    trainer.save()
    assert main(["--resume", str(tmp_path / "a"), "--lr", "0.5"]) == 1
    assert "lr 0.002 (now 0.5)" in capsys.readouterr().err


def test_batch_without_a_readable_record_keeps_the_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tiny_trainer(tmp_path, settings(epochs=1))
    original = trainer.loader.epoch

    def epoch(epoch: int, start: int = 0) -> Iterator[Batch | None]:
        for number, batch in enumerate(original(epoch, start)):
            yield None if number == 1 else batch

    steps = []
    take_step = trainer._take_step

    def recorded(batch: Batch) -> None:
        steps.append(trainer.step)
        take_step(batch)

    monkeypatch.setattr(trainer.loader, "epoch", epoch)
    monkeypatch.setattr(trainer, "_take_step", recorded)
    assert trainer.fit()
    assert steps == [0, *range(2, trainer.total_steps)]


def test_loss_that_is_not_finite_stops_with_step_and_terms(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    with torch.no_grad():
        trainer.model.visual.projection.weight.fill_(torch.nan)
    with pytest.raises(
        DivergedError, match=r"step 0 .*contrastive_loss nan.*logit scale.*nonfinite-step-0.json"
    ):
        trainer.fit()


@pytest.mark.parametrize("loss", [{"loss": "clip"}, {"loss": "siglip"}], ids=str)
def test_other_losses_train(tmp_path: Path, loss: dict[str, Any]) -> None:
    config = with_loss(settings(epochs=1), **loss)
    data = RunData(shapes().train, "shapes", splits=shapes())
    result = run.run_training(config, data, tmp_path)
    assert result is not None
    assert result["label"] == config.label()


def test_comparison_is_complete_and_does_not_repeat_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = RunData(shapes().train, "shapes", splits=shapes())
    config = settings(epochs=1)
    assert run_comparison(config, data, tmp_path, [0, 1])
    report = (tmp_path / "report.md").read_text()
    assert report.startswith("# Comparison on shapes, seeds 0, 1\n")
    assert report.count("±") > 8
    assert "CLIP, scale held at 100" in report
    assert len(json.loads((tmp_path / "results.json").read_text())) == 4
    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("trained again"))
    assert run_comparison(config, data, tmp_path, [0, 1])
    with pytest.raises(ValueError, match="other settings: lr"):
        run_comparison(settings(epochs=1, lr=1.0), data, tmp_path, [0, 1])


def test_comparison_rejects_repeated_seeds(tmp_path: Path) -> None:
    data = RunData(shapes().train, "shapes", splits=shapes())
    with pytest.raises(ValueError, match="--seeds must differ, got 0, 1, 0"):
        run_comparison(settings(epochs=1), data, tmp_path, [0, 1, 0])


def test_interrupted_comparison_prints_how_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Trainer, "fit", lambda self: False)
    data = RunData(shapes().train, "shapes", splits=shapes())
    assert not run_comparison(settings(epochs=1), data, tmp_path, [0])
    shown = capsys.readouterr().out
    assert "the same --compare command again" in shown
    assert "--resume" not in shown


def test_run_killed_before_its_first_checkpoint_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    stale = MetricsLog(tmp_path / "metrics.jsonl")
    stale.write("train", 10, {"loss": -1.0})
    data = RunData(shapes().train, "shapes", splits=shapes())
    assert run.run_training(settings(epochs=1), data, tmp_path) is not None
    assert all(record["loss"] > 0 for record in stale.read("train"))


def test_error_in_validation_does_not_cost_the_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any) -> dict[str, float]:
        raise OSError("disk gone")

    trainer = tiny_trainer(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Assessor, "validate", fails)
        with pytest.raises(OSError, match="disk gone"):
            trainer.fit()
    resumed = tiny_trainer(tmp_path)
    resumed.restore(load_checkpoint(tmp_path / "checkpoints/last.pt"))
    assert (resumed.epoch, resumed.step_in_epoch) == (1, 0)
    assert resumed.fit()
    # The validation that failed is made up for.
    assert [record["epoch"] for record in resumed.log.read("validation")] == [1, 2]
    assert not load_checkpoint(tmp_path / "checkpoints/last.pt")["validation_due"]


def test_resume_finds_the_run_from_anywhere_and_leaves_a_finished_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--train-data", "shapes", "--epochs", "1", "--batch-size", "64"]
    assert main([*words, "--logs-dir", str(tmp_path), "--name", "r"]) == 0
    folder = tmp_path / "r"
    before = (folder / "result.json").read_text()
    monkeypatch.chdir(folder / "checkpoints")
    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("trained again"))
    capsys.readouterr()
    assert main(["--resume", "last.pt"]) == 0
    assert f"{folder.resolve()} is finished" in capsys.readouterr().out
    assert (folder / "result.json").read_text() == before
    (folder / "checkpoints" / "last.pt").rename(tmp_path / "moved.pt")
    assert main(["--resume", str(tmp_path / "moved.pt")]) == 1
    assert "must lie in the folder checkpoints" in capsys.readouterr().err


def test_settings_that_the_machine_does_not_support_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--train-data", "shapes", "--logs-dir", str(tmp_path / "logs")]
    for device in ("tpu9", "cuda:99", "meta"):
        assert main([*words, "--device", device]) == 2
        assert f"--device {device} cannot be used" in capsys.readouterr().err
    assert main([*words, "--batch-size", "400", "--accum-freq", "3"]) == 1
    assert "a step takes 1,200 pairs (--batch-size times" in capsys.readouterr().err
    assert not (tmp_path / "logs" / "cyclip-seed0").exists()
    (tmp_path / "logs").rmdir()
    (tmp_path / "logs").touch()
    assert main(words) == 2
    assert "is a file" in capsys.readouterr().err

    def create_model(*arguments: object, **options: object) -> None:
        raise ImportError("models need open_clip")

    monkeypatch.setattr(run, "create_model", create_model)
    words[-1] = str(tmp_path)
    assert main(words) == 2
    assert "models need open_clip" in capsys.readouterr().err


def test_evaluation_during_training_changes_nothing_and_is_logged_once(tmp_path: Path) -> None:
    data = RunData(shapes().train, "shapes", splits=shapes())
    config = settings(epochs=2)
    plain = run.run_training(config, data, tmp_path / "plain")
    steps = len(shapes().train) // 64
    evaluated = config.updated({"evaluate_frequency": steps})
    result = run.run_training(evaluated, data, tmp_path / "evaluated")
    assert plain is not None
    assert result is not None
    assert result["metrics"] == plain["metrics"]

    def logged() -> list[tuple[int, str]]:
        records = MetricsLog(tmp_path / "evaluated" / "metrics.jsonl").read("evaluation")
        return [(record["step"], record["dataset"]) for record in records]

    expected = [(step, name) for step in (steps, 2 * steps) for name in result["metrics"]]
    assert logged() == expected
    trainer = tiny_trainer(tmp_path / "evaluated", evaluated)
    state = trainer.checkpoints.newest()
    assert state is not None
    trainer.restore({**state, "epoch": 1, "step_in_epoch": 0, "step": steps})
    assert logged() == expected[: len(result["metrics"])]


def test_result_is_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_bytes

    def killed(path: Path, data: bytes) -> int:
        if "result.json" not in path.name:
            return real(path, data)
        real(path, data[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", killed)
    data = RunData(shapes().train, "shapes", splits=shapes())
    with pytest.raises(KeyboardInterrupt):
        run.run_training(settings(epochs=1), data, tmp_path)
    assert read_result(tmp_path) is None


def test_run_killed_between_two_renames_is_not_overwritten(tmp_path: Path) -> None:
    """For a moment previous.pt is the only checkpoint."""
    tiny_trainer(tmp_path).save()
    (tmp_path / "checkpoints/last.pt").rename(tmp_path / "checkpoints/previous.pt")
    data = RunData(shapes().train, "shapes", splits=shapes())
    with pytest.raises(FileExistsError, match="continue it with --resume"):
        run.run_training(settings(epochs=1), data, tmp_path)
