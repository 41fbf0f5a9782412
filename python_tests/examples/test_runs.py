"""Many trainings side by side: complete, resumed, rejected, failed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from reproduction import runs
from reproduction.runs import Method, Run, RunFailed, complete, over_seeds
from training.parts import settings
from training.tiny_run import TESTS

from .conftest import EXAMPLES

pytestmark = pytest.mark.slow  # each run is a process of its own


@pytest.fixture(autouse=True)
def _tiny_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "WORKER", "examples.tiny_worker")
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # threads of so small a model only wait
    paths = [str(TESTS), str(EXAMPLES), os.getenv("PYTHONPATH")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


def method(epochs: int = 1, **values: object) -> Method:
    return Method(settings(epochs=epochs)).updated({"tensorboard": False, **values})


def test_runs_are_trained_once_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cyclip_ext").mkdir()
    (tmp_path / "cyclip_ext" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    wanted = {"square": method(loss="clip", ablation="square")}
    results = over_seeds(wanted, tmp_path, seeds=(0, 1), jobs=2)
    assert [run["seed"] for run in results["square"]] == [0, 1]
    assert [run["label"] for run in results["square"]] == ["square loss"] * 2
    measures = results["square"][0]["measures"]["shifted"]
    assert -1 <= measures["negative_cosine"] < measures["cyclip_alignment"] <= 1
    assert measures["margin_quantile/050"] == pytest.approx(measures["margin_q50"])
    assert not list(tmp_path.glob("*/checkpoints"))
    assert "[2/2]" in capsys.readouterr().out

    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/output.txt")}
    assert over_seeds(wanted, tmp_path, seeds=(0, 1), jobs=1) == results
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(ValueError, match=r"square-seed0 was made with other settings: lr 0\.002"):
        over_seeds({"square": wanted["square"].updated({"lr": 1.0})}, tmp_path, (0,), jobs=1)


def test_interrupted_study_continues_where_it_was(tmp_path: Path) -> None:
    long = Run("long", method(epochs=2, log_every_n_steps=1))
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
    for part in "metrics", "measures":
        assert continued["long"][part] == whole["long"][part]


def test_failed_run_is_quoted_and_stops_the_others(tmp_path: Path) -> None:
    study = [Run("good", method(epochs=500)), Run("bad", method(lr=666.0))]
    with pytest.raises(RunFailed, match=r"bad ended with status 1.*\n.*number of the beast"):
        complete(study, tmp_path, jobs=2)
    assert not (tmp_path / "good" / "result.json").exists()


def test_wrong_arguments_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        complete([Run("a", method())], tmp_path, jobs=0)
    with pytest.raises(ValueError, match="seeds is empty"):
        over_seeds({"a": method()}, tmp_path, seeds=(), jobs=1)
    with pytest.raises(ValueError, match="two runs are called a"):
        complete([Run("a", method()), Run("a", method(lr=1.0))], tmp_path, jobs=1)
    with pytest.raises(ValueError, match="seeds must differ, got 1, 1"):
        over_seeds({"a": method()}, tmp_path, seeds=(1, 1), jobs=1)


def test_a_killed_study_leaves_no_training_behind(tmp_path: Path) -> None:
    call = "from pathlib import Path; from training.parts import settings; "
    call += "from reproduction import runs; runs.WORKER = 'examples.tiny_worker'; "
    call += "run = runs.Run('a', runs.Method(settings(500))); "
    call += f"runs.complete([run], Path({str(tmp_path)!r}), jobs=2)"
    study = subprocess.Popen([sys.executable, "-c", call], cwd=tmp_path)  # not the checkout
    log, output = tmp_path / "a" / "metrics.jsonl", tmp_path / "a" / "output.txt"
    _wait_for(lambda: log.exists() and '"train"' in log.read_text())
    study.kill()
    study.wait()
    _wait_for(lambda: "interrupted at step" in output.read_text())
    assert (tmp_path / "a" / "checkpoints" / "last.pt").is_file()


def test_two_studies_on_one_folder_train_once(tmp_path: Path) -> None:
    study = [Run("a", method())]
    found: list[object] = []
    other = threading.Thread(target=lambda: found.append(complete(study, tmp_path, jobs=1)))
    other.start()
    found.append(complete(study, tmp_path, jobs=1))
    other.join()
    assert found[0] == found[1] is not None
    assert (tmp_path / "a" / "output.txt").read_text().count("epoch of") == 1


def _wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("other", [{"train_data": "pairs.csv"}, {"batch_size": 32}])
def test_complete_run_on_other_data_is_rejected(tmp_path: Path, other: dict[str, object]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "study.json").write_text(json.dumps(method().to_dict()))
    (tmp_path / "a" / "measures.json").write_text("{}")
    with pytest.raises(ValueError, match=r"now it is .*; choose another --folder"):
        complete([Run("a", method(**other))], tmp_path, jobs=1)


def test_run_that_is_not_of_a_study_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "clip-seed0").mkdir()
    (tmp_path / "clip-seed0" / "result.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a run that is not a study's"):
        over_seeds({"clip": method(loss="clip")}, tmp_path, seeds=(0,), jobs=1)


def test_settings_are_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_bytes

    def full(path: Path, data: bytes) -> None:
        real(path, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        complete([Run("a", method())], tmp_path, jobs=1)
    assert not (tmp_path / "a" / "study.json").exists()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import os; os.kill(os.getpid(), 9)", r"status -9 \(killed, .* fewer --jobs\)"),
        ("raise SystemExit('no such file' + 6 * '\\n one')", "no such file"),
    ],
)
def test_end_of_a_failed_worker_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, message: str
) -> None:
    monkeypatch.setattr(runs, "START", f"{program}  # {{}} {{}}")
    with pytest.raises(RunFailed, match=message):
        complete([Run("a", method())], tmp_path, jobs=1)
