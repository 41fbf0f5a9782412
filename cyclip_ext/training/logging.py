"""The numbers of a run: averages between records, the log file, trackers and a profile."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.profiler import profile, schedule
from tqdm import tqdm

from .._files import read_text, write_atomic
from .config import SetupError, TrainConfig

Values = dict[str, float]

UNPROFILED_STEPS = 3  # the first steps allocate and compile


class Window:
    """Means over the steps since the last record; construction starts the clock.

    Values are summed on their device, in float64. A GPU is read once per record.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = weights  # of the loss's terms: weighted value / weight = raw value
        self.names: tuple[str, ...] = ()
        self.sums: Tensor | None = None  # float64 [2, number of names]: sums and counts
        self.steps = 0
        self.images = 0  # of all ranks
        self.waited = 0.0
        self.start = time.perf_counter()

    def add(self, names: Iterable[str], values: Tensor) -> None:
        """Add the loss terms and measurements of a step, float64 [K].

        Values that are not finite are not counted: the margin of a lone pair, a float16 overflow.
        """
        finite = values.isfinite()
        rows = torch.stack([torch.where(finite, values, 0.0), finite.double()])
        self.sums = rows if self.sums is None else self.sums + rows
        self.names = tuple(names)
        self.steps += 1

    def record(self) -> Values:
        """Return the means: each term weighted, and raw as <term>_raw if its weight is not 1.

        loss is the sum of the weighted terms, data_wait the share of the time in which a step
        waited for its batch.
        """
        seconds = time.perf_counter() - self.start
        sums, counts = self.sums.tolist() if self.sums is not None else ([], [])
        means = {
            name: total / count
            for name, total, count in zip(self.names, sums, counts, strict=True)
            if count
        }
        raw = {
            f"{name}_raw": means[name] / weight
            for name, weight in self.weights.items()
            if weight != 1 and name in means
        }
        return {
            "loss": sum(value for name, value in means.items() if name.endswith("_loss")),
            **means,
            **raw,
            "images_per_second": self.images / seconds,
            "data_wait": self.waited / seconds,
        }


def progress_bar(total: int, done: int, label: str, shown: bool) -> tqdm[Any]:
    """Return a bar that counts steps."""
    return tqdm(
        total=total,
        initial=done,
        desc=label,
        unit="step",
        dynamic_ncols=True,
        mininterval=0.5,
        disable=not shown,
    )


def one_line(record: Values) -> str:
    """Return weighted loss terms, temperature and speed, for the progress bar."""
    terms = [
        f"{name.removesuffix('_loss').replace('_', '-')} {value:.3f}"
        for name, value in record.items()
        if name.endswith("_loss")
    ]
    scale, speed = record["logit_scale"], record["images_per_second"]
    return f"{' + '.join(terms)}, scale {scale:.1f}, {speed:.0f} images/s"


class Tracker(Protocol):
    """Receiver of the numbers of a step."""

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Write a record of one of the kinds of MetricsLog."""
        ...

    def close(self) -> None:
        """Close the tracker."""
        ...


class MetricsLog:
    """A file with one JSON object per line: its kind, the step, and values.

    Kinds: "train", "validation" and "evaluation" have numbers; "data", "other_data", "skipped" and
    "shortened" have counts of records.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append a record. Raises OSError, with the name of the file, if the disk is full."""
        line = json.dumps({"kind": kind, "step": step, **values}) + "\n"
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def close(self) -> None:
        """Do nothing: every record is in the file already."""

    def read(self, kind: str) -> list[dict[str, Any]]:
        """Return all records of a kind, in order."""
        return [record for record in self._records() if record["kind"] == kind]

    def truncate(self, step: int, again: Collection[str]) -> None:
        """Drop the records that a run resumed at `step` writes again.

        These are the later ones, and those of `step` itself of the kinds in `again`.
        """
        remaining = [
            record
            for record in self._records()
            if record["step"] <= step and not (record["step"] == step and record["kind"] in again)
        ]
        write_atomic(self.path, "".join(json.dumps(record) + "\n" for record in remaining))

    def _records(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        records = []
        for line in read_text(self.path).splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:  # the torn last line of a killed run
                break
        return records


class TensorBoard:
    """Scalars for `tensorboard --logdir`; a resumed run replaces the records after its step."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder), purge_step=step)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Write scalars under the names of `_scalars`."""
        for name, value in _scalars(kind, values).items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the file."""
        self.writer.close()


class WandB:
    """A run of a Weights & Biases project, named after the run folder and continued on resume."""

    def __init__(self, project: str, folder: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise SetupError(
                f"--wandb {project} needs the package: pip install wandb, or omit the flag"
            ) from None
        name = folder.resolve().name
        self.run: Any = wandb.init(
            project=project,
            name=name,
            id=name,
            dir=str(folder),
            config=dict(config),
            resume="allow",
        )

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Log scalars under the names of `_scalars`."""
        self.run.log(_scalars(kind, values), step=step)

    def close(self) -> None:
        """Mark the run as ended."""
        self.run.finish()


def optional_trackers(config: TrainConfig, folder: Path, step: int) -> list[Tracker]:
    """Return TensorBoard and Weights & Biases as far as the settings have them."""
    trackers: list[Tracker] = []
    if config.run.tensorboard:
        try:
            trackers.append(TensorBoard(folder / "tensorboard", step))
        except ImportError:
            print("  no TensorBoard files: pip install tensorboard, or pass --no-tensorboard")
    if config.run.wandb is not None:
        trackers.append(WandB(config.run.wandb, folder, config.to_dict()))
    return trackers


def profiler(steps: int | None, path: Path) -> AbstractContextManager[profile | None]:
    """Return a profiler of some steps, which writes a trace for Perfetto or chrome://tracing."""
    if steps is None:
        return nullcontext()

    def write(profiler: profile) -> None:
        profiler.export_chrome_trace(str(path))
        tqdm.write(f"  profile of {steps} steps: {path}")

    plan = schedule(wait=UNPROFILED_STEPS - 1, warmup=1, active=steps, repeat=1)
    return profile(schedule=plan, on_trace_ready=write)


def _scalars(kind: str, values: Mapping[str, Any]) -> Values:
    """Return numbers under the names kind/name, or kind/dataset/name for an evaluation."""
    group = f"{kind}/{values['dataset']}" if "dataset" in values else kind
    return {f"{group}/{k}": v for k, v in values.items() if isinstance(v, (int, float))}
