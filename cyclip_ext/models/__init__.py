"""Two-tower models: small ones of our own for small pictures, and all of open_clip's by name.

`create_model(name)` gives model, tokenizer and picture size. The configurations in configs/ come in
two forms: with "image" and "text" for the towers of mini.py, with "vision_cfg" and "text_cfg" for
open_clip, which learns them by name. `synchronize_batch_norm(model, group)` lets batch norm see the
batch of all processes. trained.py loads what was trained: checkpoints of this package (whose files
checkpoint.py verifies) and open_clip's weights. No loss and no training belongs here.
"""

from .batch_norm import GroupBatchNorm, synchronize_batch_norm
from .factory import CreatedModel, create_model, list_models
from .mini import ImageConfig, ImageTower, MiniCLIP, TextConfig, TextTower

__all__ = [
    "CreatedModel",
    "GroupBatchNorm",
    "ImageConfig",
    "ImageTower",
    "MiniCLIP",
    "TextConfig",
    "TextTower",
    "create_model",
    "list_models",
    "synchronize_batch_norm",
]
