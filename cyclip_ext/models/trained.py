"""Trained models: this package's checkpoints, and open_clip's names with weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from .. import needs
from .checkpoint import State, load_checkpoint
from .factory import CreatedModel, create_model

CHOICE = ("checkpoints/best.pt", "checkpoints/last.pt")  # of a run folder, the first there is


@dataclass(frozen=True)
class TrainedModel:
    """A model with its weights and where they are from.

    created: model, tokenizer, picture size. weights: the checkpoint, or open_clip's tag. settings:
    those of the run, as in its config.json; empty for another trainer's weights. transform: what
    another trainer's model asks of pictures; None: what this package trains with
    (cyclip_ext.data.file_transform, and render for sets in memory).
    """

    created: CreatedModel
    weights: str
    settings: dict[str, Any] = field(default_factory=dict)
    transform: Callable[[Image.Image], Tensor] | None = None


def checkpoint_of(path: Path) -> Path:
    """The checkpoint that stands for a run folder: best.pt, else last.pt; a file is itself.

    Raises FileNotFoundError, naming what was looked for, where there is none.
    """
    if not path.is_dir():
        return path
    for name in CHOICE:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(
        f"{path} holds neither {' nor '.join(CHOICE)}: give a run folder of this package's "
        "training, or a checkpoint file"
    )


def load_trained(path: Path) -> TrainedModel:
    """The model of a checkpoint or run folder of this package's training, on the CPU.

    Of a run folder the weights that validated best, else the last. Where the run keeps a moving
    average of its weights, that is taken, as training measures it. Only weights are read: no code
    of the file is executed.

    Raises FileNotFoundError where nothing is there, ValueError where the file is damaged, is not
    one of ours, or does not fit its model.
    """
    file = checkpoint_of(path)
    state = load_checkpoint(file)
    if not {"config", "model"} <= state.keys():
        raise ValueError(f"{file} has no weights and settings of a run, but {', '.join(state)}")
    settings = state["config"]
    created = create_model(settings["run"]["model"], sigmoid=settings["loss"]["loss"] == "siglip")
    _load(created, _weights(state), file)
    return TrainedModel(created, str(file), settings)


def load_pretrained(name: str, weights: str) -> TrainedModel:
    """open_clip's model `name` with weights from a file or of one of open_clip's tags, on the CPU.

    A tag is downloaded by open_clip where its cache has it not.

    Raises ValueError where name or weights are unknown or do not fit, MissingDependency where
    open_clip does not import.
    """
    open_clip = needs.open_clip()
    if name not in open_clip.list_models():
        raise ValueError(f"model {name!r} is none of open_clip.list_models()")
    known = open_clip.list_pretrained_tags_by_model(name)
    if not Path(weights).is_file() and weights not in known:
        raise ValueError(
            f"weights {weights!r} are neither a file nor a tag of {name}; its tags: "
            f"{', '.join(known) or 'none'}"
        )
    try:
        model, _, transform = open_clip.create_model_and_transforms(
            name, pretrained=weights, output_dict=True
        )
    except Exception as error:  # of torch, safetensors, the hub: whatever is wrong with the weights
        raise ValueError(f"{name} cannot take the weights {weights}: {error}") from error
    size: Any = model.visual.image_size
    created = CreatedModel(
        name,
        model,
        open_clip.get_tokenizer(name),
        size[0] if isinstance(size, (tuple, list)) else size,
    )
    return TrainedModel(created, weights, transform=transform)


def _weights(state: State) -> dict[str, Tensor]:
    """Those that training measures: of last.pt the moving average, where there is one."""
    average = state.get("ema")
    if average is None:
        return cast(dict[str, Tensor], state["model"])
    inner = "module."  # of torch's AveragedModel, beside its counter
    return {
        key.removeprefix(inner): value for key, value in average.items() if key.startswith(inner)
    }


def _load(created: CreatedModel, weights: dict[str, Tensor], file: Path) -> None:
    try:
        created.model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{file} does not fit the model {created.name}, of which it was trained: {error}"
        ) from error
    for name, value in created.model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(
                f"{file}: {name} is not finite; the run has diverged, take an earlier checkpoint"
            )
