"""The losses in open_clip's trainer.

    python -m cyclip_ext.integrations.open_clip --loss cyclip -- --train-data ... --model ViT-B-32

runs open_clip_train with the flags after `--`, under torchrun as well. In a program of your own,
`install("cyclip")` has the same effect on every loss that open_clip constructs from then on.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import open_clip.loss
import torch
import torch.distributed as dist
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from .._dispatch import PairOptions
from ..losses import CLIPLoss, CyCLIPLoss, PairwiseLoss, SigLIPLoss

_LOSSES = {"clip": CLIPLoss, "cyclip": CyCLIPLoss, "siglip": SigLIPLoss}
_RESERVED = {
    "group": "the group is that of open_clip's ranks",
    "statistics": "open_clip's trainer adds up all entries of the dictionary",
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
            raise TypeError(f"loss {loss!r} has no option {name}, got {value!r}; omit it")
    make = Make(_LOSSES[loss], **options)
    make()  # checks the values
    replacements: dict[str, Callable[..., nn.Module]] = {
        "ClipLoss": functools.partial(_softmax, make),
        "SigLipLoss": functools.partial(_sigmoid, make),
        "CoCaLoss": functools.partial(_coca, make),
        "DistillClipLoss": functools.partial(_distillation, make),
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


def _coca(
    make: Make, caption_loss_weight: float, clip_loss_weight: float, **others: Any
) -> nn.Module:
    """Return the losses for open_clip's arguments of CoCaLoss."""
    captions = _COCA(caption_loss_weight, 0.0, **others)  # without a contrastive loss
    others.pop("pad_id", None)
    return _WithTheirs(_softmax(make, **others), captions, clip_loss_weight)


def _distillation(make: Make, **arguments: Any) -> nn.Module:
    """Return the losses for open_clip's arguments of DistillClipLoss."""
    if arguments.get("world_size", 1) > 1 and not arguments.get("gather_with_grad"):
        raise ValueError(
            "gather_with_grad must be True for distillation on several ranks, got False; add "
            "--gather-with-grad, without which the distillation loss has a part of its gradient"
        )
    return _WithTheirs(_softmax(make, **arguments), _DISTILLATION(**arguments))


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


class _WithTheirs(nn.Module):
    """A loss of this package, with the terms that open_clip adds to the contrastive loss."""

    def __init__(self, criterion: nn.Module, theirs: nn.Module, weight: float = 1.0) -> None:
        super().__init__()
        self.criterion, self.theirs, self.weight = criterion, theirs, weight

    def forward(
        self,
        image_features: Tensor,  # [N, d]
        text_features: Tensor,  # [N, d]
        *,
        logit_scale: Tensor,
        output_dict: bool = False,
        **others: Tensor,
    ) -> dict[str, Tensor] | tuple[Tensor, ...]:
        """Return the terms by name, or the sum of this package's terms and then open_clip's."""
        terms = self.criterion(image_features, text_features, logit_scale, output_dict=True)
        terms = {name: self.weight * term for name, term in terms.items()}
        given = {"image_features": image_features, "text_features": text_features, **others}
        theirs = self.theirs(**given, logit_scale=logit_scale, output_dict=True)
        del theirs["contrastive_loss"]
        if output_dict:
            return {**terms, **theirs}
        return torch.stack(list(terms.values())).sum(), *theirs.values()


def build_parser() -> ArgumentParser:
    """Return the parser of the flags before `--`."""
    parser = ArgumentParser(
        prog="python -m cyclip_ext.integrations.open_clip",
        description="Run open_clip's trainer with a loss of cyclip_ext.",
        usage="%(prog)s [--loss LOSS] [OPTION ...] -- FLAG_OF_OPEN_CLIP ...",
    )
    parser.add_argument("--loss", choices=list(_LOSSES), default="cyclip")
    parser.add_class_arguments(CyCLIPLoss, skip={*_RESERVED, "same_label"})
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Install the loss and run open_clip_train with the flags after `--`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    if "--" not in arguments and not {"-h", "--help"} & set(arguments):
        parser.error("open_clip's flags must follow after --")
    border = arguments.index("--") if "--" in arguments else len(arguments)
    ours = [re.sub("(?<=[a-z])-", "_", word) for word in arguments[:border]]  # also --in-modal
    try:
        install(**vars(parser.parse_args(ours, defaults=False)))
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    importlib.import_module("open_clip_train.main").main(arguments[border + 1 :])


if __name__ == "__main__":
    main()
