"""Models by name: ours from configs/*.json, open_clip's otherwise."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import needs
from .mini import ImageConfig, MiniCLIP, TextConfig

CONFIGS = Path(__file__).parent / "configs"

CLIP_LOGIT_SCALE = math.log(1 / 0.07)  # Radford et al. 2021, section 2.5
SIGLIP_LOGIT_SCALE, SIGLIP_LOGIT_BIAS = math.log(10), -10.0  # Zhai et al. 2023, section 3.2


@dataclass(frozen=True)
class CreatedModel:
    """A model with what belongs to it.

    model: has encode_image, encode_text, logit_scale (log) and logit_bias. tokenizer: list of texts
    -> int64 [n, context_length]. image_size: width of the square pictures it takes, in pixels.
    """

    name: str
    model: nn.Module
    tokenizer: Callable[[list[str]], Tensor]
    image_size: int

    @property
    def parameters(self) -> int:
        """Number of trained values."""
        return sum(p.numel() for p in self.model.parameters())


def list_models() -> list[str]:
    """Names of this package's own configurations; `create_model` takes open_clip's names too."""
    return sorted(path.stem for path in CONFIGS.glob("*.json"))


def create_model(name: str, *, sigmoid: bool = False) -> CreatedModel:
    """A freshly initialized model: torch's global generator decides, so seed it before.

    name: one of `list_models()` or of `open_clip.list_models()`. sigmoid: start the temperature as
    SigLIP does and give the model a logit_bias. Nothing is downloaded.

    Raises ValueError for an unknown name, MissingDependency where open_clip does not import.
    """
    path = CONFIGS / f"{name}.json"
    config: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    temperature: dict[str, Any] = {"init_logit_scale": CLIP_LOGIT_SCALE}
    if sigmoid:
        temperature = {"init_logit_scale": SIGLIP_LOGIT_SCALE, "init_logit_bias": SIGLIP_LOGIT_BIAS}
    if "image" in config:
        image = ImageConfig(**config["image"])
        text = TextConfig(**config["text"])
        mini = MiniCLIP(config["embed_dim"], image, text, **temperature)
        tokenizer = _simple_tokenizer(text.context_length)
        return CreatedModel(name, _channels_last(mini), tokenizer, image.image_size)
    open_clip = needs.open_clip()
    if config:
        open_clip.add_model_config(path)
    if name not in open_clip.list_models():
        raise ValueError(
            f"model {name!r} is unknown; this package has {', '.join(list_models())}, and every "
            "name of open_clip.list_models() works"
        )
    model = open_clip.create_model(name, output_dict=True, **temperature)
    size: Any = model.visual.image_size
    return CreatedModel(
        name,
        _channels_last(model),
        open_clip.get_tokenizer(name),
        size[0] if isinstance(size, (tuple, list)) else size,
    )


def _channels_last(model: nn.Module) -> nn.Module:
    """Convolution weights in the layout that oneDNN and cuDNN use without reordering."""
    return model.to(memory_format=cast(Any, torch.channels_last))


def _simple_tokenizer(context_length: int) -> Callable[[list[str]], Tensor]:
    """CLIP's byte-pair tokenizer, whose vocabulary open_clip carries."""
    tokenizer: Callable[[list[str]], Tensor] = needs.open_clip().SimpleTokenizer(
        context_length=context_length
    )
    return tokenizer
