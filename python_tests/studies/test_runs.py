"""Many trainings side by side: complete, continued, refused, failed."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from training.parts import settings
from training.tiny_run import TESTS

from cyclip_ext.studies import Run, complete, runs
from cyclip_ext.studies.runs import RunFailed, over_seeds
from cyclip_ext.training.config import TrainConfig

pytestmark = pytest.mark.slow  # each run is a process of its own


@pytest.fixture(autouse=True)
def _tiny_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "WORKER", "studies.tiny_worker")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.getenv("PYTHONPATH", "")]))


def config(epochs: int = 1, **values: object) -> TrainConfig:
    return settings(epochs=epochs).updated({"tensorboard": False, **values})


def test_runs_are_trained_once_and_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong: a complete run is repeated, seeds are mixed up, or weights fill the disk."""
    wanted = {"clip": config(loss="clip"), "square": config(loss="square")}
    results = over_seeds(wanted, tmp_path, seeds=(0, 1), jobs=2)
    assert results is not None
    assert [run["seed"] for run in results["clip"]] == [0, 1]
    assert [run["label"] for run in results["square"]] == ["square loss"] * 2
    measures = results["clip"][0]["measures"]["shifted"]
    assert -1 <= measures["negative_cosine"] < measures["cyclip_alignment"] <= 1
    assert measures["margin_quantile/050"] == pytest.approx(measures["margin_q50"])
    assert not list(tmp_path.glob("*/checkpoints"))
    assert "[4/4]" in capsys.readouterr().out

    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/output.txt")}
    assert over_seeds(wanted, tmp_path, seeds=(0, 1), jobs=1) == results
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(ValueError, match=r"clip-seed0 was made with other settings: lr 0\.002"):
        over_seeds({"clip": config(loss="clip", lr=1.0)}, tmp_path, seeds=(0,), jobs=1)


def test_interrupted_study_continues_where_it_was(tmp_path: Path) -> None:
    """Wrong: Ctrl-C loses a run's state, or what is continued learns something else."""
    long = Run("long", config(epochs=6, log_every_n_steps=1))
    whole = complete([long], tmp_path / "whole", jobs=1)
    assert whole is not None

    def interrupt() -> None:
        log = tmp_path / "cut" / "long" / "metrics.jsonl"
        while not (log.exists() and log.read_text().count('"train"') > 3):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert complete([long], tmp_path / "cut", jobs=1) is None
    assert (tmp_path / "cut" / "long" / "checkpoints" / "last.pt").is_file()
    assert not (tmp_path / "cut" / "long" / "result.json").exists()
    continued = complete([long], tmp_path / "cut", jobs=1)
    assert continued is not None
    for part in "metrics", "measures":
        assert continued["long"][part] == whole["long"][part]


def test_failed_run_is_quoted_and_stops_the_others(tmp_path: Path) -> None:
    """Wrong: a study hangs, goes on for hours, or hides why a run failed."""
    study = [Run("good", config(epochs=500)), Run("bad", config(lr=666.0))]
    with pytest.raises(RunFailed, match=r"bad ended with status 1.*\n.*number of the beast"):
        complete(study, tmp_path, jobs=2)
    assert not (tmp_path / "good" / "result.json").exists()


def test_one_name_for_two_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two runs are called a"):
        complete([Run("a", config()), Run("a", config(lr=1.0))], tmp_path, jobs=1)
    with pytest.raises(ValueError, match="seeds must differ, got 1, 1"):
        over_seeds({"a": config()}, tmp_path, seeds=(1, 1), jobs=1)
