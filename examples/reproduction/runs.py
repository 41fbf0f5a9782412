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

from ..training.checkpoint import Checkpoints
from ..training.compare import check_same_settings
from ..training.config import TrainConfig
from ..training.run import read_result
from ..training.stopping import listening_for_stop
from ..training.tracking import write_whole
from .measure import Measures

SETTINGS = "study.json"  # what the worker of a run is to do
MEASURES = "measures.json"  # what it leaves: written last
OUTPUT = "output.txt"
WORKER = "cyclip_ext.studies.worker"
# Imports what this process imports, whatever lies in the current directory.
START = "import runpy, sys; sys.path[:] = {!r}; runpy.run_module({!r}, run_name='__main__')"

# What a single run that is resumed may have otherwise, since its checkpoint tells; a complete run
# of a study has none any more.
DECISIVE_HERE = ("train_data", "val_data", "images", "batch_size", "accum_freq")

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
    continues. So they do where this process is killed. A run that two studies share, in one folder,
    is trained once.

    Raises ValueError for jobs below 1 and where the folder holds a run of that name with other
    settings, RunFailed where a training fails; the others are stopped then, with their state saved.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
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
    Raises ValueError where a seed is repeated or there is none.
    """
    if not seeds:
        raise ValueError("seeds is empty: give at least one")
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
        _require_same(config, json.loads(settings.read_text()), folder)
    elif Checkpoints(folder).any() or read_result(folder) is not None:
        raise ValueError(f"{folder} holds a run that is not a study's; choose another --folder")
    return _collected(folder) if (folder / MEASURES).is_file() else None


def _require_same(config: TrainConfig, found: dict[str, Any], folder: Path) -> None:
    check_same_settings(config, found, folder)
    for name in DECISIVE_HERE:
        now, then = getattr(config.data, name), found["data"].get(name)
        if now != then:
            raise ValueError(
                f"{folder} was made with --{name.replace('_', '-')} {then}, now it is {now}; "
                "choose another --folder"
            )


def write_measures(folder: Path, measures: Measures) -> None:
    """The last file of a run: with it the run is complete."""
    write_whole(folder / MEASURES, json.dumps(measures) + "\n")


def _collected(folder: Path) -> Result:
    result = read_result(folder)
    assert result is not None
    return {**result, "measures": json.loads((folder / MEASURES).read_text())}


def _start(config: TrainConfig, folder: Path, jobs: int) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / SETTINGS, json.dumps(config.to_dict(), indent=2) + "\n")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with (folder / OUTPUT).open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-c", START.format(sys.path, WORKER), str(folder)],
            stdin=subprocess.PIPE,  # never written to: its end tells that this process is gone
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            # The terminal's Ctrl-C is for the study, which passes it on once.
            start_new_session=True,
        )


def _require_success(process: subprocess.Popen[bytes], folder: Path) -> None:
    process.communicate()  # closes its input
    if process.returncode == 0:
        return
    lines = (folder / OUTPUT).read_text(errors="replace").replace("\r", "\n").splitlines()
    last = "\n".join(lines[-10:])
    killed = " (killed, perhaps for want of memory: try fewer --jobs)"
    raise RunFailed(
        f"{folder.name} ended with status {process.returncode}"
        f"{killed if process.returncode == -signal.SIGKILL else ''}; its last words, all in "
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
        process.communicate()
