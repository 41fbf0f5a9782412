"""One run from settings to report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from .. import ops
from ..models import create_model
from .checkpoint import LAST, load_checkpoint
from .config import TrainConfig
from .loop import Trainer
from .report import plot_results, plot_training, write_run_report
from .sources import RunData

RESULT = "result.json"  # written last: its presence says that a run is complete


def run_training(
    config: TrainConfig, data: RunData, folder: Path, resume: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    """Train, evaluate and report in `folder`; the content of its result.json.

    resume: a loaded checkpoint to continue from. None after an interruption; checkpoints/last.pt
    then has the state. A folder with neither a checkpoint nor a result is started anew.

    Raises DivergedError where the loss is not finite, FileExistsError where the folder holds a run
    that is not being resumed.
    """
    if resume is None and (_last(folder).is_file() or (folder / RESULT).is_file()):
        raise FileExistsError(
            f"{folder} holds a run already: continue it with --resume {folder}, or choose a --name"
        )
    torch.manual_seed(config.run.seed)
    created = create_model(config.run.model, sigmoid=config.loss.loss == "siglip")
    trainer = Trainer(config, data, created, folder)
    # Only now: settings that cannot work leave no folder behind.
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    if resume is not None:
        trainer.restore(resume)
    else:  # killed before its first checkpoint, a run leaves records of steps that are lost
        trainer.log.path.unlink(missing_ok=True)
    print(f"\n{config.label()}, seed {config.run.seed} -> {folder}")
    print(
        f"  model {created.name}: {created.parameters:,} parameters, pictures of "
        f"{created.image_size} pixels; {trainer.precision} on {trainer.device}, "
        f"{torch.get_num_threads()} threads; losses: {backend_line(trainer.device)}"
    )
    print(
        f"  {config.run.epochs} epochs of {trainer.steps_per_epoch} steps of "
        f"{config.data.batch_size} pairs; step {trainer.step} of {trainer.total_steps}"
    )
    start = time.perf_counter()
    if not trainer.fit():
        print(f"interrupted at step {trainer.step}")
        return None
    trained = time.perf_counter() - start
    if trainer.loader.skipped.total:
        print(f"  training data: {trainer.loader.skipped}")
    results = trainer.assessor.evaluate(data)
    evaluated = time.perf_counter() - start - trained
    for name, metrics in results.items():
        trainer.log.write("evaluation", trainer.step, set=name, **metrics)
    speed = [record["images_per_second"] for record in trainer.log.read("train")]
    result = {
        "label": config.label(),
        "seed": config.run.seed,
        "logit_scale": trainer.logit_scale,
        "images_per_second": sorted(speed)[len(speed) // 2] if speed else 0.0,
        "train_seconds": trained,
        "evaluation_seconds": evaluated,
        "metrics": results,
    }
    label = config.label()
    plots = plot_training(trainer.log, folder / "training.png", label)
    plots = plot_results({label: [results]}, folder / "results.png", label) and plots
    facts = {
        "data": data.description.replace("\n", "\n  "),
        "model": f"{created.name}, {created.parameters:,} parameters",
        "steps": f"{trainer.step:,} of {config.data.batch_size} pairs, seed {config.run.seed}",
        "final logit scale": f"{result['logit_scale']:.1f}",
        "time": f"{trained:.0f} s training (median {result['images_per_second']:.0f} images/s), "
        f"{evaluated:.0f} s evaluation, {trainer.precision} on {trainer.device}",
    }
    write_run_report(folder, config.label(), results, facts, plots)
    (folder / RESULT).write_text(json.dumps(result, indent=2) + "\n")
    if not plots:
        print("  no plots: matplotlib is missing (pip install 'cyclip_ext[train]')")
    return result


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a complete run, else None."""
    path = folder / RESULT
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def resume_state(folder: Path) -> dict[str, Any] | None:
    """The last checkpoint in a run folder, None where there is none yet."""
    return load_checkpoint(folder) if _last(folder).is_file() else None


def _last(folder: Path) -> Path:
    return folder / "checkpoints" / LAST


def backend_line(device: torch.device) -> str:
    """Which implementation of the losses tensors on this device get."""
    status = ops.backend_status().get(device.type)
    if status is not None and status.loaded and ops.has_operator("pair_statistics", device.type):
        return "native kernels"
    reason = status.reason if status is not None and status.reason else "no kernels for this device"
    return f"plain PyTorch ({reason})"
