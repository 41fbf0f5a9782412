"""The same training with four losses, over seeds: one table and one plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .checkpoint import Checkpoints
from .config import FREE_ON_RESUME, TrainConfig
from .ranks import ALONE, Ranks
from .report import comparison_table, plot_results
from .run import read_result, run_training
from .sources import RunData

MARGIN = 0.1  # where --margin is not given


def comparison(config: TrainConfig) -> dict[str, TrainConfig]:
    """Short name -> settings: CLIP, CyCLIP, CyCLIP + margin, and CLIP with the scale held at 100.

    The last is the temperature's control: cycle consistency drives the logit scale to its bound,
    and part of what it gains is due to that.
    """
    cyclip = replace(config.loss, loss="cyclip", margin=0.0, hinge=0.0)
    losses = {
        "clip": replace(cyclip, loss="clip"),
        "cyclip": cyclip,
        "cyclip-margin": replace(cyclip, margin=config.loss.margin or MARGIN),
        "clip-scale-100": replace(cyclip, loss="clip"),
    }
    configs = {}
    for name, loss in losses.items():
        held = 100.0 if name == "clip-scale-100" else None
        optim = replace(config.optim, logit_scale_fixed=held)
        configs[name] = replace(config, loss=loss, optim=optim)
    return configs


def run_comparison(
    config: TrainConfig,
    data: RunData,
    folder: Path,
    seeds: Sequence[int],
    ranks: Ranks = ALONE,
) -> bool:
    """All four trainings for each seed, then table and plot in `folder`. False if interrupted.

    Runs that are complete are not repeated and an interrupted one is continued, so that the same
    command resumes the whole. Table and plot are renewed after each seed.

    Raises ValueError where a run in the folder was made with other settings, or a seed is repeated.
    """
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds must differ, got {', '.join(map(str, seeds))}; drop the repeats")
    collected: dict[str, list[dict[str, Any]]] = {}
    for seed in seeds:
        for name, method in comparison(config).items():
            method = replace(method, run=replace(method.run, seed=seed))
            result = _complete(method, data, folder / f"{name}-seed{seed}", ranks)
            if result is None:
                ranks.say("give the same --compare command again to continue")
                return False
            collected.setdefault(method.label(), []).append(result)
        if ranks.is_main:
            _report(collected, folder, data)
            print(f"\n{(folder / 'report.md').read_text()}\nwritten to {folder}")
    return True


def _complete(
    config: TrainConfig, data: RunData, folder: Path, ranks: Ranks
) -> dict[str, Any] | None:
    """A run's result: as found, or by starting or continuing the run."""
    state = Checkpoints(folder).newest(ranks.say)
    if state is not None:
        check_same_settings(config, state["config"], folder)
        batch = config.data.pairs_per_step * ranks.size
        if state["global_batch"] != batch:
            raise ValueError(
                f"{folder} was made with {state['global_batch']} pairs in a step, now {batch}; "
                "choose another --name"
            )
    # Gathered: every rank has looked before one of them goes on and writes.
    found = ranks.gathered(read_result(folder))[0]
    return found or run_training(config, data, folder, state, ranks)


def check_same_settings(config: TrainConfig, found: dict[str, Any], folder: Path) -> None:
    """Raises ValueError where a checkpoint's settings differ in what changes the result."""
    ours, theirs = _decisive(config.to_dict()), _decisive(found)
    differing = [key for key in ours if ours[key] != theirs.get(key)]
    if differing:
        listed = ", ".join(f"{key} {theirs.get(key)!r} (now {ours[key]!r})" for key in differing)
        raise ValueError(
            f"{folder} was made with other settings: {listed}; leave them out, or choose another "
            "--name (a study: --folder)"
        )


def _decisive(config: dict[str, Any]) -> dict[str, Any]:
    """Flat settings without those that do not decide what is learned."""
    flat = {key: value for section in config.values() for key, value in section.items()}
    return {key: value for key, value in flat.items() if key not in FREE_ON_RESUME}


def _report(collected: dict[str, list[dict[str, Any]]], folder: Path, data: RunData) -> None:
    metrics = {label: [run["metrics"] for run in runs] for label, runs in collected.items()}
    seeds = [run["seed"] for run in next(iter(collected.values()))]
    scales = {
        label: ", ".join(f"{run['logit_scale']:.0f}" for run in runs)
        for label, runs in collected.items()
    }
    times = [run["train_seconds"] for runs in collected.values() for run in runs]
    listed = ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))
    title = f"Comparison on {data.train.name.split('/')[0]}, {listed}"
    lines = [
        f"# {title}",
        "",
        "Percent; mean ± sample deviation over seeds.",
        "",
        comparison_table(metrics),
        "",
        "Final logit scales: " + "; ".join(f"{k}: {v}" for k, v in scales.items()) + ".",
        f"Training time per run: {min(times):.0f} to {max(times):.0f} s.",
        "",
    ]
    if plot_results(metrics, folder / "results.png", title):
        lines += ["![results](results.png)", ""]
    (folder / "report.md").write_text("\n".join(lines))
    (folder / "results.json").write_text(json.dumps(collected, indent=2) + "\n")
