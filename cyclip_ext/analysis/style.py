"""How the drawings look: colours that the colour-blind can tell apart, and few lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = (  # Okabe and Ito
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)
IMAGE, TEXT, THIRD = COLORS[:3]
DASHES = ("-", "--", ":")  # where there are more curves than colours


def line_style(index: int) -> dict[str, Any]:
    """Colour and dashes of curve `index`; they repeat after 18 curves."""
    dashes = DASHES[index // len(COLORS) % len(DASHES)]
    return {"color": COLORS[index % len(COLORS)], "linestyle": dashes}


def plain(axes: Axes) -> None:
    """Two spines and a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
