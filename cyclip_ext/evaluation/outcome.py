"""What a task hands to the report: numbers, tables, plots, and a sentence on how to read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows under a header, of equal length.

    Shares stand in percent, with "%" in the header. The report gives the floats of a column one
    number of digits; None and NaN are shown as a dash.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError for a row that is not as long as the header."""
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(
                    f"rows of {self.title!r} must have {len(self.header)} cells, as the header "
                    f"has, got {len(row)}: {row}"
                )


@dataclass(frozen=True)
class Plot:
    """A picture that is drawn when the report is written.

    name: stem of its file. caption: what it shows and how to read it. draw: draws on the matplotlib
    Figure it is given. size: inches.
    """

    name: str
    caption: str
    draw: Callable[[Figure], None]
    size: tuple[float, float] = (6.4, 4.0)


@dataclass(frozen=True)
class Outcome:
    """One task on one data set.

    task and the keys of metrics are CLIP_benchmark's where it has them: zeroshot_classification,
    zeroshot_retrieval, linear_probe, image_caption_selection; acc1, mean_per_class_recall,
    image_retrieval_recall@5. metrics are as the functions that measure them return them, so a
    share is between 0 and 1. reading: one or two plain sentences on how to read the numbers.
    """

    dataset: str
    task: str
    metrics: dict[str, float]
    title: str
    reading: str
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
