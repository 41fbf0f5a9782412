"""Where a run's numbers go: JSON lines always, TensorBoard and Weights & Biases beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from threading import get_ident
from typing import Any, Protocol

from .config import SetupError


class Tracker(Protocol):
    """Takes the numbers of a step."""

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """kind: "train", "validation" or "evaluation"."""
        ...

    def close(self) -> None:
        """Nothing is written after this."""
        ...


def write_whole(path: Path, text: str) -> None:
    """There wholly or not at all, should the process be killed or the disk be full."""
    writer = f"{os.getpid()}-{get_ident()}"  # another process or thread may write it as well
    temporary = path.with_name(f".{path.name}.{writer}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


class MetricsLog:
    """One JSON object per line: kind ("train", "validation", "evaluation"), step, values."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append a record."""
        with self.path.open("a") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")

    def close(self) -> None:
        """Every record is in the file already."""

    def read(self, kind: str) -> list[dict[str, Any]]:
        """All records of a kind, in order."""
        return [record for record in self._records() if record["kind"] == kind]

    def truncate(self, step: int, again: Collection[str]) -> None:
        """Drop what a run resumed at `step` logs again: what came later, and of `step` the kinds
        in `again`.
        """
        kept = [
            record
            for record in self._records()
            if record["step"] <= step and not (record["step"] == step and record["kind"] in again)
        ]
        write_whole(self.path, "".join(json.dumps(record) + "\n" for record in kept))

    def _records(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:  # the torn last line of a killed run
                break
        return records


class TensorBoard:
    """Scalars for `tensorboard --logdir`; what a resumed run logs again replaces the former."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder), purge_step=step)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """See `_scalars` for the names."""
        for name, value in _scalars(kind, values).items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the file."""
        self.writer.close()


class WandB:
    """A run of a Weights & Biases project, continued where it has the run folder's name."""

    def __init__(self, project: str, folder: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise SetupError(
                f"--wandb {project} needs the package: pip install wandb, or leave the flag out"
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
        """See `_scalars` for the names."""
        self.run.log(_scalars(kind, values), step=step)

    def close(self) -> None:
        """Mark the run as ended."""
        self.run.finish()


def _scalars(kind: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Numbers as kind/name; of the evaluation on a set, as kind/set/name."""
    group = f"{kind}/{values['set']}" if "set" in values else kind
    return {f"{group}/{k}": v for k, v in values.items() if isinstance(v, (int, float))}
