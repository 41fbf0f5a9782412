"""Trained models: checkpoints of this package, and models that open_clip can load."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from .checkpoint import State, load_checkpoint, read_state, shortened
from .factory import CreatedModel, create_model, image_size_of
from .mini import MiniCLIP
from .tokenizers import TokenizerName, import_open_clip

CHOICE = ("checkpoints/best.pt", "checkpoints/last.pt")  # of a run folder, in this order

# open_clip's names that bring their own weights.
SCHEMAS = ("local-dir:", "hf-hub:")

_PREFIXES = ("module.", "_orig_mod.", "model.")  # of DDP or AveragedModel, compile, Lightning


@dataclass(frozen=True)
class TrainedModel:
    """A model with its weights and their origin.

    Attributes:
        created: Model, tokenizer and image size.
        weights: The checkpoint, or open_clip's tag.
        settings: Settings of the run, as in its config.json; empty for another trainer's weights.
        fingerprints: Digests of the run's "training" and "validation" records, if it has them.
        transform: Preprocessing of another trainer's model, from an RGB image to [3, h, w]. None
            for a run of this package, which uses cyclip_ext.data.file_transform, and render for
            datasets in memory.
    """

    created: CreatedModel
    weights: str
    settings: dict[str, Any] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    transform: Callable[[Image.Image], Tensor] | None = None


def checkpoint_of(path: Path) -> Path:
    """Return the checkpoint of a run folder: best.pt, else last.pt. Files are returned unchanged.

    Raises:
        FileNotFoundError: If the folder has neither.
    """
    if not path.is_dir():
        return path
    for name in CHOICE:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(
        f"{path} has neither {' nor '.join(CHOICE)}; give a run folder of this package's training, "
        "or a checkpoint file"
    )


def run_folder_of(path: Path) -> Path:
    """Return the run folder of a checkpoint, or the folder of another file."""
    if path.is_dir():
        return path
    folder = path.resolve().parent
    return folder.parent if folder.name == "checkpoints" else folder


def load_trained(path: Path) -> TrainedModel:
    """Load the model of a run folder or checkpoint of this package's training, on the CPU.

    From a run folder, the weights that validated best are taken, else the last ones. If the run
    keeps a moving average of its weights, that average is taken, as in training's own evaluation.
    Only tensors and plain values are read; no code in the file is executed.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If the file is damaged, is not a checkpoint of this package, or does not fit its
            model.
        ImportError: If the model or its tokenizer needs open_clip and it cannot be imported.
    """
    file = checkpoint_of(path)
    state = load_checkpoint(file)
    settings = state.get("config")
    try:
        run, loss = settings["run"], settings["loss"]["loss"]  # type: ignore[index]
        name, weights = run["model"], state["model"]
        if not isinstance(weights, dict):
            raise TypeError
    except (KeyError, TypeError):
        raise ValueError(
            f"{file} lacks the weights or settings of a run; it has the entries "
            f"{shortened([*map(str, state)])}"
        ) from None
    # Runs from before tokenizers could be chosen were trained with open_clip's.
    tokenizer: TokenizerName = run.get("tokenizer", "open_clip")
    try:
        created = create_model(name, sigmoid=loss == "siglip", tokenizer=tokenizer)
    except ImportError as error:
        raise ImportError(f"{file} was trained with {name} and its tokenizer: {error}") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    average = state.get("ema")
    _load(created, unwrapped(weights if average is None else average), file)
    return TrainedModel(created, str(file), settings or {}, state.get("fingerprints") or {})


def load_pretrained(name: str, weights: str | None = None) -> TrainedModel:
    """Load a model of open_clip with its weights, on the CPU.

    Args:
        name: One of `open_clip.list_models()`, "local-dir:FOLDER", "hf-hub:ORGANIZATION/MODEL", or
            a JSON file with the configuration of an architecture.
        weights: A file, or one of open_clip's tags, which it downloads if they are not cached.
            None with local-dir and hf-hub, which bring their own. In a file, the weights may lie
            under "state_dict" or "model", and their names may begin with "module.", "_orig_mod." or
            "model.".

    Raises:
        ValueError: If name or weights are unknown or do not fit.
        ImportError: If open_clip cannot be imported.
    """
    open_clip = import_open_clip()
    if name.startswith(SCHEMAS):
        if weights is not None:
            raise ValueError(
                f"{name} contains its own weights, got pretrained {weights!r}; omit pretrained"
            )
        loaded = _from_open_clip(name, None)
        return TrainedModel(loaded.created, name, transform=loaded.transform)
    if Path(name).suffix == ".json":
        name = _add_config(Path(name))
    if name not in open_clip.list_models():
        raise ValueError(
            f"model {name!r} is not one of open_clip.list_models(); give one of these, "
            f"{SCHEMAS[0]}FOLDER, {SCHEMAS[1]}NAME, or a JSON file with its configuration"
        )
    known = open_clip.list_pretrained_tags_by_model(name)
    tags = f"its tags are: {', '.join(known) or 'none'}"
    if weights is None:
        raise ValueError(f"{name} needs pretrained weights, a file or one of its tags; {tags}")
    if not Path(weights).is_file() and weights not in known:
        raise ValueError(
            f"pretrained weights {weights!r} are neither a file nor a tag of {name}; {tags}"
        )
    try:
        return _from_open_clip(name, weights)
    except ValueError as error:
        return _from_wrapped(name, Path(weights), error)


def load_weights(created: CreatedModel, weights: str) -> dict[str, Any]:
    """Load pretrained weights, with their temperature, into a new model.

    Args:
        created: A model of `create_model`. Its logit_bias is unchanged if the weights have none.
        weights: A run folder or checkpoint of this package's training, of which the same weights
            are taken as by `load_trained`; another trainer's file as for `load_pretrained`; or one
            of open_clip's tags for a model of open_clip.

    Returns:
        The preprocessing that open_clip states for the weights, such as its "mean" and "std"; empty
        for a model of this package.

    Raises:
        FileNotFoundError: If the folder has no checkpoint.
        ValueError: If weights are unknown or do not fit.
        ImportError: If open_clip is needed and cannot be imported.
    """
    path = Path(weights)
    preprocessing: dict[str, Any] = {}
    state: State | None = None
    if isinstance(created.model, MiniCLIP):
        if not path.exists():
            raise ValueError(
                f"pretrained weights of {created.name} must be a file or run folder that exists, "
                f"got {weights!r}"
            )
        state = read_state(checkpoint_of(path))
    elif path.exists():
        with suppress(ValueError):  # another trainer's
            state = load_checkpoint(checkpoint_of(path))
    if state is None:
        model: Any = load_pretrained(created.name, weights).created.model
        preprocessing = model.visual.preprocess_cfg
        found = dict(model.state_dict())
    else:
        average = state.get("ema")
        found = unwrapped(state if average is None else average)
    bias = created.model.state_dict().get("logit_bias")
    if bias is None:
        found.pop("logit_bias", None)
    else:
        found.setdefault("logit_bias", bias)
    differences = _differences(created.model, found)
    if differences:
        raise ValueError(f"pretrained weights {weights} do not fit {created.name}: {differences}")
    created.model.load_state_dict(found)
    _require_finite(created.model, weights)
    return preprocessing


def unwrapped(state: State) -> dict[str, Tensor]:
    """Return the weights in a saved state, without the prefixes of wrappers.

    Looks under "state_dict" and "model". The prefixes "module.", "_orig_mod." and "model." are
    removed, as often as every name has one.
    """
    weights: dict[str, Any] = state
    for key in ("state_dict", "model"):
        while isinstance(weights.get(key), dict):
            weights = weights[key]
    weights = {str(key): value for key, value in weights.items() if key != "n_averaged"}
    while weights:
        prefix = next((p for p in _PREFIXES if all(k.startswith(p) for k in weights)), None)
        if prefix is None:
            break
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def _from_open_clip(name: str, weights: str | None) -> TrainedModel:
    open_clip = import_open_clip()
    try:
        model, _, transform = open_clip.create_model_and_transforms(
            name, pretrained=weights, output_dict=True, require_pretrained=True
        )
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # of torch, safetensors, the hub: whatever is wrong with the weights
        reason = str(error).partition("\n")[0]
        found = "" if weights is None else f" with the weights {weights}"
        raise ValueError(f"open_clip cannot load {name}{found}: {reason}") from error
    _require_finite(model, weights or name)
    created = CreatedModel(name, model, tokenizer, image_size_of(model))
    return TrainedModel(created, weights or name, transform=transform)


def _from_wrapped(name: str, file: Path, error: ValueError) -> TrainedModel:
    """Load a file that open_clip rejected after unwrapping its weights."""
    if not file.is_file() or file.suffix == ".safetensors":
        raise error
    state = read_state(file)
    if {"format", "config"} <= state.keys():
        raise ValueError(
            f"{file} is a checkpoint of this package's training; evaluate it with "
            f"`cyclip-eval run {file}`"
        ) from error
    weights = unwrapped(state)
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(
            f"{file} holds no weights for {name}: its entries are "
            f"{shortened([*map(str, weights)]) or 'none'}"
        ) from error
    with TemporaryDirectory() as folder:
        plain = Path(folder, "weights.pt")
        torch.save(weights, plain)
        try:
            loaded = _from_open_clip(name, str(plain))
        except ValueError:
            found = _differences(_untrained(name), weights)
            raise ValueError(f"{file} does not fit {name}: {found or error}") from error
    return TrainedModel(loaded.created, str(file), transform=loaded.transform)


def _untrained(name: str) -> nn.Module:
    """Return a model without weights, and without open_clip's warning that it has none."""
    logging.disable(logging.WARNING)
    try:
        model: nn.Module = import_open_clip().create_model(name)
    finally:
        logging.disable(logging.NOTSET)
    return model


def _add_config(path: Path) -> str:
    """Register the configuration of an architecture with open_clip and return its name."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path} does not exist; give the JSON file of an architecture, or a model name"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    needed = ("embed_dim", "vision_cfg", "text_cfg")
    if not isinstance(content, dict) or not all(key in content for key in needed):
        hint = f"; for a folder of open_clip give {SCHEMAS[0]}{path.parent}"
        raise ValueError(
            f"{path} must be an object with {', '.join(needed)}"
            + (hint if isinstance(content, dict) and "model_cfg" in content else "")
        )
    import_open_clip().add_model_config(path)
    return path.stem


def _load(created: CreatedModel, weights: dict[str, Tensor], file: Path) -> None:
    differences = _differences(created.model, weights)
    if differences:
        raise ValueError(
            f"{file} does not fit the model {created.name}, which its settings name: {differences}"
        )
    created.model.load_state_dict(weights)
    _require_finite(created.model, str(file))


def _differences(model: nn.Module, weights: dict[str, Any]) -> str:
    """Return how weights differ from those of a model, or an empty string if they fit."""
    expected = model.state_dict()
    shapes = [
        f"{name} ({[*getattr(weights[name], 'shape', ['no tensor'])]} instead of {[*value.shape]})"
        for name, value in expected.items()
        if name in weights and getattr(weights[name], "shape", None) != value.shape
    ]
    found = (
        ("missing", [name for name in expected if name not in weights]),
        ("unknown", [str(name) for name in weights if name not in expected]),
        ("of another shape", shapes),
    )
    return "; ".join(f"{kind}: {shortened(names)}" for kind, names in found if names)


def _require_finite(model: nn.Module, weights: str) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(
                f"{weights}: {name} holds NaN or infinity, so nothing can be measured with these "
                "weights"
            )
