"""Imports of optional packages, on first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def require(module: str, purpose: str, extra: str) -> Any:
    """Import a module that an extra of this package installs.

    purpose: begins the error message, as in "the linear probe needs scikit-learn".

    Raises ImportError, with the command that installs the extra, if the import fails.
    """
    try:
        return import_module(module)
    except Exception as error:  # a torchvision built for another torch fails with RuntimeError
        raise ImportError(
            f"{purpose}: pip install 'cyclip_ext[{extra}]'; importing it failed with: {error}"
        ) from error
