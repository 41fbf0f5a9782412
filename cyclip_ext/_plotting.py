"""How the drawings of the package look: colours, few lines, short names; without matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito: told apart by colour-blind readers, too.
COLORS = BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = (
    *("#0072b2", "#d55e00", "#009e73"),
    *("#cc79a7", "#e69f00", "#56b4e9"),
)
DASHES = ("-", "--", ":")  # where there are more curves than colours


def line_style(index: int) -> dict[str, Any]:
    """Colour and dashes of curve `index`; they repeat after 18 curves."""
    dashes = DASHES[index // len(COLORS) % len(DASHES)]
    return {"color": COLORS[index % len(COLORS)], "linestyle": dashes}


def plain(axes: Axes) -> None:
    """Two spines and a faint grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)


def shorten(name: str, length: int = 24) -> str:
    """The name, cut to `length` characters so that a label leaves room for the plot.

    Its dollar signs are escaped: matplotlib would take what is between two of them for a formula.
    """
    cut = name if len(name) <= length else name[: length - 1] + "…"
    return cut.replace("$", r"\$")
