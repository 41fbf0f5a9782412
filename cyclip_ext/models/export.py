"""Export of trained models to open_clip, safetensors and ONNX.

Only models of this package's runs are exported. Nothing here trains or evaluates.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .._normalization import MEAN, STD
from .._optional import require
from .factory import CONFIGS, CreatedModel
from .mini import MiniCLIP
from .tokenizers import import_open_clip
from .trained import load_trained

ExportFormat = Literal["open_clip", "safetensors", "onnx"]
FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)

# How training and evaluation prepare images (cyclip_ext.data.transforms), in open_clip's words.
PREPROCESSING = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}

_ONE_FILE = 2**30  # bytes; a larger ONNX graph has its weights in a file beside it


def export_run(path: Path, folder: Path, format: ExportFormat) -> list[Path]:
    """Write the model of a run in a format that needs neither the run nor this package.

    The weights are those that `load_trained` takes: best.pt before last.pt, and the moving average
    if the run keeps one. Files of the same names in `folder` are replaced, but only after the
    export has succeeded.

    - "open_clip": open_clip_config.json and open_clip_model.safetensors, which open_clip loads as
      local-dir:FOLDER, and the second also as pretrained=FILE. Only for models of open_clip.
    - "safetensors": model.safetensors and config.json, which has the arguments of `create_model`.
    - "onnx": image.onnx, text.onnx and config.json. The graphs map float32 [n, 3, s, s] to
      image_features and int64 [n, context_length] to text_features, both float32 [n, embed_dim] of
      unit length, for any n.

    config.json also has the preprocessing of images and the factor of the logits.

    Args:
        path: Run folder or checkpoint file.
        folder: Where the files are written; created if it does not exist.
        format: "open_clip", "safetensors" or "onnx".

    Returns:
        The written files.

    Raises:
        ValueError: If the format is unknown, if it is "open_clip" and the model is one of this
            package's own, and as `load_trained`.
        FileNotFoundError: If there is no checkpoint.
        OSError: If `folder` cannot be written.
        ImportError: If a package of the extra "export" is missing.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    for package in _PACKAGES[format]:
        require(package, f"format {format} needs the package {package}", "export")
    created = load_trained(path).created
    if format == "open_clip" and isinstance(created.model, MiniCLIP):
        raise ValueError(
            f"format open_clip needs an architecture of open_clip, got {created.name}, one of this "
            "package's own; use safetensors or onnx"
        )
    created.model.eval()
    made = folder / f".export.{os.getpid()}.tmp"
    try:
        made.mkdir(parents=True)
    except OSError as error:
        raise OSError(
            f"the export cannot be written into {folder}: {error.strerror}; choose another folder"
        ) from None
    try:
        _WRITERS[format](created, made)
        return [file.replace(folder / file.name) for file in sorted(made.iterdir())]
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _write_open_clip(created: CreatedModel, folder: Path) -> None:
    _write_weights(created.model, folder / "open_clip_model.safetensors")
    config = {"model_cfg": _architecture(created), "preprocess_cfg": PREPROCESSING}
    _write_json(config, folder / "open_clip_config.json")


def _write_safetensors(created: CreatedModel, folder: Path) -> None:
    _write_weights(created.model, folder / "model.safetensors")
    _write_config(created, folder)


def _write_onnx(created: CreatedModel, folder: Path) -> None:
    size = created.image_size
    inputs = {"image": torch.zeros(2, 3, size, size), "text": created.tokenizer(["a", "b"])}
    stored = sum(p.numel() * p.element_size() for p in created.model.parameters())
    for name, example in inputs.items():
        torch.onnx.export(
            _Tower(created.model, name),
            (example,),
            folder / f"{name}.onnx",
            input_names=[name],
            output_names=[f"{name}_features"],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            external_data=stored > _ONE_FILE,
            dynamo=True,
            verbose=False,
        )
    _write_config(created, folder)


_PACKAGES: dict[ExportFormat, tuple[str, ...]] = {
    "open_clip": ("safetensors",),
    "safetensors": ("safetensors",),
    "onnx": ("onnx", "onnxscript"),
}
_WRITERS: dict[ExportFormat, Callable[[CreatedModel, Path], None]] = {
    "open_clip": _write_open_clip,
    "safetensors": _write_safetensors,
    "onnx": _write_onnx,
}


class _Tower(nn.Module):
    """One tower with its normalization, as the graph of a file."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model = model
        self.name = name

    def forward(self, inputs: Tensor) -> Tensor:
        encode: Callable[..., Tensor] = getattr(self.model, f"encode_{self.name}")
        return encode(inputs, normalize=True)


def _write_weights(model: nn.Module, path: Path) -> None:
    from safetensors.torch import save

    # Safetensors takes neither channels-last tensors nor tensors that share memory.
    weights = {
        name: value.clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }
    path.write_bytes(save(weights))


def _write_config(created: CreatedModel, folder: Path) -> None:
    model: Any = created.model
    bias = getattr(model, "logit_bias", None)
    config = {
        "create_model": {
            "name": created.name,
            "sigmoid": bias is not None,
            "tokenizer": created.tokenizer_name,
        },
        "architecture": _architecture(created),
        "image_size": created.image_size,
        "context_length": created.tokenizer([""]).shape[1],
        "preprocessing": PREPROCESSING,
        "logit_scale": model.logit_scale.exp().item(),
        "logit_bias": None if bias is None else bias.item(),
    }
    _write_json(config, folder / "config.json")


def _architecture(created: CreatedModel) -> dict[str, Any]:
    path = CONFIGS / f"{created.name}.json"
    config: dict[str, Any] = (
        json.loads(path.read_text())
        if path.exists()
        else import_open_clip().get_model_config(created.name)
    )
    bias = getattr(created.model, "logit_bias", None)
    return config if bias is None else config | {"init_logit_bias": bias.item()}


def _write_json(content: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
