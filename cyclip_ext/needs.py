"""Names that move to models.tokenizers; ImportError is what is raised."""

from __future__ import annotations

from .models.tokenizers import import_open_clip as open_clip

__all__ = ["MissingDependency", "open_clip"]

MissingDependency = ImportError
