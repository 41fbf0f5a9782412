"""The types that every task uses: its metrics, tables, plots, options and result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from ..embeddings import Embeddings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THUMBNAIL = 112  # pixels of the longer side of an image in an example, at most
NEAREST = 5  # candidates in an example

Cell = str | int | float | None
Baselines = Mapping[str, Sequence[tuple[float, float]]]


class Unit(Enum):
    """How reports show a number: a share, or a difference of shares, in percent."""

    SHARE = "%"
    NUMBER = ""


@dataclass(frozen=True)
class Metric:
    """The declaration of one number.

    key: in results.json; CLIP_benchmark's if it has one. label: in the report, without the unit.
    headline: whether the number is also shown at the top of the report.
    """

    key: str
    label: str
    unit: Unit = Unit.NUMBER
    headline: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under a header, of equal length.

    Shares are in percent, with "%" in the header. The report gives the floats of a column one
    number of digits, and shows None and NaN as a dash.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError for a row that is not as long as the header."""
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(
                    f"rows of {self.title!r} must have {len(self.header)} cells, like the header, "
                    f"got {len(row)}: {row}"
                )


@dataclass(frozen=True)
class Plot:
    """A figure that is drawn when the report is written.

    name: stem of its file. caption: its contents, and how to read it. draw: draws on the matplotlib
    Figure that it is given. size: inches.
    """

    name: str
    caption: str
    draw: Callable[[Figure], None]
    size: tuple[float, float] = (6.4, 4.0)


@dataclass(frozen=True)
class Item:
    """An image, a text, or an image with its caption or class.

    load: reads the image, of any size; None for a text alone.
    """

    text: str
    load: Callable[[], Image.Image] | None = None


@dataclass(frozen=True)
class Example:
    """A query with its nearest candidates, best first.

    nearest: candidate, cosine, and whether it belongs to the query.
    """

    query: Item
    nearest: tuple[tuple[Item, float, bool], ...]


@dataclass(frozen=True)
class Gallery:
    """Examples to look at, drawn at random, whose numbers are in no metric."""

    title: str
    examples: tuple[Example, ...]


def choose_rows(count: int, size: int, seed: int) -> Tensor:
    """Draw up to `size` distinct rows of `count`, in ascending order; int64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:size].sort().values


def nearest(
    query: Item,
    similarity: Tensor,  # [n], cosines of all candidates
    candidate: Callable[[int], Item],
    right: Callable[[int], bool],
) -> Example:
    """Build an example with the NEAREST best candidates."""
    found = similarity.topk(min(NEAREST, len(similarity)))
    return Example(
        query,
        tuple(
            (candidate(index), cosine, right(index))
            for index, cosine in zip(found.indices.tolist(), found.values.tolist(), strict=True)
        ),
    )


@dataclass(frozen=True)
class TaskResult:
    """One task on one dataset.

    measured: the number of each metric; a share is between 0 and 1. explanation: one or two plain
    sentences on how to read the numbers. data: every dataset that the numbers were computed from;
    run_tasks adds the evaluated one.
    """

    dataset: str
    task: str
    measured: Mapping[Metric, float]
    title: str
    explanation: str
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    data: tuple[Embeddings, ...] = field(default=(), repr=False)
    galleries: tuple[Gallery, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError if two metrics have one key."""
        if len(self.values) < len(self.measured):
            keys = [metric.key for metric in self.measured]
            raise ValueError(f"metrics of task {self.task!r} must have different keys, got {keys}")

    @property
    def values(self) -> dict[str, float]:
        """The numbers by the key of their metric."""
        return {metric.key: value for metric, value in self.measured.items()}


@dataclass(frozen=True)
class TaskOptions:
    """Inputs of a task in addition to the dataset.

    train: labelled images of the same classes, the training set of neighbours and probes.
    shifted: datasets that distribution_shift compares with this one. baselines: shifted dataset ->
    (base, shifted) accuracies of other models. seed: of random batches and samples.
    """

    train: Embeddings | None = None
    shifted: tuple[Embeddings, ...] = ()
    baselines: Baselines | None = None
    seed: int = 0


Run = Callable[[Embeddings, TaskOptions], TaskResult | None]  # None: an array is missing
