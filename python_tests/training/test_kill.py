"""A run that is killed at any step and resumed ends with the weights of an uninterrupted one."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
import torch

from cyclip_ext.training.checkpoint import load_checkpoint
from cyclip_ext.training.logging import MetricsLog

from .parts import damage_images, shapes, write_shards
from .tiny_run import finish, start

EPOCHS, STEPS = 3, 3 * 13  # at least: shards give some pairs to validation


def job(folder: Path, data: str, batch_size: int, *words: str) -> list[str]:
    """Return the command line of a run in `folder`."""
    return [
        *("--logs-dir", str(folder), "--name", "run", "--train-data", data, "--precision", "fp32"),
        *("--model", "dropout", "--batch-size", str(batch_size), "--epochs", str(EPOCHS)),
        *("--val-frequency", "100", "--log-every-n-steps", "1", "--save-frequency", "3"),
        *("--warmup", "5"),
        *("--ema-decay", "0.9", "--no-tensorboard", *words),
    ]


def wait_for_step(folder: Path, step: int) -> None:
    """Return once the run has logged that many records."""
    log = folder / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() or log.read_text().count('"train"') < step:
        assert time.monotonic() < deadline, f"step {step} was never reached"
        time.sleep(0.002)


def assert_same_end(whole: Path, broken: Path) -> None:
    """Compare weights, their average and the optimizer's moments bit for bit."""
    ends = [load_checkpoint(folder / "run/checkpoints/last.pt") for folder in (whole, broken)]
    for part in ("model", "ema"):
        first, second = (end[part] for end in ends)
        assert all(torch.equal(first[name], second[name]) for name in first), part
    moments = [end["optimizer"]["state"] for end in ends]
    for number, own in moments[0].items():
        assert all(torch.equal(own[name], moments[1][number][name]) for name in own)
    assert ends[0]["epoch"] == ends[1]["epoch"] == EPOCHS


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_runs_end_as_undisturbed_ones(tmp_path: Path, ranks: int) -> None:
    # Shards and two decoding processes where one rank trains, a set in memory for two.
    data, workers = ("shapes", "0")
    if ranks == 1:
        data, workers = str(write_shards(tmp_path / "shards", shapes().train, 3)), "2"
    words = ["--workers", workers]
    batch_size = 64 // ranks
    finish(start(job(tmp_path / "whole", data, batch_size, *words), ranks))
    broken = tmp_path / "broken"
    kills = sorted(random.sample(range(2, STEPS - 15), 2))
    for step in kills:
        processes = start(job(broken, data, batch_size, *words, "--resume", "auto"), ranks)
        wait_for_step(broken, step)
        for process in processes:
            process.send_signal(signal.SIGKILL)
        assert all(process.wait() == -signal.SIGKILL for process in processes), kills
    finish(start(job(broken, data, batch_size, *words, "--resume", "auto"), ranks))
    assert_same_end(tmp_path / "whole", broken)


@pytest.mark.slow
def test_another_number_of_ranks_continues_with_the_same_batch(tmp_path: Path) -> None:
    """A run resumes on twice the ranks with half the pairs each, but not with twice the pairs."""
    alone = start(job(tmp_path, "shapes", 64))[0]
    wait_for_step(tmp_path, 20)
    alone.send_signal(signal.SIGTERM)
    shown = alone.communicate(timeout=300)[0]
    assert alone.returncode == 130, shown
    assert "continue with --resume" in shown
    for process in start([*job(tmp_path, "shapes", 64), "--resume", "auto"], ranks=2):
        assert "64 pairs in a step, now" in process.communicate(timeout=300)[0]
        assert process.returncode == 1
    shown = finish(start([*job(tmp_path, "shapes", 32), "--resume", "auto"], ranks=2))[0]
    assert "2 processes" in shown
    records = MetricsLog(tmp_path / "run/metrics.jsonl").read("train")
    assert [record["step"] for record in records] == [*range(1, 14 * EPOCHS + 1)]


@pytest.mark.slow
def test_options_meet_on_two_ranks(tmp_path: Path) -> None:
    """Options may conflict: a copied model with a process group, DDP with a frozen parameter."""
    words = ["--train-data", "shapes", "--epochs", "1", "--batch-size", "32", "--warmup", "2"]
    words += ["--logs-dir", str(tmp_path), "--precision", "fp32", "--name", "r"]
    words += ["--use-bn-sync", "--ema-decay", "0.9", "--grad-checkpointing"]
    words += ["--logit-scale-fixed", "50", "--two-views", "--accum-freq", "2", "--exchange", "ring"]
    finish(start([*words, "--loss", "siglip", "--mask-duplicates"], ranks=2))


@pytest.mark.slow
def test_ranks_stop_together_at_too_many_bad_records(tmp_path: Path) -> None:
    """One rank may see all of the bad ones; none may wait for another that has stopped."""
    shard = write_shards(tmp_path / "shards", shapes().train, 1) / "00000.tar"
    damage_images(shard, every=3)
    words = [*job(tmp_path, str(shard), 32), "--accum-freq", "2", "--max-skipped", "0.1"]
    for process in start(words, ranks=2):
        assert "records are bad" in process.communicate(timeout=300)[0]
        assert process.returncode == 1
    finish(start([*words, "--max-skipped", "0.6", "--name", "goes-on"], ranks=2))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_one_rank_saves_and_stops_all(tmp_path: Path, number: signal.Signals) -> None:
    processes = start(job(tmp_path, "shapes", 32), ranks=2)
    wait_for_step(tmp_path, 10)
    processes[1].send_signal(number)  # not the rank that saves
    shown = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [130, 130], shown
    state = load_checkpoint(tmp_path / "run/checkpoints/last.pt")
    records = MetricsLog(tmp_path / "run/metrics.jsonl").read("train")
    assert [record["step"] for record in records] == [*range(1, state["step"] + 1)]


@pytest.mark.slow
def test_rank_that_loses_another_ends_in_one_line(tmp_path: Path) -> None:
    processes = start(job(tmp_path, "shapes", 32), ranks=2)
    wait_for_step(tmp_path, 3)
    processes[1].send_signal(signal.SIGKILL)
    shown = processes[0].communicate(timeout=300)[0]
    assert processes[0].returncode == 1
    assert "rank 0: error: another rank ended" in shown
    assert "Traceback" not in shown
    processes[1].communicate()
