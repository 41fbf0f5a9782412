"""All settings of a run as typed dataclasses; flags and YAML files are made from them."""

from __future__ import annotations

import math
from argparse import SUPPRESS
from collections.abc import Callable, Container, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import PurePath
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jsonargparse import ActionYesNo, ArgumentParser

from ..data.options import READ_HELP


class SetupError(ValueError):
    """Raised before a run starts if this machine does not support a setting."""


# The values that a setting may have, as its message describes them. NaN is in none of them.
_ALLOWED: dict[str, Callable[[float], bool]] = {
    "positive": lambda number: 0 < number < math.inf,
    "0 or more": lambda number: 0 <= number < math.inf,
    "in [0, 1)": lambda number: 0 <= number < 1,
    "in (0, 1]": lambda number: 0 < number <= 1,
    "between 0 and 1": lambda number: 0 <= number <= 1,
    "between 1 and 100": lambda number: 1 <= number <= 100,
}


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class DataConfig:
    """Training and validation data; options with val- are those of --val-data alone."""

    train_data: str = _option(
        "auto",
        "emoji, shapes, debian, or a path: folder or brace pattern of tar shards, folder of images "
        "with captions, TSV, CSV; auto: emoji, or shapes if the demo packages are not installed",
    )
    images: str | None = _option(None, READ_HELP["images"])
    first_row: int | None = _option(None, READ_HELP["first_row"])
    csv_separator: str | None = _option(None, READ_HELP["csv_separator"])
    csv_img_key: str | None = _option(None, READ_HELP["csv_img_key"])
    csv_caption_key: str | None = _option(None, READ_HELP["csv_caption_key"])
    csv_quoting: str | None = _option(None, READ_HELP["csv_quoting"])
    split: str | None = _option(None, READ_HELP["split"])
    manifest: str | None = _option(None, READ_HELP["manifest"])
    val_data: str | None = _option(
        None, "pairs for retrieval if train-data is a path; default: a part of train-data"
    )
    val_images: str | None = _option(None, "like --images, for --val-data")
    val_first_row: int | None = _option(None, "like --first-row, for --val-data")
    val_csv_separator: str | None = _option(None, "like --csv-separator, for --val-data")
    val_csv_img_key: str | None = _option(None, "like --csv-img-key, for --val-data")
    val_csv_caption_key: str | None = _option(None, "like --csv-caption-key, for --val-data")
    val_csv_quoting: str | None = _option(None, "like --csv-quoting, for --val-data")
    val_split: str | None = _option(None, "like --split, for --val-data")
    val_manifest: str | None = _option(None, "like --manifest, for --val-data")
    train_fraction: float = _option(
        1.0, "share of the training pairs to train on; a smaller share is a part of a larger one"
    )
    max_skipped: float = _option(
        0.05, "share of bad records above which a run stops, of those opened and of each epoch's"
    )
    batch_size: int = _option(128, "pairs per step and process, and of each part (accum-freq)")
    accum_freq: int = _option(
        1,
        "parts of batch-size pairs that make one batch: exact gradients of the whole batch, in the "
        "memory of a part, by encoding twice",
    )
    workers: int = _option(0, "processes that decode files; 0: decode in the main process")

    @property
    def pairs_per_step(self) -> int:
        """Pairs that one process contributes to a step."""
        return self.batch_size * self.accum_freq


@dataclass(frozen=True)
class LossConfig:
    """Loss; the weights count for cyclip only and belong to a batch size (docs/losses.md)."""

    loss: Literal["cyclip", "clip", "siglip"] = _option("cyclip", "training loss")
    in_modal: float = _option(0.25, "weight of in-modal cycle consistency")
    cross_modal: float = _option(0.25, "weight of cross-modal cycle consistency")
    margin: float = _option(0.0, "weight of the one-sided margin, such as 0.1")
    hinge: float = _option(0.0, "weight of the hinge margin")
    mask_duplicates: bool = _option(
        False, "pairs with the same image or an equal caption are not each other's negatives"
    )
    two_views: bool = _option(
        False, "also contrast two views of each image, and of each caption (CyCLIP's inmodal)"
    )
    exchange: Literal["auto", "gather", "ring", "replicate"] = _option(
        "auto", "of features between processes (docs/distributed.md); auto: by the batch's size"
    )


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with warmup and cosine, counted in steps."""

    lr: float = _option(2e-3, "peak learning rate")
    wd: float = _option(0.1, "weight decay; none on norms, biases and temperature")
    beta1: float = _option(0.9, "AdamW: decay of the mean")
    beta2: float = _option(0.98, "AdamW: decay of the mean square")
    eps: float = _option(1e-8, "AdamW: added to the root of the mean square")
    warmup: int = _option(100, "steps of linear warmup")
    logit_scale_lr: float = _option(10.0, "learning rate of the temperature, times lr")
    logit_scale_fixed: float | None = _option(
        None, "hold the logit scale at this value (1 to 100) instead of learning it"
    )
    grad_clip_norm: float | None = _option(None, "largest norm of the gradient")
    ema_decay: float | None = _option(
        None, "evaluate and save a moving average of the weights with this decay, such as 0.999"
    )
    skip_nonfinite: bool = _option(
        False, "skip a step whose loss or gradient is not finite, instead of stopping"
    )


@dataclass(frozen=True)
class RunConfig:
    """Model, length, hardware, and what is written where."""

    model: str = _option("mini", "a name of cyclip_ext.models.list_models() or of open_clip")
    pretrained: str | None = _option(
        None, "weights to start from: a file, a run folder, or a tag of open_clip for the model"
    )
    lock_image: bool = _option(False, "leave the image tower as --pretrained has it (LiT)")
    lock_text: bool = _option(False, "leave the text tower as --pretrained has it")
    tokenizer: Literal["open_clip", "words"] = _option(
        "open_clip",
        "open_clip: the one that open_clip has for the model; words: hashed words, without any "
        "package, for this package's own models. A new run takes words if open_clip is missing",
    )
    epochs: int = _option(40, "passes over the training pairs")
    seed: int = _option(0, "decides initialization, order, captions, augmentation and dropout")
    precision: Literal["auto", "fp32", "amp_bf16", "amp_fp16"] = _option(
        "auto", "amp_bf16, amp_fp16: towers under autocast; auto: bf16 if the machine has it"
    )
    grad_checkpointing: bool = _option(
        False, "store fewer activations and compute them again in the backward pass"
    )
    torchcompile: bool = _option(False, "compile the towers with torch.compile")
    use_bn_sync: bool = _option(
        False, "batch norm over the batches of all processes, not each over its own"
    )
    device: str = _option("auto", "cpu, cuda, cuda:1, ...; auto: cuda if there is one")
    logs_dir: str = _option("logs", "folder of the run folders")
    name: str | None = _option(None, "name of the run folder; default: made from loss and seed")
    resume: str | None = _option(
        None, "a checkpoint or run folder to continue; auto: the one of --name, if there is one"
    )
    allow_other_data: bool = _option(
        False, "resume on other records than those the run was trained on; it is logged"
    )
    val_frequency: int = _option(5, "epochs between validations, which choose the best checkpoint")
    evaluate_frequency: int | None = _option(
        None, "steps between logged evaluations on every dataset, besides the one at the end"
    )
    save_frequency: int | None = _option(
        None, "steps between checkpoints, besides those at the end of each epoch"
    )
    keep_frequency: int | None = _option(None, "epochs between checkpoints that are never deleted")
    log_every_n_steps: int = _option(10, "steps between records of the log")
    profile: int | None = _option(
        None, "steps to record with torch.profiler, after the first three; writes profile.json"
    )
    tensorboard: bool = _option(True, "write TensorBoard's files if it is installed")
    wandb: str | None = _option(None, "report to this project of Weights & Biases")


@dataclass(frozen=True)
class TrainConfig:
    """A whole run."""

    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Raise ValueError, naming the setting, for an invalid value."""
        data, optim, run = self.data, self.optim, self.run
        for name, value, least in (
            ("accum-freq", data.accum_freq, 1),
            ("batch-size", data.pairs_per_step, 2),
            ("workers", data.workers, 0),
            ("first-row", data.first_row, 0),
            ("val-first-row", data.val_first_row, 0),
            ("warmup", optim.warmup, 0),
            ("epochs", run.epochs, 1),
            ("val-frequency", run.val_frequency, 1),
            ("evaluate-frequency", run.evaluate_frequency, 1),
            ("save-frequency", run.save_frequency, 1),
            ("keep-frequency", run.keep_frequency, 1),
            ("log-every-n-steps", run.log_every_n_steps, 1),
            ("profile", run.profile, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"--{name} must be at least {least}, got {value}")
        for section, kind in _SECTIONS.items():
            for name, hint in get_type_hints(kind).items():
                choice = getattr(getattr(self, section), name)
                if get_origin(hint) is Literal and choice not in get_args(hint):
                    known = ", ".join(get_args(hint))
                    raise ValueError(f"--{name} must be one of {known}, got {choice!r}")
        for name, number, allowed in (
            ("lr", optim.lr, "positive"),
            ("eps", optim.eps, "positive"),
            ("grad-clip-norm", optim.grad_clip_norm, "positive"),
            ("wd", optim.wd, "0 or more"),
            ("logit-scale-lr", optim.logit_scale_lr, "0 or more"),
            ("beta1", optim.beta1, "in [0, 1)"),
            ("beta2", optim.beta2, "in [0, 1)"),
            ("ema-decay", optim.ema_decay, "in [0, 1)"),
            ("train-fraction", data.train_fraction, "in (0, 1]"),
            ("max-skipped", data.max_skipped, "between 0 and 1"),
            ("logit-scale-fixed", optim.logit_scale_fixed, "between 1 and 100"),
        ):
            if number is not None and not _ALLOWED[allowed](number):
                raise ValueError(f"--{name} must be {allowed}, got {number}")
        if not 0 <= run.seed < 2**63:
            raise ValueError(f"--seed must be between 0 and 2^63 - 1, got {run.seed}")
        if run.name is not None:
            path = PurePath(run.name)
            if not path.parts or path.is_absolute() or ".." in path.parts:
                raise ValueError(
                    f"--name must be the name of a folder inside --logs-dir, got {run.name!r}"
                )
        if run.torchcompile and run.grad_checkpointing and run.use_bn_sync:
            raise ValueError(
                "--torchcompile, --grad-checkpointing and --use-bn-sync do not go together: "
                "running statistics would count each batch twice; omit one of them"
            )
        locked = [tower for tower in ("image", "text") if getattr(run, f"lock_{tower}")]
        if len(locked) == 2:
            raise ValueError(
                "--lock-image and --lock-text leave nothing to train but the temperature; omit one"
            )
        if locked and run.pretrained is None:
            raise ValueError(
                f"--lock-{locked[0]} needs --pretrained, got None: a tower that is neither trained "
                "nor loaded is random"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested dictionaries, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Invert to_dict. Missing settings have their defaults.

        Raises ValueError for settings that this version does not have.
        """
        unknown = [name for name in values if name not in _SECTIONS]
        for name, kind in _SECTIONS.items():
            unknown += values.get(name, {}).keys() - {entry.name for entry in fields(kind)}
        if unknown:
            raise ValueError(
                f"unknown settings {', '.join(sorted(unknown))}: they are of another version; "
                "use the version that made the run"
            )
        return cls(**{name: kind(**values.get(name, {})) for name, kind in _SECTIONS.items()})

    def updated(self, values: Mapping[str, Any]) -> TrainConfig:
        """Return a copy with new values for the given settings of any section."""
        sections = {}
        for name, kind in _SECTIONS.items():
            own = {entry.name for entry in fields(kind)} & set(values)
            sections[name] = replace(getattr(self, name), **{key: values[key] for key in own})
        return replace(self, **sections)

    def label(self) -> str:
        """Return the method in a few words: "CyCLIP + margin 0.1", "CLIP, scale held at 100"."""
        loss = self.loss
        text = "SigLIP" if loss.loss == "siglip" else "CLIP"
        if loss.loss == "cyclip":
            one = "I-Cy" if loss.in_modal else "C-Cy" if loss.cross_modal else ""
            text = ("Cy" if loss.in_modal and loss.cross_modal else one) + text
            text += f" + margin {loss.margin:g}" if loss.margin else ""
            text += f" + hinge {loss.hinge:g}" if loss.hinge else ""
        text += " + views" if loss.two_views else ""
        text += ", duplicates masked" if loss.mask_duplicates else ""
        for tower in ("image", "text"):
            text += f", {tower} tower locked" if getattr(self.run, f"lock_{tower}") else ""
        if self.optim.logit_scale_fixed is not None:
            text += f", scale held at {self.optim.logit_scale_fixed:g}"
        return text


VAL = "val_"  # prefix of the options of --val-data
READ_OPTIONS = tuple(
    entry.name.removeprefix(VAL)
    for entry in fields(DataConfig)
    if entry.name.startswith(VAL) and entry.name != "val_data"
)

# The settings that a resumed run may change: places, reports, and how a batch is divided into parts
# and processes. (Trainer.restore compares the batch as a whole and the records of the data.)
FREE_ON_RESUME = frozenset(
    {
        *("train_data", *READ_OPTIONS, "val_data", *(VAL + name for name in READ_OPTIONS)),
        *("max_skipped", "workers"),
        *("batch_size", "accum_freq", "exchange", "device", "logs_dir", "name", "resume"),
        *("allow_other_data", "save_frequency", "keep_frequency", "evaluate_frequency"),
        *("log_every_n_steps", "profile", "tensorboard", "wandb"),
    }
)

_SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "loss": LossConfig,
    "optim": OptimConfig,
    "run": RunConfig,
}


def add_arguments(parser: ArgumentParser, hidden: Container[str] = ()) -> None:
    """Add one flag per setting, spelled as in open_clip: train_data is --train-data.

    YAML files use the names with underscores. Switches take no value on the command line and true
    or false in YAML; --no-... turns one off. The help omits the `hidden` settings.
    """
    parser.add_argument(
        "--config", action="config", help="YAML file of settings; later arguments override it"
    )
    for name, section in _SECTIONS.items():
        group = parser.add_argument_group(name, section.__doc__)
        hints = get_type_hints(section)
        for entry in fields(section):
            options: dict[str, Any] = {"type": hints[entry.name]}
            if hints[entry.name] is bool:
                options = {"action": ActionYesNo(no_prefix="no-")}
            group.add_argument(
                "--" + entry.name.replace("_", "-"),
                **options,
                default=entry.default,
                help=SUPPRESS if entry.name in hidden else entry.metadata["help"],
            )
