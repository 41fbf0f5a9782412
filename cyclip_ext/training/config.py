"""All settings of a run as typed dataclasses, and the command line made from them."""

from __future__ import annotations

import argparse
import types
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Union, get_args, get_origin, get_type_hints

PRECISIONS = ("auto", "fp32", "amp_bf16")
LOSSES = ("cyclip", "clip", "siglip")


class SetupError(ValueError):
    """This machine cannot serve a setting; nothing was started."""


def _option(default: Any, help: str, choices: Sequence[str] | None = None) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class DataConfig:
    """What is trained on."""

    train_data: str = _option(
        "auto",
        "emoji, shapes, debian, or a path: folder or brace pattern of tar shards, TSV, CSV; "
        "auto: emoji, or shapes where the demo packages are absent",
    )
    val_data: str | None = _option(
        None, "pairs for retrieval, where train-data is a path; default: a part of train-data"
    )
    images: str | None = _option(
        None, "folder of the downloaded pictures of Google's caption<TAB>url TSV, for it only"
    )
    first_row: int = _option(0, "number of the first row in the file names below images: 0 or 1")
    csv_separator: str | None = _option(
        None, "of a table with a header; default: a tab if the header has one, else a comma"
    )
    csv_img_key: str | None = _option(None, "its image column; default: image, filepath, ...")
    csv_caption_key: str | None = _option(None, "its caption column; default: caption, title, text")
    batch_size: int = _option(128, "pairs per step")
    workers: int = _option(0, "processes that decode files; 0: none besides this one")


@dataclass(frozen=True)
class LossConfig:
    """Which loss; the weights count for cyclip only and belong to a batch size (docs/losses.md)."""

    loss: str = _option("cyclip", "training loss", LOSSES)
    in_modal: float = _option(0.25, "weight of in-modal cycle consistency")
    cross_modal: float = _option(0.25, "weight of cross-modal cycle consistency")
    margin: float = _option(0.0, "weight of the one-sided margin; 0.1 when used")
    hinge: float = _option(0.0, "weight of the hinge margin")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with warmup and cosine, counted in steps."""

    lr: float = _option(2e-3, "peak learning rate")
    wd: float = _option(0.1, "weight decay; none on norms, biases and temperature")
    beta1: float = _option(0.9, "AdamW: decay of the mean")
    beta2: float = _option(0.98, "AdamW: decay of the mean square")
    warmup: int = _option(100, "steps of linear warmup")
    logit_scale_lr: float = _option(10.0, "learning rate of the temperature, times lr")
    logit_scale_fixed: float | None = _option(
        None, "hold the logit scale at this value (1 to 100) instead of learning it"
    )


@dataclass(frozen=True)
class RunConfig:
    """How long, how, and where to."""

    model: str = _option("mini", "a name of cyclip_ext.models.list_models() or of open_clip")
    epochs: int = _option(40, "passes over the training pairs")
    seed: int = _option(0, "decides initialization, order, captions and augmentation")
    precision: str = _option(
        "auto", "amp_bf16: towers under autocast; auto: that, where the machine has it", PRECISIONS
    )
    logs: str = _option("logs", "folder of the run folders")
    name: str | None = _option(None, "name of the run folder; default: made from loss and seed")
    resume: str | None = _option(None, "a checkpoint or run folder to continue")
    val_frequency: int = _option(5, "epochs between validations, which choose the best checkpoint")
    device: str = _option("auto", "cpu, cuda, cuda:1, ...; auto: cuda where there is one")


@dataclass(frozen=True)
class TrainConfig:
    """A whole run."""

    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Raises ValueError, naming the setting, for a value that cannot work."""
        for name, value, least in (
            ("batch-size", self.data.batch_size, 2),
            ("epochs", self.run.epochs, 1),
            ("val-frequency", self.run.val_frequency, 1),
            ("warmup", self.optim.warmup, 0),
            ("workers", self.data.workers, 0),
            ("first-row", self.data.first_row, 0),
        ):
            if value < least:
                raise ValueError(f"--{name} must be at least {least}, got {value}")
        for name, choice, choices in (
            ("loss", self.loss.loss, LOSSES),
            ("precision", self.run.precision, PRECISIONS),
        ):
            if choice not in choices:
                raise ValueError(f"--{name} must be one of {', '.join(choices)}, got {choice!r}")
        if self.optim.lr <= 0:
            raise ValueError(f"--lr must be positive, got {self.optim.lr}")
        scale = self.optim.logit_scale_fixed
        if scale is not None and not 1 <= scale <= 100:
            raise ValueError(f"--logit-scale-fixed must be between 1 and 100, got {scale}")

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Inverse of to_dict."""
        return cls(**{name: kind(**values.get(name, {})) for name, kind in _SECTIONS.items()})

    def label(self) -> str:
        """The method in a few words: "CyCLIP + margin 0.1", "CLIP, scale held at 100"."""
        loss = self.loss
        if loss.loss == "cyclip":
            if loss.in_modal and loss.cross_modal:
                text = "CyCLIP"
            elif loss.in_modal:
                text = "I-CyCLIP"
            else:
                text = "C-CyCLIP" if loss.cross_modal else "CLIP"
            text += f" + margin {loss.margin:g}" if loss.margin else ""
            text += f" + hinge {loss.hinge:g}" if loss.hinge else ""
        else:
            text = {"clip": "CLIP", "siglip": "SigLIP"}[loss.loss]
        if self.optim.logit_scale_fixed is not None:
            text += f", scale held at {self.optim.logit_scale_fixed:g}"
        return text


_SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "loss": LossConfig,
    "optim": OptimConfig,
    "run": RunConfig,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One flag per setting, spelt as in open_clip: train_data is --train-data."""
    for name, section in _SECTIONS.items():
        group = parser.add_argument_group(name, section.__doc__)
        hints = get_type_hints(section)
        for entry in fields(section):
            shown = "" if entry.default is None else f" (default: {entry.default})"
            group.add_argument(
                "--" + entry.name.replace("_", "-"),
                type=_scalar_type(hints[entry.name]),
                choices=entry.metadata["choices"],
                default=entry.default,
                help=entry.metadata["help"] + shown,
            )


def config_from_arguments(arguments: argparse.Namespace) -> TrainConfig:
    """The settings of a parsed command line."""
    return TrainConfig(
        **{
            name: section(**{e.name: getattr(arguments, e.name) for e in fields(section)})
            for name, section in _SECTIONS.items()
        }
    )


def _scalar_type(hint: Any) -> type:
    """float | None -> float: what argparse parses a value into."""
    if get_origin(hint) in (Union, types.UnionType):
        return _scalar_type(next(kind for kind in get_args(hint) if kind is not type(None)))
    assert isinstance(hint, type)
    return hint
