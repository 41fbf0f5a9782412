"""Comparison of four losses over several seeds, in one table and one plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .._files import write_atomic
from .config import TrainConfig
from .data import RunData
from .folder import check_same_settings, locked, newest_state, read_result, require_same_run
from .ranks import ALONE, Ranks
from .report import comparison_table, of_seeds, plot_results
from .run import run_training

MARGIN = 0.1  # unless --margin is given


def comparison(config: TrainConfig) -> dict[str, TrainConfig]:
    """Return settings by short name: CLIP, CyCLIP, with margin, and CLIP with a held scale of 100.

    The last one controls for the temperature: cycle consistency drives the logit scale to its
    bound, which explains a part of its gain.
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
    config: TrainConfig, data: RunData, folder: Path, seeds: Sequence[int], ranks: Ranks = ALONE
) -> bool:
    """Train all four for each seed, then write table and plot in `folder`. False if interrupted.

    Complete runs are not repeated and an interrupted one is continued, so the same command resumes
    the comparison. Table and plot are renewed after each seed.

    Raises ValueError if a run in the folder was made with other settings, or a seed is repeated.
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
    """Return the result of a run, which is started or resumed unless it is complete."""
    with locked(folder, ranks):
        state = newest_state(folder, ranks)
        if state is not None:
            check_same_settings(config, state["config"], folder)
        # Gathered: every rank has looked before one of them goes on and writes.
        found = ranks.gathered(read_result(folder))[0]
        if found is None:
            return run_training(config, data, folder, state, ranks)
        if state is not None:
            require_same_run(
                state,
                objective=config.label(),
                pairs=config.data.pairs_per_step * ranks.size,
                fingerprints=data.fingerprints,
                folder=folder,
            )
        return found


def _report(collected: dict[str, list[dict[str, Any]]], folder: Path, data: RunData) -> None:
    metrics = {label: [run["metrics"] for run in runs] for label, runs in collected.items()}
    seeds = [run["seed"] for run in next(iter(collected.values()))]
    scales = {
        label: ", ".join(f"{run['logit_scale']:.0f}" for run in runs)
        for label, runs in collected.items()
    }
    times = [run["train_seconds"] for runs in collected.values() for run in runs]
    listed = ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))
    title = f"Comparison on {data.name}, {listed}"
    lines = [
        f"# {title}",
        "",
        f"{of_seeds(seeds)}, in percent.",
        "",
        comparison_table(metrics),
        "",
        "Final logit scales: " + "; ".join(f"{k}: {v}" for k, v in scales.items()) + ".",
        f"Training time per run: {min(times):.0f} to {max(times):.0f} s.",
        "",
    ]
    plot_results(metrics, folder / "results.png", title)
    lines += ["![results](results.png)", ""]
    write_atomic(folder / "report.md", "\n".join(lines))
    write_atomic(folder / "results.json", json.dumps(collected, indent=2) + "\n")
