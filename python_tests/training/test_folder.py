"""The run folder: its lock, and the states from which a run may resume."""

from __future__ import annotations

import errno
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models.tiny import create_tiny

from cyclip_ext.training import run
from cyclip_ext.training.__main__ import main
from cyclip_ext.training.checkpoint import load_checkpoint
from cyclip_ext.training.folder import locked, newest_state
from cyclip_ext.training.logging import MetricsLog
from cyclip_ext.training.ranks import ALONE
from cyclip_ext.training.trainer import Trainer

from .parts import settings, tiny_trainer, write_table


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "create_model", create_tiny)


# Holds the lock of the folder argv[1], with a child process that outlives it.
HOLDER = """
import os, sys, time
from pathlib import Path
from cyclip_ext.training.folder import locked
from cyclip_ext.training.ranks import ALONE

with locked(Path(sys.argv[1]), ALONE):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    yield process, child
    for number in (process.pid, child):
        subprocess.run(["kill", "-9", str(number)], check=False, stderr=subprocess.DEVNULL)
    process.wait()


def test_folder_of_another_process_is_rejected_at_once(
    tmp_path: Path, holder: tuple[subprocess.Popen[str], int], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--train-data", "shapes", "--logs-dir", str(tmp_path), "--name", "run"]
    assert main([*words, "--resume", "auto"]) == 1
    error = capsys.readouterr().err
    assert f"run is in use by process {holder[0].pid} on" in error
    assert "choose another --name" in error
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_killed_process_holds_no_lock_although_its_child_lives(
    tmp_path: Path, holder: tuple[subprocess.Popen[str], int]
) -> None:
    holder[0].send_signal(signal.SIGKILL)
    holder[0].wait()
    with locked(tmp_path / "run", ALONE):
        (tmp_path / "run" / "something").touch()


def test_folder_that_cannot_be_written_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--train-data", "shapes", "--logs-dir", "/proc/self", "--name", "run"]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "the run folder /proc/self/run cannot be written (No such file" in error
    assert "choose another --logs-dir" in error


def test_unusable_settings_create_no_folder(tmp_path: Path) -> None:
    words = ["--train-data", str(tmp_path / "none.csv"), "--logs-dir", str(tmp_path), "--name", "r"]
    assert main(words) == 1
    assert not (tmp_path / "r").exists()


@pytest.fixture
def finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Train on 24 records of a table in tmp_path/r; return the command line."""
    words = ["--logs-dir", str(tmp_path), "--name", "r", "--epochs", "2", "--batch-size", "4"]
    words += ["--warmup", "1", "--no-tensorboard", "--precision", "fp32"]
    words += ["--train-data", write_table(tmp_path / "data", range(24))]
    assert main(words) == 0
    capsys.readouterr()
    return words


@pytest.mark.parametrize(
    ("order", "steps"),
    [(range(1, 25), 5), (range(23, -1, -1), 5), (range(30), 7), (range(16), 3)],
    ids=["others", "reversed", "more", "fewer"],
)
def test_other_data_are_rejected_on_resume_unless_allowed(
    tmp_path: Path,
    finished: list[str],
    order: range,
    steps: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_table(tmp_path / "data", order)
    resume = ["--resume", str(tmp_path / "r"), "--epochs", "3"]
    assert main(resume) == 1
    error = capsys.readouterr().err
    assert "records are not those of the run in" in error
    assert "--allow-other-data" in error
    assert main([*resume, "--allow-other-data"]) == 0
    assert "continuing on other training" in capsys.readouterr().out
    log = MetricsLog(tmp_path / "r/metrics.jsonl")
    (record,) = log.read("other_data")
    assert record["changed"] == ["training", "validation"]
    # Two epochs of 5 steps were of the former data.
    assert [train["step"] for train in log.read("train")] == [5, 10, 10 + steps]
    assert f"- steps: {10 + steps} of 4 pairs" in (tmp_path / "r/report.md").read_text()
    result = json.loads((tmp_path / "r/result.json").read_text())
    assert result["resumed_on_other_data"] == [record["step"]]
    assert "resumed on other data" in (tmp_path / "r/report.md").read_text()
    # The permission is for one time.
    write_table(tmp_path / "data", range(24))
    assert main([*resume[:2], "--epochs", "4"]) == 1


def test_more_epochs_continue_a_finished_run(
    tmp_path: Path, finished: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    log = MetricsLog(tmp_path / "r/metrics.jsonl")
    before = log.read("train")
    assert main(["--resume", str(tmp_path / "r"), "--epochs", "3"]) == 0
    after = log.read("train")
    assert after[: len(before)] == before
    assert after[-1]["epoch"] == 2
    assert [record["epoch"] for record in log.read("validation")] == [2, 3]
    assert (tmp_path / "r/result-epoch-0002.json").is_file()
    assert main(["--resume", str(tmp_path / "r"), "--epochs", "2"]) == 1
    assert "epochs 3 (now 2)" in capsys.readouterr().err
    assert main(["--resume", str(tmp_path / "r")]) == 0
    assert "is finished: 3 epochs" in capsys.readouterr().out


def rename(state: dict[str, Any]) -> None:
    state["moments"] = state.pop("optimizer")


def drop_best(state: dict[str, Any]) -> None:
    del state["best"]


def add_entry(state: dict[str, Any]) -> None:
    state["loader"] = 1


def damage_epoch(state: dict[str, Any]) -> None:
    state["epoch"] = "two"


def negative_epoch(state: dict[str, Any]) -> None:
    state["epoch"] = -1


def no_moments(state: dict[str, Any]) -> None:
    state["optimizer"]["state"] = {}


def no_counts(state: dict[str, Any]) -> None:
    state["skipped"] = {"missing": 3}


def foreign_setting(state: dict[str, Any]) -> None:
    state["config"]["loss"]["margin_pairs"] = "both"


def other_model(state: dict[str, Any]) -> None:
    state["model"] = {"visual.weight": torch.zeros(2)}


def lost_moments(state: dict[str, Any]) -> None:
    for moments in state["optimizer"]["state"].values():
        del moments["exp_avg"]


def other_groups(state: dict[str, Any]) -> None:
    state["optimizer"]["param_groups"].pop()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (rename, "weights only"),
        (drop_best, "lacks best"),
        (add_entry, "has unknown loader"),
        (damage_epoch, "has damaged epoch"),
        (negative_epoch, "has damaged epoch"),
        (no_moments, "has damaged optimizer"),
        (no_counts, "has damaged skipped"),
        (foreign_setting, "unknown settings margin_pairs"),
        (other_model, "the entry 'model' .* does not fit this run"),
        (lost_moments, "the entry 'optimizer' .* does not fit this run"),
        (other_groups, "the entry 'optimizer' .* does not fit this run"),
    ],
)
def test_checkpoint_with_wrong_entries_is_rejected_in_one_line(
    tmp_path: Path,
    finished: list[str],
    damage: Callable[[dict[str, Any]], None],
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "r/checkpoints/last.pt"
    state = load_checkpoint(path)
    damage(state)
    torch.save(state, path)
    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("trained"))
    content = path.read_bytes()
    assert main(["--resume", str(tmp_path / "r"), "--epochs", "3"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(tmp_path / "r") in error
    assert re.search(problem, error), error
    assert path.read_bytes() == content


def test_checkpoint_with_skipped_records_is_accepted(tmp_path: Path, finished: list[str]) -> None:
    path = tmp_path / "r/checkpoints/last.pt"
    state = load_checkpoint(path)
    state["skipped"] = {"missing": {"count": 3, "examples": ["a.png"]}}
    torch.save(state, path)
    assert newest_state(tmp_path / "r") is not None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"label": "CyCLIP"}'])
def test_damaged_result_is_named(
    tmp_path: Path, finished: list[str], content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "r/result.json"
    result.write_text(content)
    assert main(["--resume", str(tmp_path / "r")]) == 1
    error = capsys.readouterr().err
    assert str(result) in error
    assert error.count("\n") == 1
    result.rename(tmp_path / "r/damaged.json")  # the remedy of the message
    assert main(["--resume", str(tmp_path / "r")]) == 0
    assert json.loads(result.read_text())["metrics"]


@pytest.mark.parametrize(
    ("saved", "remedy"), [(True, "continue with --resume"), (False, "start the run again")]
)
def test_full_disk_while_saving_leaves_the_former_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: bool, remedy: str
) -> None:
    trainer = tiny_trainer(tmp_path, settings(epochs=1))
    if saved:
        trainer.save()
    last = tmp_path / "checkpoints/last.pt"
    before = last.read_bytes() if saved else None

    def full(state: object, file: Any) -> None:
        file.write(b"half")
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:  # as torch.save does
            raise RuntimeError("[enforce fail at inline_container.cc] unexpected pos 704 vs 598")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=rf"could be written to .*No space left .*{remedy}"):
        trainer.fit()
    assert (last.read_bytes() if last.exists() else None) == before


def test_full_disk_names_the_log(tmp_path: Path) -> None:
    log = MetricsLog(Path("/dev/full"))
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        log.write("train", 1, {"loss": 1.0})


def test_captions_that_are_cut_are_counted(tmp_path: Path) -> None:
    path = Path(write_table(tmp_path / "data", range(24)))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], f"0.png,{'x' * 5000}", *lines[2:]]))
    words = ["--logs-dir", str(tmp_path), "--name", "r", "--epochs", "1", "--batch-size", "4"]
    words += ["--val-data", str(path), "--no-tensorboard", "--train-data", str(path)]
    with pytest.warns(UserWarning, match="extremely long words"):
        assert main(words) == 0
    (record,) = MetricsLog(tmp_path / "r/metrics.jsonl").read("shortened")
    assert record["captions"] == 1
    result = json.loads((tmp_path / "r/result.json").read_text())
    assert result["records"]["training"]["shortened_captions"] == 1
    assert "captions cut before tokenizing: 1" in (tmp_path / "r/report.md").read_text()
