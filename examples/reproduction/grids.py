"""Studies of one or two settings: data size, batch size with temperature or with weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cyclip_ext import CyCLIPLoss
from cyclip_ext.evaluation.tasks import Plot, Table
from cyclip_ext.training.compare import MARGIN
from cyclip_ext.training.config import TrainConfig
from cyclip_ext.training.report import of_seeds

from . import claims as c
from .pages import Part, write_page
from .plots import plot_lines
from .reproduce import OBJECTIVES, TUNED
from .reproduction_page import NAMES
from .runs import Method, Result, over_seeds
from .values import Value

# The page shows the first of these that exist in the runs; file datasets have no classes.
SHOWN = (
    *(c.SHIFTED, c.HELD_OUT, c.MARGIN, c.CONSISTENCY),
    Value("text to image R@1", "validation", "image_retrieval_recall@1"),
    Value("image to text R@1", "validation", "text_retrieval_recall@1"),
)
PANELS = 4

Grid = dict[tuple[str, float], Method]  # (line, position) -> settings


def data_size(
    base: TrainConfig,
    folder: Path,
    *,
    fractions: Sequence[float] = (0.1, 0.25, 0.5, 1.0),
    objectives: Sequence[str] = ("clip", "cyclip"),
    same_steps: bool = False,
    seeds: Sequence[int] = (0, 1, 2),
    jobs: int = 2,
) -> bool:
    """Train on fractions of the data, as Goel et al. 2022 in figure 4: page and plot in `folder`.

    Smaller fractions are subsets of larger ones. objectives: names in OBJECTIVES; those with a
    margin use the weight of `base`, or 0.1. same_steps: train smaller fractions for more epochs, so
    that all take the same steps except for incomplete last batches; otherwise all take the same
    epochs. Returns False after an interruption; the same call continues.
    """
    grid: Grid = {}
    for name in objectives:
        for fraction in fractions:
            with_margin = name in TUNED and TUNED[name][0] == ("margin",)
            method = Method(base).updated(
                {
                    "margin": (base.loss.margin or MARGIN) if with_margin else 0.0,
                    "train_fraction": fraction,
                    **OBJECTIVES[name],
                }
            )
            if same_steps:
                method = method.updated({"epochs": round(base.run.epochs / fraction)})
            grid[NAMES[name], fraction] = method
    steps = "about equal steps" if same_steps else "equal epochs"
    intro = f"Trained on fractions of the pairs, the smaller within the larger, {steps} each."
    return _run(
        grid, folder, "Size of the data", intro, "fraction of the training pairs", seeds, jobs
    )


def batch_and_temperature(
    base: TrainConfig,
    folder: Path,
    *,
    batch_sizes: Sequence[int] = (64, 128, 256),
    scales: Sequence[float] = (10.0, 30.0, 100.0),
    seeds: Sequence[int] = (0, 1, 2),
    jobs: int = 2,
) -> bool:
    """Train at fixed temperatures with several batch sizes, as Chen et al. 2024 do.

    All runs have the same epochs and learning rate. Margins are measured in batches of one size, so
    that they can be compared. scales: logit scales, 1 / temperature. Returns like data_size.
    """
    grid = {
        (f"batch {size}", scale): Method(base).updated(
            {"batch_size": size, "logit_scale_fixed": scale}
        )
        for size in batch_sizes
        for scale in scales
    }
    intro = "The logit scale is held; equal epochs and learning rate for each batch size."
    return _run(
        grid,
        folder,
        "Batch size and temperature",
        intro,
        "logit scale (1 / temperature)",
        seeds,
        jobs,
    )


def batch_weights(
    base: TrainConfig,
    folder: Path,
    *,
    batch_sizes: Sequence[int] = (64, 128, 256, 512, 1024),
    seeds: Sequence[int] = (0, 1, 2),
    jobs: int = 2,
) -> bool:
    """Train with the same weights of the cycle terms, and with those of CyCLIPLoss.for_batch.

    All runs have the same epochs and learning rate. The weights of `base` belong to batches of 128.
    CLIP shows what a batch size changes without cycle terms. Returns like data_size.
    """
    grid: Grid = {}
    for size in batch_sizes:
        carried = CyCLIPLoss.for_batch(
            size, in_modal=base.loss.in_modal, cross_modal=base.loss.cross_modal
        )
        method = Method(base).updated({"batch_size": size})
        grid["CLIP", size] = method.updated({"loss": "clip"})
        grid["CyCLIP", size] = method
        grid["CyCLIP for batch", size] = method.updated(
            {"in_modal": carried.in_modal, "cross_modal": carried.cross_modal}
        )
    intro = "Cycle terms with the same weights, and with those of `CyCLIPLoss.for_batch`."
    return _run(grid, folder, "Weights and batch size", intro, "batch size", seeds, jobs)


def _run(
    grid: Grid,
    folder: Path,
    title: str,
    intro: str,
    xlabel: str,
    seeds: Sequence[int],
    jobs: int,
) -> bool:
    first_of: dict[Method, str] = {}  # equal settings are trained once
    names = {
        key: first_of.setdefault(
            method, re.sub(r"[^a-z0-9.]+", "-", f"{key[0]}-{key[1]:g}".lower())
        )
        for key, method in grid.items()
    }
    results = over_seeds({names[key]: method for key, method in grid.items()}, folder, seeds, jobs)
    if results is None:
        return False
    runs = {key: results[name] for key, name in names.items()}
    first = next(iter(runs.values()))[0]
    values = [value for value in SHOWN if value.has(first)][:PANELS]
    lines: dict[str, dict[float, list[Result]]] = {}
    for (line, position), own in runs.items():
        lines.setdefault(line, {})[position] = own
    parts: list[Part] = [
        f"{intro} {of_seeds(seeds)}.",
        Plot(
            "lines",
            "Means, bands of one sample deviation if there are several seeds, and seeds as points.",
            partial(plot_lines, lines=lines, values=values, xlabel=xlabel, log=True),
            (8.0, 6.4 if len(values) > 2 else 3.6),
        ),
        *(_table(lines, value, xlabel) for value in values),
    ]
    write_page(folder / "report.md", title, {"": parts})
    print(f"written to {folder / 'report.md'}")
    return True


def _table(lines: dict[str, dict[float, list[Result]]], value: Value, xlabel: str) -> Table:
    positions = list(next(iter(lines.values())))
    rows = tuple(
        (name, *(value.cell(runs) for runs in own.values())) for name, own in lines.items()
    )
    title = value.heading + (", percent" if value.percent else "") + f"; columns: {xlabel}"
    return Table(title, ("", *(f"{position:g}" for position in positions)), rows)
