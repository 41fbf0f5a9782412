"""What is imported on first use only, with an error that says what to install."""

from __future__ import annotations

from typing import Any

import torch


class MissingDependency(RuntimeError):
    """A package that is not there or does not import; the message says which and why."""


def open_clip() -> Any:
    """The module open_clip: models, tokenizers, transforms.

    Raises MissingDependency where it, or the torchvision beneath it, does not import.
    """
    try:
        import open_clip
    except Exception as error:  # a torchvision built for another torch fails with RuntimeError
        raise MissingDependency(
            "models, tokenizers and transforms of image files need open_clip and a torchvision "
            f"that matches torch {torch.__version__}; importing open_clip failed with: {error}"
        ) from error
    return open_clip
