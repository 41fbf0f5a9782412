"""One run from settings to report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median_high
from typing import Any

import torch

from .. import libraries
from .._files import write_atomic
from .._normalization import MEAN, STD
from .._output import counted
from ..data import SkipReport
from ..models import CreatedModel, create_model
from ..models.trained import load_weights
from .checkpoint import Checkpoints, State
from .config import TrainConfig
from .data import RunData, record_counts
from .folder import RESULT
from .logging import optional_trackers
from .objective import ObjectiveFactory, make_objective
from .ranks import ALONE, Ranks
from .report import plot_results, plot_training, write_run_report
from .trainer import Trainer


def run_training(
    config: TrainConfig,
    data: RunData,
    folder: Path,
    resume: State | None = None,
    ranks: Ranks = ALONE,
    objective: ObjectiveFactory = make_objective,
) -> dict[str, Any] | None:
    """Train, evaluate and report in `folder`; return the content of its result.json.

    resume: a loaded checkpoint to continue from. objective: makes the loss, by default from the
    settings. Returns None after an interruption; checkpoints/last.pt then has the state. A folder
    with neither a checkpoint nor a result is used for a new run. All ranks call this; the main one
    measures and writes, and all return the same result.

    Raises DivergedError if loss or gradient are not finite, FileExistsError if the folder holds a
    run that is not being resumed.
    """
    # Every rank looks before the main one writes.
    taken = resume is None and (Checkpoints(folder).any() or (folder / RESULT).is_file())
    if any(ranks.gathered(taken)):
        raise FileExistsError(
            f"{folder} holds a run already: continue it with --resume {folder}, or choose a --name"
        )
    torch.manual_seed(config.run.seed)
    created = create_model(
        config.run.model, sigmoid=config.loss.loss == "siglip", tokenizer=config.run.tokenizer
    )
    if config.run.pretrained is not None and resume is None:
        _start_from(config.run.pretrained, created)
    trainer = Trainer(config, data, created, folder, ranks, objective)
    if resume is not None:
        trainer.restore(resume)
    if ranks.is_main:
        # Only now: settings that cannot work leave no folder behind.
        trainer.checkpoints.prepare()
        write_atomic(folder / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
        if resume is None:  # killed before its first checkpoint, a run leaves records of lost steps
            trainer.log.path.unlink(missing_ok=True)
        elif (folder / RESULT).is_file() and trainer.step < trainer.total_steps:
            # Finished once, and continued for more epochs.
            (folder / RESULT).replace(folder / f"result-epoch-{trainer.epoch:04d}.json")
        if resume is None:
            trainer.track("data", **data.counts())
        trainer.trackers.extend(optional_trackers(config, folder, trainer.step))
    _announce(trainer)
    try:
        if not trainer.fit():
            ranks.say(f"interrupted at step {trainer.step}")
            return None
        result: dict[str, Any] | None = None
        if ranks.is_main:
            result = _finish(trainer, trainer.seconds)
        return ranks.gathered(result)[0]
    finally:
        trainer.loader.close()
        for tracker in trainer.trackers:
            tracker.close()


def _start_from(weights: str, created: CreatedModel) -> None:
    """Load pretrained weights. Raises ValueError if they take images of another normalization."""
    expected = load_weights(created, weights)
    for name, ours in (("mean", MEAN), ("std", STD)):
        theirs = tuple(expected.get(name, ours))
        if theirs != ours:
            raise ValueError(
                f"--pretrained {weights} expects images whose {name} is {theirs}, but training "
                f"normalizes them with {ours}; choose other weights"
            )


def _announce(trainer: Trainer) -> None:
    """Print a summary of the run in three lines."""
    config, created, ranks = trainer.config, trainer.created, trainer.ranks
    processes = f", {ranks.size} processes" if ranks.size > 1 else ""
    parts = f" in {config.data.accum_freq} parts" if config.data.accum_freq > 1 else ""
    ranks.say(f"\n{trainer.objective.label}, seed {config.run.seed} -> {trainer.folder}")
    ranks.say(
        f"  model {created.name}: {created.parameters:,} parameters, images of "
        f"{created.image_size} pixels, tokenizer {created.tokenizer_name}; "
        f"{trainer.precision} on {trainer.device}{processes}, {torch.get_num_threads()} threads; "
        f"losses: {backend_line(trainer.device)}"
    )
    ranks.say(
        f"  {counted(config.run.epochs, 'epoch')} of "
        f"{trainer.steps_per_epoch} steps of {trainer.global_batch} pairs{parts}; "
        f"step {trainer.step} of {trainer.total_steps}"
    )


def _finish(trainer: Trainer, trained: float) -> dict[str, Any]:
    """Evaluate a trained model and write tables, plots and result.json."""
    config, created, data, folder = trainer.config, trainer.created, trainer.data, trainer.folder
    start = time.perf_counter()
    results = trainer.assessor.evaluate(data)
    evaluated = time.perf_counter() - start
    for name, metrics in results.items():
        trainer.track("evaluation", dataset=name, **metrics)
    records = trainer.log.read("train")
    speed, data_wait = (
        median_high([record[name] for record in records] or [0.0])
        for name in ("images_per_second", "data_wait")
    )
    label = trainer.objective.label
    counts = _record_counts(trainer)
    other_data = [record["step"] for record in trainer.log.read("other_data")]
    result = {
        "label": label,
        "seed": config.run.seed,
        "logit_scale": trainer.logit_scale,
        "images_per_second": speed,
        "data_wait": data_wait,
        "train_seconds": trained,
        "evaluation_seconds": evaluated,
        "records": counts,
        "resumed_on_other_data": other_data,
        "metrics": results,
    }
    plot_training(trainer.log, folder / "training.png", label)
    plot_results({label: [results]}, folder / "results.png", label)
    facts = {
        "data": data.description.replace("\n", "\n  "),
        "model": f"{created.name}, {created.parameters:,} parameters",
        "steps": f"{trainer.step:,} of {trainer.global_batch} pairs, seed {config.run.seed}",
        "final logit scale": f"{trainer.logit_scale:.1f}",
        "time": f"{trained:.0f} s training (median {speed:.0f} images/s, {100 * data_wait:.1f}% of "
        "the time waiting for data), "
        f"{evaluated:.0f} s evaluation, {trainer.precision} on {trainer.device}",
    }
    for name, count in counts.items():
        if name == "training" or count["skipped"]:
            facts[f"{name} records"] = (
                f"{count['used']:,} used, {SkipReport.from_dict(count['skipped'])}"
            )
    if trainer.shortened:
        facts["captions cut before tokenizing"] = f"{trainer.shortened:,}"
    if other_data:
        facts["resumed on other data"] = f"at step {', '.join(map(str, other_data))}"
    if trainer.skipped_steps:
        facts["steps skipped, not finite"] = str(trainer.skipped_steps)
    write_run_report(folder, label, results, facts)
    write_atomic(folder / RESULT, json.dumps(result, indent=2) + "\n")
    return result


def _record_counts(trainer: Trainer) -> dict[str, dict[str, Any]]:
    """Return the records used and skipped in training and in each evaluation dataset.

    Training skips those that opening could not use and those that the last epoch could not read.
    """
    skipped = SkipReport()
    skipped.merge(SkipReport.from_dict(trainer.data.counts()["training"]["skipped"]))
    skipped.merge(trainer.skipped)
    training = record_counts(len(trainer.data.train) - trainer.skipped.total, skipped)
    if trainer.shortened:
        training["shortened_captions"] = trainer.shortened
    return {"training": training, **trainer.assessor.counts}


def backend_line(device: torch.device) -> str:
    """Return the implementation of the losses for tensors on this device."""
    if libraries.has_operator("pair_statistics", device.type):
        return "native kernels"
    status = libraries.backend_status().get(device.type)
    reason = status.reason if status is not None and status.reason else "no kernels for this device"
    return f"plain PyTorch ({reason})"
