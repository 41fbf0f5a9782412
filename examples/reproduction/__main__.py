"""The command line of the studies."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from cyclip_ext.data import MissingData, resolved
from cyclip_ext.training.__main__ import INTERRUPTED, UNUSABLE
from cyclip_ext.training.config import SetupError, TrainConfig, add_arguments

from .grids import batch_and_temperature, batch_weights, data_size
from .intervals import mean_interval
from .reproduce import OBJECTIVES, reproduce
from .reproduction_page import write_reproduction
from .runs import RunFailed

PROGRAM = "python examples/reproduce.py"
STUDIES = {
    "reproduce": "ten objectives, and the margin's weight over temperatures: docs/reproduction.md",
    "data-size": "fractions of the training pairs (Goel et al. 2022, figure 4)",
    "batch-temperature": "batch sizes at fixed temperatures (Chen et al. 2024)",
    "batch-weights": "cycle weights that stay the same or follow the batch size",
}
# Flags of a single run, and the flags of a study that replace them.
INSTEAD = {"seed": "--seeds", "name": "--folder", "logs_dir": "--folder", "resume": "--folder"}
# Settings that a study varies, or that would change the meaning of an objective's name.
VARIED = {
    "reproduce": {
        *("lr", "logit_scale_fixed"),
        *("loss", "in_modal", "cross_modal", "margin", "hinge"),
    },
    "data-size": {"train_fraction", "loss", "hinge"},
    "batch-temperature": {"batch_size", "logit_scale_fixed"},
    "batch-weights": {"batch_size", "loss"},
}
# Defaults of a study: its runs are not monitored, and only their last weights are used.
UNWATCHED = {"tensorboard": False, "val_frequency": 10}


def build_parser() -> ArgumentParser:
    """Return the studies as subcommands, each with its own settings and those of training."""
    parser = ArgumentParser(
        prog=PROGRAM,
        description="Train over several seeds and collect the results in tables and plots. Ctrl-C "
        "saves all states; the same command continues.",
    )
    commands = parser.add_subcommands(required=True, dest="study")
    for name, text in STUDIES.items():
        command = ArgumentParser(description=text, usage=f"{PROGRAM} {name} [options]")
        own = command.add_argument_group("study")
        own.add_argument("--folder", default=f"logs/{name}", help="folder of the runs")
        own.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        own.add_argument("--jobs", type=int, default=2, help="concurrent trainings, on one machine")
        if name == "reproduce":
            own.add_argument(
                "--page", default="docs/reproduction.md", help="the page to write, with plots"
            )
        elif name == "data-size":
            own.add_argument("--fractions", type=float, nargs="+", default=[0.1, 0.25, 0.5, 1.0])
            own.add_argument(
                "--objectives", choices=list(OBJECTIVES), nargs="+", default=["clip", "cyclip"]
            )
            own.add_argument(
                "--same-steps",
                action="store_true",
                help="train smaller fractions for more epochs, so that all take the same steps",
            )
        else:
            sizes = [64, 128, 256] + ([512, 1024] if name == "batch-weights" else [])
            own.add_argument("--batch-sizes", type=int, nargs="+", default=sizes)
        if name == "batch-temperature":
            own.add_argument(
                "--scales",
                type=float,
                nargs="+",
                default=[10.0, 30.0, 100.0],
                help="fixed logit scales (1 / temperature)",
            )
        add_arguments(command, hidden=INSTEAD.keys() | VARIED[name])
        commands.add_subcommand(name, command, help=text)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a study, "reproduce" unless the first word names another; return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in STUDIES:
        words.insert(0, "reproduce")
    parser = build_parser()
    study: str = (every := parser.parse_args(words)).study
    typed = vars(parser.parse_args(words, defaults=False)[study])
    known = {name for section in TrainConfig().to_dict().values() for name in section}
    settings = {name: value for name, value in typed.items() if name in known}
    own = {
        name: value
        for name, value in vars(every[study]).items()
        if name not in known and name != "config"
    }
    try:
        done = _run(study, settings, own)
    except (SetupError, ImportError) as error:
        return _failed(error, UNUSABLE)
    except (MissingData, RunFailed, ValueError, OSError) as error:
        return _failed(error, 1)
    except KeyboardInterrupt:  # between trainings
        done = False
    if not done:
        print("stopped, with all states saved; run the same command again to continue")
        return INTERRUPTED
    return 0


def _run(study: str, settings: dict[str, Any], own: dict[str, Any]) -> bool:
    for name in settings.keys() & INSTEAD.keys():
        flag = "--" + name.replace("_", "-")
        raise ValueError(f"{flag} applies to a single run; a study has {INSTEAD[name]}")
    for name in settings.keys() & VARIED[study]:
        flag = "--" + name.replace("_", "-")
        raise ValueError(f"{study} varies {flag} itself; omit it")
    base = TrainConfig().updated({**UNWATCHED, **settings})
    # Resolve "auto", so that runs are not continued on another dataset that it means later.
    base = base.updated({"train_data": resolved(base.data.train_data)})
    folder = Path(own.pop("folder"))
    if study == "data-size":
        return data_size(base, folder, **own)
    if study == "batch-temperature":
        return batch_and_temperature(base, folder, **own)
    if study == "batch-weights":
        return batch_weights(base, folder, **own)
    if base.data.train_data != "emoji":
        raise ValueError(
            f"reproduce takes the default data, emoji (pip install 'cyclip_ext[demo]'), got "
            f"{base.data.train_data}; for other data choose data-size or batch-temperature"
        )
    mean_interval([0.0, 1.0])  # raises before all trainings if scipy is missing
    page = Path(own.pop("page"))
    found = reproduce(base, folder, **own)
    if found is None:
        return False
    write_reproduction(page, found, settings)
    print(f"written to {page}")
    return True


def _failed(error: Exception, status: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
