"""All settings of a run as typed dataclasses; flags and YAML files are made from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jsonargparse import ActionYesNo, ArgumentParser


class SetupError(ValueError):
    """This machine cannot serve a setting; nothing was started."""


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class DataConfig:
    """What is trained on."""

    train_data: str = _option(
        "auto",
        "emoji, shapes, debian, or a path: folder or brace pattern of tar shards, folder of images "
        "with captions, TSV, CSV; auto: emoji, or shapes where the demo packages are absent",
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
    train_fraction: float = _option(
        1.0, "share of the training pairs to train on; a smaller share is a part of a larger one"
    )
    manifest: str | None = _option(
        None, "what `python -m cyclip_ext.data verify` wrote: records it lists as bad are left out"
    )
    max_skipped: float = _option(
        0.05, "share of bad records above which a run stops, of those opened and of each epoch's"
    )
    batch_size: int = _option(128, "pairs per step and process, and of each part (accum-freq)")
    accum_freq: int = _option(
        1,
        "parts of batch-size pairs that make one batch: exact gradients of the whole, in the "
        "memory of a part, by encoding twice",
    )
    workers: int = _option(0, "processes that decode files; 0: none besides this one")

    @property
    def pairs_per_step(self) -> int:
        """Of one process."""
        return self.batch_size * self.accum_freq


@dataclass(frozen=True)
class LossConfig:
    """Which loss; the weights count for cyclip only and belong to a batch size (docs/losses.md)."""

    loss: Literal["cyclip", "clip", "siglip", "square"] = _option(
        "cyclip",
        "training loss; square: regression of one tower on the other, which fails in zero-shot",
    )
    in_modal: float = _option(0.25, "weight of in-modal cycle consistency")
    cross_modal: float = _option(0.25, "weight of cross-modal cycle consistency")
    margin: float = _option(0.0, "weight of the one-sided margin; 0.1 when used")
    margin_pairs: Literal["positive", "both", "negative"] = _option(
        "positive", "pairs that the margin's weight is on; others than positive are ablations"
    )
    hinge: float = _option(0.0, "weight of the hinge margin")
    inmodal: bool = _option(
        False, "also contrast two views of each picture, and of each caption (CyCLIP's inmodal)"
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
        None, "measure and keep a moving average of the weights that decays so (0.999, say)"
    )
    skip_nonfinite: bool = _option(
        False, "leave out a step whose loss or gradient is not finite, instead of stopping"
    )


@dataclass(frozen=True)
class RunConfig:
    """How long, how, and where to."""

    model: str = _option("mini", "a name of cyclip_ext.models.list_models() or of open_clip")
    tokenizer: Literal["open_clip", "words"] = _option(
        "open_clip",
        "open_clip: the one that open_clip has for the model; words: hashed words, without any "
        "package, for this package's own models. A new run takes words if open_clip is missing",
    )
    epochs: int = _option(40, "passes over the training pairs")
    seed: int = _option(0, "decides initialization, order, captions, augmentation and dropout")
    precision: Literal["auto", "fp32", "amp_bf16", "amp_fp16"] = _option(
        "auto",
        "amp_bf16, amp_fp16: towers under autocast; auto: bf16, where the machine has it",
    )
    grad_checkpointing: bool = _option(
        False, "keep fewer activations and compute them again in the backward pass"
    )
    torchcompile: bool = _option(False, "compile the towers with torch.compile")
    use_bn_sync: bool = _option(
        False, "batch norm over the batches of all processes, not each over its own"
    )
    device: str = _option("auto", "cpu, cuda, cuda:1, ...; auto: cuda where there is one")
    logs_dir: str = _option("logs", "folder of the run folders")
    name: str | None = _option(None, "name of the run folder; default: made from loss and seed")
    resume: str | None = _option(
        None, "a checkpoint or run folder to continue; auto: the one of --name, if there is one"
    )
    val_frequency: int = _option(5, "epochs between validations, which choose the best checkpoint")
    evaluate_frequency: int | None = _option(
        None, "steps between evaluations on every set, besides the one at the end; they are logged"
    )
    save_frequency: int | None = _option(
        None, "steps between checkpoints, besides those at the end of each epoch"
    )
    keep_frequency: int | None = _option(None, "epochs between checkpoints that are kept for good")
    log_every_n_steps: int = _option(10, "steps between records of the log")
    tensorboard: bool = _option(True, "write TensorBoard's files, where it is installed")
    wandb: str | None = _option(None, "report to this project of Weights & Biases")


@dataclass(frozen=True)
class TrainConfig:
    """A whole run."""

    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Raises ValueError, naming the setting, for a value that cannot work."""
        data, optim, run = self.data, self.optim, self.run
        for name, value, least in (
            ("accum-freq", data.accum_freq, 1),
            ("batch-size", data.pairs_per_step, 2),
            ("workers", data.workers, 0),
            ("first-row", data.first_row, 0),
            ("warmup", optim.warmup, 0),
            ("epochs", run.epochs, 1),
            ("val-frequency", run.val_frequency, 1),
            ("evaluate-frequency", run.evaluate_frequency, 1),
            ("save-frequency", run.save_frequency, 1),
            ("keep-frequency", run.keep_frequency, 1),
            ("log-every-n-steps", run.log_every_n_steps, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"--{name} must be at least {least}, got {value}")
        for section, kind in _SECTIONS.items():
            for name, hint in get_type_hints(kind).items():
                choice = getattr(getattr(self, section), name)
                if get_origin(hint) is Literal and choice not in get_args(hint):
                    known = ", ".join(get_args(hint))
                    raise ValueError(f"--{name} must be one of {known}, got {choice!r}")
        for name, rate in (("lr", optim.lr), ("grad-clip-norm", optim.grad_clip_norm)):
            if rate is not None and rate <= 0:
                raise ValueError(f"--{name} must be positive, got {rate}")
        for name, share in (("max-skipped", data.max_skipped), ("ema-decay", optim.ema_decay)):
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"--{name} must be between 0 and 1, got {share}")
        if not 0 < data.train_fraction <= 1:
            raise ValueError(f"--train-fraction must be in (0, 1], got {data.train_fraction}")
        if self.loss.loss == "square" and self.loss.inmodal:
            raise ValueError("--inmodal contrasts views; --loss square has nothing to contrast")
        if run.torchcompile and run.grad_checkpointing and run.use_bn_sync:
            raise ValueError(
                "--torchcompile, --grad-checkpointing and --use-bn-sync do not go together: "
                "running statistics would count each batch twice; leave one of them out"
            )
        scale = optim.logit_scale_fixed
        if scale is not None and not 1 <= scale <= 100:
            raise ValueError(f"--logit-scale-fixed must be between 1 and 100, got {scale}")

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Inverse of to_dict."""
        return cls(**{name: kind(**values.get(name, {})) for name, kind in _SECTIONS.items()})

    def updated(self, values: Mapping[str, Any]) -> TrainConfig:
        """With other values for the settings named, whatever section they are of."""
        sections = {}
        for name, kind in _SECTIONS.items():
            own = {entry.name for entry in fields(kind)} & set(values)
            sections[name] = replace(getattr(self, name), **{key: values[key] for key in own})
        return replace(self, **sections)

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
            sides = {"positive": "", "both": "both-sided ", "negative": "negative-only "}
            if loss.margin:
                text += f" + {sides[loss.margin_pairs]}margin {loss.margin:g}"
            text += f" + hinge {loss.hinge:g}" if loss.hinge else ""
        else:
            text = {"clip": "CLIP", "siglip": "SigLIP", "square": "square loss"}[loss.loss]
        text += " + views" if loss.inmodal else ""
        if self.optim.logit_scale_fixed is not None:
            text += f", scale held at {self.optim.logit_scale_fixed:g}"
        return text


# Where things lie, what is reported, and how the batch is laid out over parts and processes: what a
# resumed run may have otherwise. (That batch and data are the same, Trainer.restore sees to.)
FREE_ON_RESUME = frozenset(
    {
        *("train_data", "val_data", "images", "workers", "max_skipped", "batch_size", "accum_freq"),
        *("exchange", "device", "logs_dir", "name", "resume", "save_frequency", "keep_frequency"),
        *("evaluate_frequency", "log_every_n_steps", "tensorboard", "wandb"),
    }
)

_SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "loss": LossConfig,
    "optim": OptimConfig,
    "run": RunConfig,
}


def add_arguments(parser: ArgumentParser) -> None:
    """One flag per setting, spelt as in open_clip: train_data is --train-data, and so in YAML.

    Switches take no value on the command line, true or false in YAML; one that is on is turned off
    by --no-... .
    """
    parser.add_argument(
        "--config", action="config", help="YAML file of settings; what follows it on the line wins"
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
                help=entry.metadata["help"],
            )
