"""The losses inside open_clip's trainer.

    python -m cyclip_ext.integrations.open_clip --loss cyclip -- --train-data ... --model ViT-B-32

runs open_clip_train with the flags after `--`, under torchrun as well. In a program of your own,
`install("cyclip")` has the same effect on every loss that open_clip constructs from then on.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

import open_clip.loss
import torch.distributed as dist
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from cyclip_ext._dispatch import PairOptions
from cyclip_ext.losses import CLIPLoss, CyCLIPLoss, PairwiseLoss, SigLIPLoss

_LOSSES = {"clip": CLIPLoss, "cyclip": CyCLIPLoss, "siglip": SigLIPLoss}
_RESERVED = {
    "group": "the group is that of open_clip's ranks",
    "statistics": "open_clip's trainer adds up all entries of the dictionary",
}
_FLAGS = {
    "in_modal": float,
    "cross_modal": float,
    "margin": float,
    "hinge": float,
    "hinge_margin": float,
    "reduction": str,
    "backend": str,
    "precision": str,
    "memory_budget": int,
    "exchange": str,
}
_EXCHANGES = {"bidir": "ring", "shift": "ring", "gather": "gather", "reduce": "gather"}
# open_clip's own constructors, before `install` replaces them.
_COCA, _DISTILLATION = open_clip.loss.CoCaLoss, open_clip.loss.DistillClipLoss

Make = functools.partial[PairwiseLoss]


def install(loss: str = "cyclip", **options: Any) -> None:
    """Make open_clip construct this package's losses from now on.

    Replaces ClipLoss, SigLipLoss, CoCaLoss and DistillClipLoss where open_clip looks them up, for
    `create_loss` and for training tasks. The replacements take the constructors' arguments:

    - rank, world_size: if there are several ranks, they share the batch (group="world").
    - local_loss, gather_with_grad, cache_labels: accepted without effect. The gradient is always
      that of the whole batch, as open_clip's is with local_loss and gather_with_grad.
    - dist_impl: "bidir" and "shift" mean exchange="ring", "gather" and "reduce" mean "gather",
      unless `exchange` is among the options.
    - use_horovod: raises ValueError.

    CoCa's captioning loss and the distillation loss remain open_clip's own.

    Args:
        loss: "clip", "cyclip" or "siglip". "siglip" belongs to the trainer's flag --siglip, which
            gives the model its bias; CoCa and distillation do not support it.
        options: of CLIPLoss, CyCLIPLoss or SigLIPLoss, except `group` and `statistics`.

    Raises: ValueError or TypeError for another loss and for options that the loss does not accept.
    """
    if loss not in _LOSSES:
        raise ValueError(f"loss must be one of {', '.join(_LOSSES)}, got {loss!r}")
    accepted = {*inspect.signature(_LOSSES[loss]).parameters, *PairOptions.__annotations__}
    for name, value in options.items():
        if name in _RESERVED:
            raise ValueError(f"{name} cannot be chosen, got {value!r}: {_RESERVED[name]}")
        if name not in accepted:
            raise TypeError(f"loss {loss!r} has no option {name}, got {value!r}; leave it out")
    make = Make(_LOSSES[loss], **options)
    make()  # checks the values
    replacements: dict[str, Callable[..., nn.Module]] = {
        "ClipLoss": functools.partial(_softmax, make),
        "SigLipLoss": functools.partial(_sigmoid, make),
        "CoCaLoss": functools.partial(CoCaLoss, make),
        "DistillClipLoss": functools.partial(DistillationLoss, make),
    }
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("open_clip", "open_clip_train"):
            for replaced in replacements.keys() & vars(module).keys():
                setattr(module, replaced, replacements[replaced])


def _softmax(
    make: Make,
    local_loss: bool = False,
    gather_with_grad: bool = False,
    cache_labels: bool = False,
    rank: int = 0,
    world_size: int = 1,
    use_horovod: bool = False,
) -> PairwiseLoss:
    """Return the loss for open_clip's arguments of ClipLoss."""
    if make.func is SigLIPLoss:
        raise ValueError(
            "loss 'siglip' needs the model's bias: add --siglip to open_clip's flags; CoCa and "
            "distillation support only 'clip' and 'cyclip'"
        )
    if use_horovod:
        raise ValueError("use_horovod=True is not supported; start the trainer with torchrun")
    return make(group=_group(rank, world_size))


def _sigmoid(
    make: Make,
    cache_labels: bool = False,
    rank: int = 0,
    world_size: int = 1,
    dist_impl: str | None = None,
) -> PairwiseLoss:
    """Return the loss for open_clip's arguments of SigLipLoss."""
    if make.func is not SigLIPLoss:
        raise ValueError(
            "--siglip selects the sigmoid loss, but another loss was installed; use loss 'siglip' "
            "or leave --siglip out"
        )
    exchange = {} if dist_impl is None else {"exchange": _EXCHANGES[dist_impl]}
    return make(group=_group(rank, world_size), **{**exchange, **make.keywords})


def _group(rank: int, world_size: int) -> str:
    if world_size <= 1:
        return "local"
    found = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if found != (rank, world_size):
        raise ValueError(
            f"rank and world_size must be those of torch.distributed, {found[0]} and {found[1]}, "
            f"got {rank} and {world_size}; call init_process_group first"
        )
    return "world"


class CoCaLoss(nn.Module):
    """This package's contrastive loss beside open_clip's captioning loss.

    Args: those of open_clip's CoCaLoss.
    """

    def __init__(
        self, make: Make, caption_loss_weight: float, clip_loss_weight: float, **others: Any
    ) -> None:
        super().__init__()
        self.captions = _COCA(caption_loss_weight, 0.0, **others)  # without a contrastive loss
        others.pop("pad_id", None)
        self.criterion = _softmax(make, **others)
        self.clip_loss_weight = clip_loss_weight
        self.caption_loss_weight = caption_loss_weight

    def forward(
        self,
        image_features: Tensor,  # [N, d]
        text_features: Tensor,  # [N, d]
        logits: Tensor,  # [N, length, vocabulary]
        labels: Tensor,  # int64 [N, length]
        logit_scale: Tensor,
        output_dict: bool = False,
    ) -> dict[str, Tensor] | tuple[Tensor, Tensor]:
        """Return the weighted terms by name, or the contrastive terms' sum and the caption loss."""
        towers = image_features, text_features
        terms = self.criterion(*towers, logit_scale, output_dict=True)
        terms = {name: self.clip_loss_weight * term for name, term in terms.items()}
        captions = self.captions(*towers, logits, labels, logit_scale, output_dict=True)
        return _as_open_clip(terms, "caption_loss", captions["caption_loss"], output_dict)


class DistillationLoss(nn.Module):
    """This package's contrastive loss beside open_clip's distillation loss.

    The latter compares all logits of student and teacher: it takes N x N matrices.

    Args: those of open_clip's DistillClipLoss.
    """

    def __init__(self, make: Make, **others: Any) -> None:
        super().__init__()
        if others.get("world_size", 1) > 1 and not others.get("gather_with_grad"):
            raise ValueError(
                "gather_with_grad must be True for distillation on several ranks, got False: "
                "otherwise open_clip's distillation loss has only a part of its gradient. "
                "Add --gather-with-grad"
            )
        self.criterion = _softmax(make, **others)
        self.distillation = _DISTILLATION(**others)

    def forward(
        self,
        image_features: Tensor,  # [N, d]
        text_features: Tensor,  # [N, d]
        logit_scale: Tensor,
        dist_image_features: Tensor,  # [N, d'], of the teacher
        dist_text_features: Tensor,  # [N, d']
        dist_logit_scale: Tensor,
        output_dict: bool = False,
    ) -> dict[str, Tensor] | tuple[Tensor, Tensor]:
        """Return the terms by name, or the contrastive terms' sum and the distillation loss."""
        student = image_features, text_features, logit_scale
        teacher = dist_image_features, dist_text_features, dist_logit_scale
        terms = self.criterion(*student, output_dict=True)
        theirs = self.distillation(*student, *teacher, output_dict=True)
        return _as_open_clip(terms, "distill_loss", theirs["distill_loss"], output_dict)


def _as_open_clip(
    terms: dict[str, Tensor], name: str, other: Tensor, output_dict: bool
) -> dict[str, Tensor] | tuple[Tensor, Tensor]:
    if output_dict:
        return {**terms, name: other}
    return sum(terms.values(), start=other.new_zeros(())), other


def build_parser() -> ArgumentParser:
    """Return the parser of the flags before `--`."""
    parser = ArgumentParser(
        prog="python -m cyclip_ext.integrations.open_clip",
        description="Run open_clip's trainer with a loss of cyclip_ext.",
        usage="%(prog)s [--loss LOSS] [OPTION ...] -- FLAG_OF_OPEN_CLIP ...",
    )
    parser.add_argument("--loss", choices=list(_LOSSES), default="cyclip")
    group = parser.add_argument_group("options of the loss (docs/losses.md)")
    for name, kind in _FLAGS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Install the loss and run open_clip_train with the flags after `--`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    if "--" not in arguments and not {"-h", "--help"} & set(arguments):
        parser.error("open_clip's flags must follow after --")
    border = arguments.index("--") if "--" in arguments else len(arguments)
    typed = vars(parser.parse_args(arguments[:border]))
    try:
        install(**{name: value for name, value in typed.items() if value is not None})
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    importlib.import_module("open_clip_train.main").main(arguments[border + 1 :])


if __name__ == "__main__":
    main()
