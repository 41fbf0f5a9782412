"""Completes many trainings on one machine, some at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..training.compare import check_same_settings
from ..training.config import TrainConfig
from ..training.run import read_result
from ..training.stopping import listening_for_stop
from .measure import Measures

SETTINGS = "study.json"  # what the worker of a run is to do
MEASURES = "measures.json"  # what it leaves: written last
OUTPUT = "output.txt"
WORKER = "cyclip_ext.studies.worker"

Result = dict[str, Any]  # result.json's content, with "measures" beside it


@dataclass(frozen=True)
class Run:
    """A training with a name that is its folder's below the study's."""

    name: str
    config: TrainConfig


class RunFailed(RuntimeError):
    """A training of a study ended with an error; the message has its last words."""


def complete(runs: Sequence[Run], folder: Path, jobs: int) -> dict[str, Result] | None:
    """Results by name of all runs, after training those that are not complete yet.

    jobs: trainings at a time, each in a process of its own with its share of the processors.
    After Ctrl-C or SIGTERM the trainings save their state, and None is returned; the same call
    continues. A run that two studies share, in one folder, is trained once.

    Raises ValueError where the folder holds a run of that name with other settings, RunFailed
    where a training fails; the others are stopped then, with their state saved.
    """
    wanted = {run.name: run.config for run in runs}
    for run in runs:
        if wanted[run.name] != run.config:
            raise ValueError(f"two runs are called {run.name}, with different settings")
    waiting = [name for name in wanted if _found(folder / name, wanted[name]) is None]
    done = len(wanted) - len(waiting)
    active: dict[str, subprocess.Popen[bytes]] = {}
    with listening_for_stop(processes=2) as stop:
        try:
            while (waiting or active) and not stop:
                while waiting and len(active) < jobs:
                    name = waiting.pop(0)
                    active[name] = _start(wanted[name], folder / name, jobs)
                time.sleep(0.2)
                for name in [
                    name for name, process in active.items() if process.poll() is not None
                ]:
                    _require_success(active.pop(name), folder / name)
                    done += 1
                    print(f"[{done}/{len(wanted)}] {_told(folder / name)}", flush=True)
        finally:
            _stop(list(active.values()))
    if stop:
        return None
    return {name: _collected(folder / name) for name in wanted}


def over_seeds(
    configs: Mapping[str, TrainConfig], folder: Path, seeds: Sequence[int], jobs: int
) -> dict[str, list[Result]] | None:
    """Each of the settings with each seed: results by name, in the order of seeds; see `complete`.

    Seed by seed, so that what is there after an interruption can be compared.
    Raises ValueError where a seed is repeated.
    """
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must differ, got {', '.join(map(str, seeds))}; drop the repeats")
    runs = [
        Run(f"{name}-seed{seed}", config.updated({"seed": seed}))
        for seed in seeds
        for name, config in configs.items()
    ]
    results = complete(runs, folder, jobs)
    if results is None:
        return None
    return {name: [results[f"{name}-seed{seed}"] for seed in seeds] for name in configs}


def _found(folder: Path, config: TrainConfig) -> Result | None:
    """The result of a complete run with these settings."""
    settings = folder / SETTINGS
    if settings.is_file():
        check_same_settings(config, json.loads(settings.read_text()), folder)
    return _collected(folder) if (folder / MEASURES).is_file() else None


def write_measures(folder: Path, measures: Measures) -> None:
    """The last file of a run: with it the run is complete."""
    temporary = folder / f".{MEASURES}.tmp"
    temporary.write_text(json.dumps(measures) + "\n")
    temporary.replace(folder / MEASURES)


def _collected(folder: Path) -> Result:
    result = read_result(folder)
    assert result is not None
    return {**result, "measures": json.loads((folder / MEASURES).read_text())}


def _start(config: TrainConfig, folder: Path, jobs: int) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with (folder / OUTPUT).open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", WORKER, str(folder)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            # The terminal's Ctrl-C is for the study, which passes it on once.
            start_new_session=True,
        )


def _require_success(process: subprocess.Popen[bytes], folder: Path) -> None:
    if process.returncode == 0:
        return
    lines = (folder / OUTPUT).read_text(errors="replace").replace("\r", "\n").splitlines()
    last = "\n".join(lines[-5:])
    raise RunFailed(
        f"{folder.name} ended with status {process.returncode}; its last words, all in "
        f"{folder / OUTPUT}:\n{last}"
    )


def _told(folder: Path) -> str:
    result = _collected(folder)
    validation = result["metrics"]["validation"]
    metric = next(iter(validation))
    return (
        f"{folder.name}: validation {metric} {100 * validation[metric]:.1f}, "
        f"{result['train_seconds']:.0f} s"
    )


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask them to save and end, and wait for it."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait()
