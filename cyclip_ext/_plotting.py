"""Palette and helpers of all plots. matplotlib is imported on first use."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito: distinguishable by colour-blind readers as well.
COLORS = BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = (
    *("#0072b2", "#d55e00", "#009e73"),
    *("#cc79a7", "#e69f00", "#56b4e9"),
)
DASHES = ("-", "--", ":")  # if there are more curves than colours

DPI = 160  # a plot of 6.4 inches is sharp on a phone and on a page


def png(draw: Callable[[Figure], None], size: tuple[float, float], dpi: int = DPI) -> bytes:
    """Return a plot as a PNG file on white. Equal plots are equal files.

    draw: draws on an empty figure of `size` inches, whose layout is computed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=dpi, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})  # no date and no version
    return file.getvalue()


def line_style(index: int) -> dict[str, Any]:
    """Return colour and dashes of curve `index`; they repeat after 18 curves."""
    dashes = DASHES[index // len(COLORS) % len(DASHES)]
    return {"color": COLORS[index % len(COLORS)], "linestyle": dashes}


def plain(axes: Axes) -> None:
    """Remove the upper and right spines, and draw a faint grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)


def shorten(name: str, length: int = 24) -> str:
    """Return the name cut to `length` characters, with dollar signs escaped.

    matplotlib would take the text between two of them for a formula.
    """
    cut = name if len(name) <= length else name[: length - 1] + "…"
    return cut.replace("$", r"\$")
