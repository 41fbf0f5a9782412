"""Plots as PNG files in memory."""

from __future__ import annotations

from ..._plotting import DPI, png
from ..outcome import Plot

__all__ = ["DPI", "can_draw", "draw"]


def can_draw() -> bool:
    """Return whether matplotlib can be imported."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def draw(plot: Plot) -> bytes:
    """Return the plot as a PNG file, on white."""
    return png(plot.draw, plot.size)
