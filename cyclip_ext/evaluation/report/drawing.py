"""Plots as PNG files in memory."""

from __future__ import annotations

import io

from ..outcome import Plot

DPI = 160  # a plot of 6.4 inches is sharp on a phone and on a page


def can_draw() -> bool:
    """Whether matplotlib, of the extra `eval`, is there."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def draw(plot: Plot) -> bytes:
    """The plot as a PNG file, on white."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=plot.size, dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    plot.draw(figure)
    file = io.BytesIO()
    # No date and no version inside: equal results are equal files.
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
