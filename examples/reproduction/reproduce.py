"""Ten objectives on the default data over seeds, and the margin's weight over temperatures.

There are three stages, each a list of trainings. The first chooses settings on the validation
vendor's images, with a separate seed. The second trains the objectives with three other seeds. The
third trains CLIP at a fixed temperature with several weights of the margin. No choice uses the
reported data: shifted vendors and held-out concepts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cyclip_ext.training.config import TrainConfig

from .runs import Method, Result, Run, complete, over_seeds

SELECTION_SEED = 1000
SEEDS = (0, 1, 2)

LEARNING_RATES = (1e-3, 2e-3, 4e-3)
CYCLE_WEIGHTS = (0.1, 0.25, 0.5)
MARGIN_WEIGHTS = (0.03, 0.1, 0.3)
# The square loss's learning rate relative to the others': its gradient lacks the factor 1/T.
SQUARE_RATES = (0.1, 1.0)

SWEEP_SCALES = (10.0, 30.0, 100.0)  # 1 / temperature
SWEEP_WEIGHTS = (0.0, 0.1, 0.3, 1.0)

MAX_SCALE = 100.0

# Name -> settings besides the chosen weight, in the order of the tables.
OBJECTIVES: dict[str, dict[str, object]] = {
    "clip": {"loss": "clip"},
    "clip-scale-100": {"loss": "clip", "logit_scale_fixed": MAX_SCALE},
    "c-cyclip": {"loss": "cyclip", "in_modal": 0.0},
    "i-cyclip": {"loss": "cyclip", "cross_modal": 0.0},
    "cyclip": {"loss": "cyclip"},
    "clip-margin": {"loss": "cyclip", "in_modal": 0.0, "cross_modal": 0.0},
    "cyclip-margin": {"loss": "cyclip"},
    "clip-both-sided": {
        "loss": "cyclip",
        "in_modal": 0.0,
        "cross_modal": 0.0,
        "ablation": "both-sided",
    },
    "clip-negative-only": {
        "loss": "cyclip",
        "in_modal": 0.0,
        "cross_modal": 0.0,
        "ablation": "negative-only",
    },
    "square": {"loss": "clip", "ablation": "square"},
}

# Objective -> the settings to which the chosen value applies, and the candidates.
TUNED: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {
    "c-cyclip": (("cross_modal",), CYCLE_WEIGHTS),
    "i-cyclip": (("in_modal",), CYCLE_WEIGHTS),
    "cyclip": (("in_modal", "cross_modal"), CYCLE_WEIGHTS),
    "clip-margin": (("margin",), MARGIN_WEIGHTS),
    "cyclip-margin": (("margin",), MARGIN_WEIGHTS),
    "clip-both-sided": (("margin",), MARGIN_WEIGHTS),
    "clip-negative-only": (("margin",), MARGIN_WEIGHTS),
}


@dataclass(frozen=True)
class Choice:
    """A setting and the score of each candidate: top-1 on the validation vendor's images."""

    objective: str
    setting: str
    scores: dict[float, float]

    @property
    def value(self) -> float:
        """The best candidate, or the first of several equal ones."""
        return max(self.scores, key=lambda candidate: self.scores[candidate])


@dataclass(frozen=True)
class Reproduction:
    """All results, by stage. objectives and sweep: one result per seed."""

    choices: tuple[Choice, ...]
    objectives: dict[str, list[Result]]
    sweep: dict[tuple[float, float], list[Result]]  # by (scale, weight)


def reproduce(
    base: TrainConfig, folder: Path, *, seeds: Sequence[int] = SEEDS, jobs: int = 2
) -> Reproduction | None:
    """Train the missing runs in `folder`; None after an interruption, the same call continues.

    base: the settings that all runs share: data, model, epochs. jobs: concurrent trainings.
    """
    chosen = _choose(Method(base), folder, jobs)
    if chosen is None:
        return None
    choices, configs = chosen
    objectives = over_seeds(configs, folder, seeds, jobs)
    if objectives is None:
        return None
    grid = {
        f"sweep-scale-{scale:g}-margin-{weight:g}": configs["clip-margin"].updated(
            {"margin": weight, "logit_scale_fixed": scale}
        )
        for scale in SWEEP_SCALES
        for weight in SWEEP_WEIGHTS
    }
    swept = over_seeds(grid, folder, seeds, jobs)
    if swept is None:
        return None
    points = [(scale, weight) for scale in SWEEP_SCALES for weight in SWEEP_WEIGHTS]
    return Reproduction(choices, objectives, dict(zip(points, swept.values(), strict=True)))


def _choose(
    base: Method, folder: Path, jobs: int
) -> tuple[tuple[Choice, ...], dict[str, Method]] | None:
    """Choose the learning rate of all objectives, then each one's weight."""
    base = base.updated({"seed": SELECTION_SEED})
    # All objectives share one rate, so that the comparison is not one of rates.
    rates = {
        (name, rate): _settings(base, name).updated({"lr": rate})
        for rate in LEARNING_RATES
        for name in ("clip", "cyclip")
    }
    scores = _scores(rates, "lr", folder, jobs)
    if scores is None:
        return None
    mean = {rate: (scores["clip", rate] + scores["cyclip", rate]) / 2 for rate in LEARNING_RATES}
    rate = Choice("all", "lr", mean)
    base = base.updated({"lr": rate.value})

    weights = {
        (name, weight): _settings(base, name).updated(dict.fromkeys(settings, weight))
        for name, (settings, candidates) in TUNED.items()
        if name != "cyclip-margin"
        for weight in candidates
    }
    weights |= {
        ("square", times): _settings(base, "square").updated({"lr": times * rate.value})
        for times in SQUARE_RATES
    }
    scores = _scores(weights, "weight", folder, jobs)
    if scores is None:
        return None
    choices = [rate, *_choices(scores)]
    # In addition to the cycle weights that were chosen without the margin.
    cycle = next(choice.value for choice in choices if choice.objective == "cyclip")
    both = _settings(base, "cyclip-margin").updated({"in_modal": cycle, "cross_modal": cycle})
    margins = {
        ("cyclip-margin", weight): both.updated({"margin": weight}) for weight in MARGIN_WEIGHTS
    }
    scores = _scores(margins, "weight", folder, jobs)
    if scores is None:
        return None
    choices += _choices(scores)

    found = {choice.objective: choice.value for choice in choices}
    configs = {name: _settings(base, name) for name in OBJECTIVES}
    for name, (settings, _) in TUNED.items():
        configs[name] = configs[name].updated(dict.fromkeys(settings, found[name]))
    configs["cyclip-margin"] = both.updated({"margin": found["cyclip-margin"]})
    configs["square"] = configs["square"].updated({"lr": found["square"] * rate.value})
    return tuple(choices), configs


def _settings(base: Method, objective: str) -> Method:
    return base.updated(OBJECTIVES[objective])


def _scores(
    candidates: Mapping[tuple[str, float], Method], setting: str, folder: Path, jobs: int
) -> dict[tuple[str, float], float] | None:
    """Return top-1 on the validation vendor's images of trained concepts."""
    names = {key: f"select-{key[0]}-{setting}-{key[1]:g}" for key in candidates}
    runs = [Run(names[key], method) for key, method in candidates.items()]
    results = complete(runs, folder, jobs)
    if results is None:
        return None
    return {key: results[name]["metrics"]["validation"]["acc1"] for key, name in names.items()}


def _choices(scores: Mapping[tuple[str, float], float]) -> list[Choice]:
    names = dict.fromkeys(name for name, _ in scores)
    return [
        Choice(
            name,
            "lr / the others' lr" if name == "square" else ", ".join(TUNED[name][0]),
            {value: score for (owner, value), score in scores.items() if owner == name},
        )
        for name in names
    ]
