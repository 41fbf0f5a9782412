"""Complete many trainings on one machine, some of them concurrently."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cyclip_ext._files import write_atomic
from cyclip_ext.training.checkpoint import Checkpoints
from cyclip_ext.training.config import DataConfig, TrainConfig
from cyclip_ext.training.folder import RESULT, check_same_settings, read_result
from cyclip_ext.training.stopping import listening_for_stop

from .measure import Measures

SETTINGS = "study.json"  # the task of a run's worker
MEASURES = "measures.json"  # written last by the worker
OUTPUT = "output.txt"
WORKER = "reproduction.worker"
# Uses the import path of this process, independently of the current directory.
START = "import runpy, sys; sys.path[:] = {!r}; runpy.run_module({!r}, run_name='__main__')"

# A resumed single run may change these, because its checkpoint has a fingerprint of the data; the
# checkpoints of a study's complete runs are deleted.
DECISIVE_HERE = {entry.name for entry in fields(DataConfig)} - {"workers", "max_skipped"}

Result = dict[str, Any]  # the content of result.json, with "measures" beside it


@dataclass(frozen=True)
class Method:
    """Settings of a training. ablation: name of the objective if it is one of ABLATIONS."""

    config: TrainConfig
    ablation: str = ""

    def updated(self, values: Mapping[str, object]) -> Method:
        """Return a copy with new values for the given settings, of which "ablation" is one."""
        settings = dict(values)
        ablation = str(settings.pop("ablation", self.ablation))
        return Method(self.config.updated(settings), ablation)

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested dictionaries, for JSON."""
        return {"config": self.config.to_dict(), "ablation": self.ablation}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Method:
        """Invert to_dict."""
        return cls(TrainConfig.from_dict(values["config"]), values["ablation"])


@dataclass(frozen=True)
class Run:
    """A training whose name is that of its folder below the study's."""

    name: str
    method: Method


class RunFailed(RuntimeError):
    """A training of a study ended with an error; the message has its last lines."""


def complete(runs: Sequence[Run], folder: Path, jobs: int) -> dict[str, Result] | None:
    """Train the runs that are not complete yet, and return the results of all by name.

    jobs: number of concurrent trainings, each in a process of its own with its share of the
    processors. After Ctrl-C or SIGTERM the trainings save their state, and None is returned; the
    same call continues. The trainings also save their state if this process is killed. A run that
    two studies share, in one folder, is trained once.

    Raises ValueError if jobs is below 1 or the folder contains a run of that name with other
    settings, and RunFailed if a training fails. The others then save their state and stop.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    wanted = {run.name: run.method for run in runs}
    for run in runs:
        if wanted[run.name] != run.method:
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
                    print(f"[{done}/{len(wanted)}] {_summary(folder / name)}", flush=True)
        finally:
            _stop(list(active.values()))
    if stop:
        return None
    return {name: _collected(folder / name) for name in wanted}


def over_seeds(
    methods: Mapping[str, Method], folder: Path, seeds: Sequence[int], jobs: int
) -> dict[str, list[Result]] | None:
    """Train each method with each seed; results by name, in the order of seeds. See `complete`.

    Completes all methods for one seed before the next, so that results can be compared after an
    interruption. Raises ValueError if seeds are repeated or empty.
    """
    if not seeds:
        raise ValueError("seeds is empty: give at least one")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must differ, got {', '.join(map(str, seeds))}; drop the repeats")
    runs = [
        Run(f"{name}-seed{seed}", method.updated({"seed": seed}))
        for seed in seeds
        for name, method in methods.items()
    ]
    results = complete(runs, folder, jobs)
    if results is None:
        return None
    return {name: [results[f"{name}-seed{seed}"] for seed in seeds] for name in methods}


def _found(folder: Path, method: Method) -> Result | None:
    """Return the result of a complete run with these settings."""
    settings = folder / SETTINGS
    if settings.is_file():
        _require_same(method, json.loads(settings.read_text()), folder)
    elif Checkpoints(folder).any() or (folder / RESULT).is_file():
        raise ValueError(f"{folder} holds a run that is not a study's; choose another --folder")
    return _collected(folder) if (folder / MEASURES).is_file() else None


def _require_same(method: Method, found: dict[str, Any], folder: Path) -> None:
    if "ablation" not in found:
        raise ValueError(f"{folder} was made by another version; choose another --folder")
    check_same_settings(method.config, found["config"], folder)
    ours = method.config.to_dict()["data"] | {"ablation": method.ablation}
    theirs = found["config"]["data"] | {"ablation": found["ablation"]}
    for name in sorted(DECISIVE_HERE | {"ablation"}):
        if ours[name] != theirs.get(name):
            raise ValueError(
                f"{folder} was made with {name.replace('_', '-')} {theirs.get(name)!r}, now it is "
                f"{ours[name]!r}; choose another --folder"
            )


def write_measures(folder: Path, measures: Measures) -> None:
    """Write the last file of a run, which marks the run as complete."""
    write_atomic(folder / MEASURES, json.dumps(measures) + "\n")


def _collected(folder: Path) -> Result:
    result = read_result(folder)
    assert result is not None
    return {**result, "measures": json.loads((folder / MEASURES).read_text())}


def _start(method: Method, folder: Path, jobs: int) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / SETTINGS, json.dumps(method.to_dict(), indent=2) + "\n")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with (folder / OUTPUT).open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-c", START.format(sys.path, WORKER), str(folder)],
            stdin=subprocess.PIPE,  # never written to: its end shows that this process has ended
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            # The study gets the terminal's Ctrl-C and passes it on once.
            start_new_session=True,
        )


def _require_success(process: subprocess.Popen[bytes], folder: Path) -> None:
    process.communicate()  # closes its input
    if process.returncode == 0:
        return
    lines = (folder / OUTPUT).read_text(errors="replace").replace("\r", "\n").splitlines()
    last = "\n".join(lines[-10:])
    killed = " (killed, perhaps out of memory: try fewer --jobs)"
    raise RunFailed(
        f"{folder.name} ended with status {process.returncode}"
        f"{killed if process.returncode == -signal.SIGKILL else ''}; its last lines, all in "
        f"{folder / OUTPUT}:\n{last}"
    )


def _summary(folder: Path) -> str:
    result = _collected(folder)
    validation = result["metrics"]["validation"]
    metric = next(iter(validation))
    return (
        f"{folder.name}: validation {metric} {100 * validation[metric]:.1f}, "
        f"{result['train_seconds']:.0f} s"
    )


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Make the processes save their state and end, and wait for them."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        process.communicate()
