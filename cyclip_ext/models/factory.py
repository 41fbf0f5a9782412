"""Models by name: this package's own from configs/*.json, all others from open_clip."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from .mini import ImageConfig, MiniCLIP, TextConfig
from .tokenizers import (
    Tokenizer,
    TokenizerName,
    default_tokenizer,
    import_open_clip,
    make_tokenizer,
)

CONFIGS = Path(__file__).parent / "configs"

CLIP_LOGIT_SCALE = math.log(1 / 0.07)  # Radford et al. 2021, section 2.5
SIGLIP_LOGIT_SCALE, SIGLIP_LOGIT_BIAS = math.log(10), -10.0  # Zhai et al. 2023, section 3.2


@dataclass(frozen=True)
class CreatedModel:
    """A model with its name, tokenizer and image size.

    Attributes:
        name: Name of the model, as given to `create_model`.
        model: Module with encode_image, encode_text, logit_scale (log) and logit_bias.
        tokenizer: Function from a list of texts to int64 [n, context_length].
        image_size: Width of the square images it takes, in pixels.
        tokenizer_name: The choice that `create_model` needs to make the same tokenizer again.
    """

    name: str
    model: nn.Module
    tokenizer: Tokenizer
    image_size: int
    tokenizer_name: TokenizerName = "open_clip"

    @property
    def parameters(self) -> int:
        """Number of trained values."""
        return sum(p.numel() for p in self.model.parameters())


def list_models() -> list[str]:
    """Return the names of this package's own configurations; open_clip's names work as well."""
    return sorted(path.stem for path in CONFIGS.glob("*.json"))


def create_model(
    name: str, *, sigmoid: bool = False, tokenizer: TokenizerName | None = None
) -> CreatedModel:
    """Create a freshly initialized model.

    The weights depend on torch's global generator, so seed it first. Nothing is downloaded.

    Args:
        name: One of `list_models()` or of `open_clip.list_models()`.
        sigmoid: Start the temperature as SigLIP does and give the model a logit_bias.
        tokenizer: "open_clip" for the tokenizer that open_clip has for the model, or "words" for
            hashed words, which only this package's own models take. Default: "open_clip" if it can
            be imported. A checkpoint must be loaded with the tokenizer it was trained with.

    Raises:
        ValueError: If the name is unknown, or the model does not take the tokenizer.
        ImportError: If open_clip is needed and cannot be imported.
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
        chosen = tokenizer or default_tokenizer()
        tokens = make_tokenizer(chosen, text.context_length, text.vocab_size)
        return CreatedModel(name, _channels_last(mini), tokens, image.image_size, chosen)
    open_clip = import_open_clip()
    if config:
        open_clip.add_model_config(path)
    if name not in open_clip.list_models():
        raise ValueError(
            f"model {name!r} is unknown; this package has {', '.join(list_models())}, and every "
            "name of open_clip.list_models() works"
        )
    if tokenizer == "words":
        raise ValueError(
            f'tokenizer "words" is for this package\'s own models; {name} takes "open_clip"'
        )
    model = open_clip.create_model(name, output_dict=True, **temperature)
    return CreatedModel(
        name, _channels_last(model), open_clip.get_tokenizer(name), image_size_of(model)
    )


def image_size_of(model: Any) -> int:
    """Return the width in pixels of the images that a model of open_clip takes."""
    size: Any = model.visual.image_size
    return int(size[0] if isinstance(size, (tuple, list)) else size)


def _channels_last(model: nn.Module) -> nn.Module:
    """Convert convolution weights to the layout that oneDNN and cuDNN use without reordering."""
    return model.to(memory_format=cast(Any, torch.channels_last))
