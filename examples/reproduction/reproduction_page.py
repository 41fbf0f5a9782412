"""Write docs/reproduction.md from the results of `reproduce`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from cyclip_ext.evaluation.tasks import Plot, Table
from cyclip_ext.training.report import of_seeds

from . import claims as c
from .pages import existing_section, write_page
from .plots import plot_differences, plot_lines, plot_margin_shares
from .reproduce import SELECTION_SEED, SWEEP_SCALES, SWEEP_WEIGHTS, Choice, Reproduction
from .runs import Result
from .values import Value, difference_cells

NAMES = {
    "clip": "CLIP",
    "clip-scale-100": "CLIP, scale held at 100",
    "c-cyclip": "C-CyCLIP",
    "i-cyclip": "I-CyCLIP",
    "cyclip": "CyCLIP",
    "clip-margin": "CLIP + margin",
    "cyclip-margin": "CyCLIP + margin",
    "clip-both-sided": "CLIP + both-sided margin",
    "clip-negative-only": "CLIP + negative-only margin",
    "square": "square loss",
}
READING = "Reading"
ACCURACY = (c.SHIFTED, c.HELD_OUT, c.IN_DOMAIN, c.COARSE, c.FINE, c.CONSISTENCY, c.RETRIEVAL)
GEOMETRY = (
    *(c.SCALE, c.POSITIVE, c.NEGATIVE, c.MARGIN, c.GAP),
    *(c.UNIFORM_IMAGE, c.UNIFORM_TEXT, c.RANK_IMAGE, c.RANK_TEXT),
)
PAIRED = (c.SHIFTED, c.HELD_OUT, c.CONSISTENCY)
SWEPT = (c.SHIFTED, c.MARGIN, c.POSITIVE, c.GAP)


def write_reproduction(
    path: Path, found: Reproduction, settings: Mapping[str, object] | None = None
) -> None:
    """Write the page and its plots. All sentences follow from the numbers by rule.

    The exception is the section "Reading", which is written by hand and copied from the existing
    page. settings: the settings of training besides those of the study; the page lists them.
    """
    reading = existing_section(path, READING)
    runs = found.objectives
    named = {NAMES[key]: own for key, own in runs.items()}
    seeds = [str(run["seed"]) for run in runs["clip"]]
    write_page(
        path,
        "Reproduction on the default data",
        {
            "": [_opening(found, seeds, settings or {})],
            "The claims of the papers, and the results here": [
                c.claims_table(c.CLAIMS, runs, NAMES),
                _VERDICTS,
                _differences_plot(named),
            ],
            **({READING: [reading]} if reading else {}),
            "Accuracy": [_table(named, ACCURACY), _ACCURACY_NOTE],
            "Differences seed by seed": [
                _paired_table(runs, value, seeds) for value in PAIRED if value.has(runs["clip"][0])
            ],
            "Geometry": [_table(named, GEOMETRY), _GEOMETRY_NOTE, _margins_plot(named)],
            "The margin's weight over fixed temperatures": [
                _SWEEP_NOTE,
                *(_sweep_table(found, value) for value in (c.SHIFTED, c.MARGIN)),
                _sweep_differences(found, seeds),
                _sweep_plot(found),
            ],
            "How the settings were chosen": [_CHOICE_NOTE, _choices_table(found.choices)],
            "Limits": [_LIMITS],
        },
    )


def _opening(found: Reproduction, seeds: Sequence[str], settings: Mapping[str, object]) -> str:
    other = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())
    return (
        "    python examples/reproduce.py\n\n"
        f"Written by that command{f' with {other}' if other else ''}, which trains "
        f"{_trained(found)} small models and can be interrupted and called again. "
        f"{of_seeds(seeds)}. The models are trained on "
        '1,601 concepts in two vendors\' drawings ([data.md](data.md)); "shifted" are the same '
        'concepts drawn by four other vendors, "held-out" 204 concepts without a training image, '
        "drawn by those four. Settings were chosen on a fifth vendor, with another seed."
    )


def _trained(found: Reproduction) -> int:
    """Count the models: two objectives choose the learning rate, one chooses each weight."""
    chosen = sum(len(choice.scores) * (1 + (choice.objective == "all")) for choice in found.choices)
    stages = (found.objectives, found.sweep)
    return chosen + sum(len(runs) for stage in stages for runs in stage.values())


_VERDICTS = (
    "*shown*: the 95% t interval of the paired differences has the claimed sign; *every seed*: "
    "all seeds have this sign, and the interval contains zero; *opposite*: the interval has the "
    "other sign; *not shown*: none of these. A verdict applies to this model and these images; "
    f"one of {len(c.CLAIMS)} claims may be due to chance. Intervals of few seeds are wide: with "
    "three seeds, 2.5 sample deviations to either side. Source -: our own question, which neither "
    "paper addresses."
)
_ACCURACY_NOTE = (
    "In percent. Coarse: accuracy of the subgroup, each as near as its nearest concept; fine: "
    "accuracy of the concept among those of the true subgroup. Consistency: zero-shot and the "
    "nearest training image give the same concept, right or wrong. Retrieval is on the shifted "
    "vendors."
)
_GEOMETRY_NOTE = (
    "Measured on the shifted vendors, with the names of the concepts as texts. Uniformity is Wang "
    "and Isola's (lower is more uniform), the gap Liang et al.'s, the effective rank Roy and "
    "Vetterli's. Margins are S_ii - max S_ij in batches of 128, as in Chen et al.'s figure 3."
)
_SWEEP_NOTE = (
    "Chen et al.'s theory holds for a given temperature, so here the logit scale (1 / temperature) "
    "is fixed and CLIP is trained with several weights of the one-sided margin."
)
_CHOICE_NOTE = (
    f"The choice was made with seed {SELECTION_SEED}, by top-1 on the validation vendor's drawings "
    "of trained concepts: first one learning rate for all objectives, by the mean of CLIP and "
    "CyCLIP, then the weight of each objective. Differences of up to 1.5 points are within the "
    "variation of a single run."
)
_LIMITS = (
    "The runs have 3,041 training images, towers of 0.7 million (images) and 6.5 million "
    "parameters (texts), and batches of 128; the papers train on 2.6 to 12 million pairs. Few "
    "seeds reveal only large effects. Each weight was chosen from three values by one run. Natural "
    "distribution shifts are drawing styles here."
)


def _table(runs: Mapping[str, Sequence[Result]], values: Sequence[Value]) -> Table:
    shown = [value for value in values if value.has(next(iter(runs.values()))[0])]
    rows = tuple((name, *(value.cell(own) for value in shown)) for name, own in runs.items())
    return Table("", ("objective", *(value.heading for value in shown)), rows)


def _paired_table(
    runs: Mapping[str, Sequence[Result]], value: Value, seeds: Sequence[str]
) -> Table:
    rows = tuple(
        (f"{NAMES[key]} - CLIP", *difference_cells(value, own, runs["clip"]))
        for key, own in runs.items()
        if key != "clip"
    )
    header = ("difference", *(f"seed {seed}" for seed in seeds), "mean (95% interval)")
    return Table(f"{value.heading}, points", header, rows)


def _differences_plot(named: Mapping[str, Sequence[Result]]) -> Plot:
    return Plot(
        "differences",
        "Difference to CLIP: points are seeds, the bar their mean, the line its 95% interval. The "
        "square loss is omitted: it is far below.",
        lambda figure: plot_differences(
            figure,
            {name: own for name, own in named.items() if name != NAMES["square"]},
            NAMES["clip"],
            PAIRED,
        ),
        (9.0, 3.6),
    )


def _margins_plot(named: Mapping[str, Sequence[Result]]) -> Plot:
    return Plot(
        "margins",
        "Share of shifted images with a margin below the value, in batches of 128. Further right "
        "is better; images left of zero are misclassified in their batch.",
        partial(plot_margin_shares, runs=named, dataset="shifted"),
        (7.0, 4.4),
    )


def _sweep_table(found: Reproduction, value: Value) -> Table:
    rows = tuple(
        (f"{scale:g}", *(value.cell(found.sweep[scale, weight]) for weight in SWEEP_WEIGHTS))
        for scale in SWEEP_SCALES
    )
    header = ("logit scale", *(f"weight {weight:g}" for weight in SWEEP_WEIGHTS))
    return Table(value.heading + (", percent" if value.percent else ""), header, rows)


def _sweep_differences(found: Reproduction, seeds: Sequence[str]) -> Table:
    rows = tuple(
        (
            f"{scale:g}",
            f"{weight:g}",
            *difference_cells(c.SHIFTED, found.sweep[scale, weight], found.sweep[scale, 0.0]),
        )
        for scale in SWEEP_SCALES
        for weight in SWEEP_WEIGHTS
        if weight
    )
    header = (
        "logit scale",
        "weight",
        *(f"seed {seed}" for seed in seeds),
        "mean (95% interval)",
    )
    return Table(f"{c.SHIFTED.heading} with the margin - without, points", header, rows)


def _sweep_plot(found: Reproduction) -> Plot:
    lines = {
        f"logit scale {scale:g}": {weight: found.sweep[scale, weight] for weight in SWEEP_WEIGHTS}
        for scale in SWEEP_SCALES
    }
    return Plot(
        "sweep",
        "The margin's weight at three fixed temperatures, on the shifted vendors: means, one "
        "sample deviation, and seeds as points.",
        partial(plot_lines, lines=lines, values=SWEPT, xlabel="weight of the margin"),
        (8.0, 6.4),
    )


def _choices_table(choices: Sequence[Choice]) -> Table:
    rows = tuple(
        (
            NAMES.get(choice.objective, "all"),
            choice.setting,
            "; ".join(f"{value:g}: {100 * score:.1f}" for value, score in choice.scores.items()),
            f"{choice.value:g}",
        )
        for choice in choices
    )
    header = ("objective", "setting", "value: top-1 on the validation vendor", "chosen")
    return Table("", header, rows)
