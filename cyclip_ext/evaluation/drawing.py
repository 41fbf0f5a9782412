"""What the plots of this folder share."""

from __future__ import annotations

# Okabe and Ito: told apart by colour-blind readers, too.
BLUE, VERMILION, GREEN, PURPLE, ORANGE = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"


def shorten(name: str, length: int = 24) -> str:
    """The name, cut to `length` characters so that a label leaves room for the plot."""
    return name if len(name) <= length else name[: length - 1] + "…"
