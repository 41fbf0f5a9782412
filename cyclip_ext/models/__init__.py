"""Two-tower models: the small ones of this package, and all models of open_clip by name.

    factory      create_model(name): model, tokenizer and image size; configurations in configs/
    mini         the towers of this package's own models
    tokenizers   open_clip's tokenizers, or hashed words, which need no package
    batch_norm   batch norm over the batch of all processes
    locking      towers whose weights and statistics stay as they are
    trained      loading what was trained: runs of this package and everything that open_clip loads
    checkpoint   reading and verifying the files of runs
    export       writing trained models for open_clip, as safetensors or as ONNX

A configuration with "image" and "text" describes towers of mini.py; one with "vision_cfg" and
"text_cfg" is registered with open_clip. Losses and training do not belong here.
"""

from .batch_norm import GroupBatchNorm, synchronize_batch_norm
from .factory import CreatedModel, create_model, list_models
from .mini import ImageConfig, ImageTower, MiniCLIP, TextConfig, TextTower
from .tokenizers import TokenizerName, WordTokenizer, default_tokenizer

__all__ = [
    "CreatedModel",
    "GroupBatchNorm",
    "ImageConfig",
    "ImageTower",
    "MiniCLIP",
    "TextConfig",
    "TextTower",
    "TokenizerName",
    "WordTokenizer",
    "create_model",
    "default_tokenizer",
    "list_models",
    "synchronize_batch_norm",
]
