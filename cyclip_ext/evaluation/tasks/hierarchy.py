"""Fine- and coarse-grained accuracy over classes that are grouped into superclasses.

Source: Goel et al. 2022, their analysis of coarse- and fine-grained accuracy.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..._files import read_text
from ..._output import counted
from ..._plotting import BLUE, VERMILION, shorten
from ...data import Superclasses
from ..embeddings import Embeddings
from .base import Metric, Plot, Table, TaskOptions, TaskResult, Unit
from .zero_shot import similarity_blocks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASK = "fine_coarse_classification"

PACKAGED = {"cifar100": Path(__file__).with_name("cifar100.json")}
CSV_HEADER = ["class", "superclass"]
KS = (1, 5)
SHOWN = 20  # superclasses: more names do not fit beside a plot


# -------------------------------------------------------------------------------------- files


def superclasses_of(superclass_of: Mapping[str, str], class_names: Sequence[str]) -> Superclasses:
    """Return the superclasses of a dataset's classes from a table of class -> superclass.

    superclass_of: see `read_superclasses`; it may have more classes than the dataset. Names are
    compared without case, and underscores are spaces: "Aquarium_fish" is "aquarium fish".

    Raises ValueError for a class that is missing in the table.
    """
    table = {_normal(name): superclass for name, superclass in superclass_of.items()}
    missing = [name for name in class_names if _normal(name) not in table]
    if missing:
        raise ValueError(
            f"the hierarchy has no superclass for {len(missing)} of {len(class_names)} classes "
            f"({', '.join(missing[:5])}); add them to it"
        )
    return Superclasses.build([table[_normal(name)] for name in class_names])


def read_superclasses(source: str | Path) -> dict[str, str]:
    """Read a table of class -> superclass, for `superclasses_of`.

    source: "cifar100", whose 100 classes and 20 superclasses come with this package, or a file:
        .json  {"superclass": ["class", ...], ...} or {"class": "superclass", ...}
        .csv   a line per class under the header "class,superclass"

    Raises ValueError, naming the file and the line or class, for another form, a class that occurs
    twice in the file, and a file without classes.
    """
    path = PACKAGED.get(str(source), Path(source))
    read = {".json": _read_json, ".csv": _read_csv}.get(path.suffix)
    if read is None:
        raise ValueError(
            f"a hierarchy is a .json or .csv file or one of {', '.join(PACKAGED)}, got {source}"
        )
    table: dict[str, str] = {}
    first: dict[str, str] = {}  # class -> place in the file
    for place, *cells in read(path):
        name, superclass = (cell.strip() for cell in cells)
        if not name or not superclass:
            raise ValueError(
                f"{path}, {place}: class and superclass must not be empty; name both, or remove it"
            )
        if _normal(name) in first:
            raise ValueError(
                f"{path}, {place}: class {name!r} is already in {first[_normal(name)]}; each class "
                "belongs to one superclass"
            )
        first[_normal(name)] = place
        table[name] = superclass
    if not table:
        raise ValueError(f"{path} has no classes; add at least one with its superclass")
    return table


def _normal(name: str) -> str:
    """Return the form in which names of classes are compared."""
    return name.replace("_", " ").strip().casefold()


def _read_json(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (place in the file, class, superclass) of each entry."""
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} must be an object of class -> superclass or superclass -> classes, got "
            f"{type(content).__name__}"
        )
    for key, value in content.items():
        place = f"entry {key!r}"
        if isinstance(value, str):
            yield place, key, value
        elif isinstance(value, list) and all(isinstance(name, str) for name in value):
            yield from ((place, name, key) for name in value)
        else:
            raise ValueError(
                f"{path}, {place}: must be the name of a superclass or a list of classes, got "
                f"{value!r}"
            )
    if len({type(value) for value in content.values()}) > 1:
        raise ValueError(
            f"{path} mixes class -> superclass and superclass -> classes; use one form throughout"
        )


def _read_csv(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (place in the file, class, superclass) of each row."""
    rows = csv.reader(StringIO(read_text(path)))
    header = [cell.strip() for cell in next(rows, [])]
    if header != CSV_HEADER:
        raise ValueError(
            f"{path}, line 1: the header must be {','.join(CSV_HEADER)}, got {','.join(header)}"
        )
    for row in filter(None, rows):
        if len(row) != 2:
            raise ValueError(
                f"{path}, line {rows.line_num}: a row is a class and its superclass, got "
                f"{counted(len(row), 'cell')}; put names with commas in quotes"
            )
        yield f"line {rows.line_num}", row[0], row[1]


# ------------------------------------------------------------------------------------ metrics


@dataclass(frozen=True)
class FineAndCoarse:
    """Ranks of every image's true class and superclass, int64 [N]; rank < k is a hit at k.

    fine: how many other classes of the true superclass are at least as near as the true class.
    coarse: how many other superclasses are at least as near as the true one. Ties count against
    the model.
    """

    fine: Tensor
    coarse: Tensor

    def metrics(self, ks: Sequence[int] = KS) -> dict[str, float]:
        """Return fine_acc<k> and coarse_acc<k> for each k, shares of all images.

        fine_acc<k> chooses among the classes of the true superclass, so it is 1 for superclasses
        of up to k classes. coarse_acc<k> is 1 if there are no more than k superclasses.
        """
        return {
            f"{name}_acc{k}": (ranks < k).double().mean().item()
            for name, ranks in (("fine", self.fine), ("coarse", self.coarse))
            for k in ks
        }


def fine_and_coarse(
    image_features: Tensor,  # [N, d], unit length
    class_features: Tensor,  # [C, d], unit length
    labels: Tensor,  # int64 [N], fine labels
    superclasses: Superclasses,
) -> FineAndCoarse:
    """Rank every image's class within its superclass, and its superclass among all.

    A superclass is as near as the nearest of its classes: the maximum, so it does not matter which
    of its classes that is.
    """
    of_class, size = superclasses.of_class, len(superclasses.names)
    fine, coarse = [], []
    for rows, similarity in similarity_blocks(image_features, class_features):
        truth = labels[rows]
        own = of_class[truth][:, None]
        as_near = similarity >= similarity.gather(1, truth[:, None])
        fine.append((as_near & (own == of_class)).sum(1) - 1)  # the class itself is among them
        best = similarity.new_full((len(truth), size), -torch.inf).scatter_reduce_(
            1, of_class.expand(len(truth), -1), similarity, "amax"
        )
        coarse.append((best >= best.gather(1, own)).sum(1) - 1)
    return FineAndCoarse(torch.cat(fine), torch.cat(coarse))


# ----------------------------------------------------------------------------- table and plot


def superclass_table(
    level: str, superclasses: Superclasses, labels: Tensor, ranked: FineAndCoarse
) -> Table:
    """Tabulate size and accuracies of each superclass; without images there are no accuracies."""
    own = superclasses.of_class[labels]
    members = superclasses.of_class, own, own[ranked.coarse < 1], own[ranked.fine < 1]
    counts = [torch.bincount(each, minlength=len(superclasses.names)).tolist() for each in members]
    rows: list[Any] = [
        (name, classes, images, *(100 * (hits / images) if images else None for hits in both))
        for name, classes, images, *both in zip(superclasses.names, *counts, strict=True)
    ]
    rows.sort(key=lambda row: -row[2])
    return Table(
        f"Distribution of the {level}s, largest first",
        (level, "classes", "images", "coarse top-1 (%)", "fine top-1 (%)"),
        tuple(rows),
        f"Fine accuracy of a {level} of one class is 100% by definition.",
    )


def plot_superclasses(figure: Figure, table: Table) -> None:
    """Plot both accuracies of the 20 largest superclasses with images, best coarse one first.

    table: see superclass_table. Each name is followed by its numbers of classes and images.
    """
    rows: list[Any] = [row for row in table.rows if row[2]]
    shown = sorted(rows[:SHOWN], key=lambda row: -row[3])
    names, classes, images, coarse, fine = zip(*shown, strict=True)
    places = range(len(shown))
    axes = figure.subplots()
    for place, ends in enumerate(zip(fine, coarse, strict=True)):
        axes.plot(ends, [place, place], color="0.8", zorder=1)
    for label, marker, color, values in (
        ("coarse: the superclass", "o", BLUE, coarse),
        ("fine: the class within it", "D", VERMILION, fine),
    ):
        axes.scatter(values, places, s=22, color=color, marker=marker, label=label, zorder=2)
    labels = [
        f"{shorten(name, 32)} ({number}, {count})"
        for name, number, count in zip(names, classes, images, strict=True)
    ]
    axes.set_yticks(places, labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(-2, 102)
    axes.set_xlabel("top-1 accuracy (%)")
    axes.grid(axis="x", color="0.9")
    selection = "" if len(shown) == len(rows) else f"\nthe largest {SHOWN} of {len(rows)}"
    axes.set_ylabel(f"superclass (classes, images){selection}", fontsize=8)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8
    )


# --------------------------------------------------------------------------------------- task


def run(embeddings: Embeddings, options: TaskOptions) -> TaskResult | None:
    """Measure fine_acc<k>/<level> and coarse_acc<k>/<level> for k = 1, 5 and every level."""
    found = embeddings.classification()
    if found is None or not embeddings.levels:
        return None
    measured: dict[Metric, float] = {}
    tables: list[Table] = []
    plots: list[Plot] = []
    for level, superclasses in embeddings.levels.items():
        ranked = fine_and_coarse(*found, superclasses)
        for key, value in ranked.metrics().items():
            label = f"{level}, {key.replace('_acc', ' top-')}"
            measured[Metric(f"{key}/{level}", label, Unit.SHARE)] = value
        tables.append(superclass_table(level, superclasses, found[2], ranked))
        plots.append(
            Plot(
                f"fine_coarse_{level}",
                f"Accuracy by {level}: coarse (circles) and fine (diamonds); in brackets its "
                "numbers of classes and images.",
                partial(plot_superclasses, table=tables[-1]),
                (6.4, 4.8),
            )
        )
    return TaskResult(
        embeddings.name,
        TASK,
        measured,
        "Fine and coarse classes",
        "Coarse: the image is assigned to the right superclass, whichever of its classes is "
        "nearest. Fine: the right class is the nearest of those in the true superclass. A model "
        "may be good at either.",
        tuple(tables),
        tuple(plots),
    )
