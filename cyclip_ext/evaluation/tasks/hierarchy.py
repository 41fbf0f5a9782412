"""Fine- and coarse-grained accuracy over classes that are grouped into superclasses.

Source: Goel et al. 2022, their analysis of coarse- and fine-grained accuracy.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..._files import read_text
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

    superclass_of: see `read_superclasses`; it may have more classes than the dataset. Upper case
    and underscores make no difference to names of classes: "aquarium_fish" is "aquarium fish".

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
    if path.suffix not in (".json", ".csv"):
        raise ValueError(
            f"a hierarchy is a .json or .csv file or one of {', '.join(PACKAGED)}, got {source}"
        )
    pairs = _read_json(path) if path.suffix == ".json" else _read_csv(path)
    table: dict[str, str] = {}
    first: dict[str, str] = {}
    for where, name, superclass in pairs:
        if not name or not superclass:
            raise ValueError(f"{path}, {where}: class and superclass must not be empty")
        if _normal(name) in first:
            raise ValueError(
                f"{path}, {where}: class {name!r} is already in {first[_normal(name)]}; each class "
                "belongs to one superclass"
            )
        first[_normal(name)] = where
        table[name] = superclass
    if not table:
        raise ValueError(f"{path} has no classes")
    return table


def _normal(name: str) -> str:
    """Return the form in which names of classes are compared."""
    return name.replace("_", " ").strip().casefold()


def _read_json(path: Path) -> list[tuple[str, str, str]]:
    """Return (place in the file, class, superclass) of each entry."""
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be an object, got {type(content).__name__}")
    pairs = []
    for key, value in content.items():
        if isinstance(value, str):
            pairs.append((f"entry {key!r}", key.strip(), value.strip()))
        elif isinstance(value, list) and all(isinstance(name, str) for name in value):
            pairs += [(f"entry {key!r}", name.strip(), key.strip()) for name in value]
        else:
            raise ValueError(
                f"{path}, entry {key!r}: must be the name of a superclass or a list of classes"
            )
    if len({isinstance(value, str) for value in content.values()}) > 1:
        raise ValueError(f"{path} mixes class -> superclass and superclass -> classes")
    return pairs


def _read_csv(path: Path) -> list[tuple[str, str, str]]:
    """Return (place in the file, class, superclass) of each row."""
    pairs = []
    rows = csv.reader(StringIO(read_text(path)))
    header = [cell.strip() for cell in next(rows, [])]
    if header != CSV_HEADER:
        raise ValueError(
            f"{path}, line 1: the header must be {','.join(CSV_HEADER)}, got {','.join(header)}"
        )
    for row in rows:
        if not row:
            continue
        if len(row) != 2:
            raise ValueError(f"{path}, line {rows.line_num}: 2 cells expected, got {len(row)}")
        pairs.append((f"line {rows.line_num}", row[0].strip(), row[1].strip()))
    return pairs


# ------------------------------------------------------------------------------------ metrics


@dataclass(frozen=True)
class FineAndCoarse:
    """Ranks of every image's true class and superclass; rank < k is a hit at k.

    labels: int64 [N], true classes. fine_ranks: int64 [N], how many other classes of the true
    superclass are at least as near as the true class. coarse_ranks: int64 [N], how many other
    superclasses are at least as near as the true one. Ties count against the model.
    """

    superclasses: Superclasses
    labels: Tensor
    fine_ranks: Tensor
    coarse_ranks: Tensor

    def metrics(self, ks: Sequence[int] = (1, 3, 5, 10)) -> dict[str, float]:
        """Return fine_acc<k> and coarse_acc<k> for each k, shares of all images.

        fine_acc<k> chooses among the classes of the true superclass, so it is 1 for superclasses
        of up to k classes. coarse_acc<k> is 1 with k >= S.
        """
        if not len(self.labels):
            raise ValueError("no images to score: the dataset is empty")
        for k in ks:
            if k < 1:
                raise ValueError(f"ks must be 1 or more, got {k}")
        return {
            f"{name}_acc{k}": (ranks < k).double().mean().item()
            for name, ranks in (("fine", self.fine_ranks), ("coarse", self.coarse_ranks))
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
    of its classes that is. Raises as `classify`; ValueError for superclasses of other classes.
    """
    of_class = superclasses.of_class
    if of_class.shape != class_features.shape[:1]:
        raise ValueError(
            f"the hierarchy has {len(of_class)} classes, class_features {len(class_features)}; it "
            "must have one superclass for each row"
        )
    size = len(superclasses.names)
    if of_class.dtype != torch.int64 or not 0 <= int(of_class.min()) <= int(of_class.max()) < size:
        raise ValueError(
            f"superclasses must be int64 in 0 .. {size - 1}, got {of_class.dtype}, "
            f"{of_class.min().item()} .. {of_class.max().item()}"
        )
    fine, coarse = [], []
    for similarity, truth in similarity_blocks(image_features, class_features, labels):
        target = similarity.gather(1, truth[:, None])
        own = of_class[truth][:, None]
        in_own = own == of_class
        fine.append(((similarity >= target) & in_own).sum(1) - 1)  # the class itself is among them
        best = similarity.new_full((len(truth), size), -torch.inf).scatter_reduce_(
            1, of_class.expand(len(truth), -1), similarity, "amax"
        )
        coarse.append((best >= best.gather(1, own)).sum(1) - 1)
    return FineAndCoarse(superclasses, labels, torch.cat(fine), torch.cat(coarse))


@dataclass(frozen=True)
class SuperclassResult:
    """One superclass: its numbers of classes and images, and accuracies over its images.

    The accuracies are None without images. fine_acc1 of a superclass of one class is 1.
    """

    name: str
    classes: int
    images: int
    fine_acc1: float | None
    coarse_acc1: float | None


def per_superclass(ranked: FineAndCoarse) -> tuple[SuperclassResult, ...]:
    """Return the size and the accuracies of each superclass, [S], in their order."""
    superclasses = ranked.superclasses
    superclass = superclasses.of_class[ranked.labels]

    def count(members: Tensor) -> list[int]:
        counts: list[int] = torch.bincount(members, minlength=len(superclasses.names)).tolist()
        return counts

    return tuple(
        SuperclassResult(
            name,
            classes,
            images,
            fine / images if images else None,
            coarse / images if images else None,
        )
        for name, classes, images, fine, coarse in zip(
            superclasses.names,
            count(superclasses.of_class),
            count(superclass),
            count(superclass[ranked.fine_ranks < 1]),
            count(superclass[ranked.coarse_ranks < 1]),
            strict=True,
        )
    )


# --------------------------------------------------------------------------------------- plot


def plot_superclasses(figure: Figure, results: Sequence[SuperclassResult]) -> None:
    """Plot fine and coarse accuracy of each superclass with images, best coarse one first.

    Each name is followed by its numbers of classes and images. Of more than 20 superclasses the 20
    with most images are shown; the label of the axis mentions it.
    """
    scored = [result for result in results if result.images]
    if not scored:
        raise ValueError("results has no superclass with images: nothing to plot")
    shown = sorted(scored, key=lambda result: -result.images)[:SHOWN]
    shown.sort(key=lambda result: -(result.coarse_acc1 or 0))
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    for row, result in enumerate(shown):
        ends = result.fine_acc1, result.coarse_acc1
        axes.plot([100 * (end or 0) for end in ends], [row, row], color="0.8", zorder=1)
    for label, marker, color, values in (
        ("coarse: the superclass", "o", BLUE, [result.coarse_acc1 for result in shown]),
        ("fine: the class within it", "D", VERMILION, [result.fine_acc1 for result in shown]),
    ):
        percent = [100 * (value or 0) for value in values]
        axes.scatter(
            percent, range(len(shown)), s=22, color=color, marker=marker, label=label, zorder=2
        )
    axes.set_yticks(
        range(len(shown)),
        [f"{shorten(r.name, 32)} ({r.classes}, {r.images})" for r in shown],
        fontsize=7,
    )
    axes.invert_yaxis()
    axes.set_xlim(-2, 102)
    axes.set_xlabel("top-1 accuracy (%)")
    axes.grid(axis="x", color="0.9")
    selection = "" if len(shown) == len(scored) else f"\nthe largest {SHOWN} of {len(scored)}"
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
    ranked = {
        level: fine_and_coarse(*found, superclasses)
        for level, superclasses in embeddings.levels.items()
    }
    shown = ranked.items() if options.details else ()
    return TaskResult(
        embeddings.name,
        TASK,
        {
            f"{name}/{level}": value
            for level, result in ranked.items()
            for name, value in result.metrics(KS).items()
        },
        tuple(
            Metric(f"{kind}_acc{k}/{level}", f"{level}, {kind} top-{k}", Unit.SHARE)
            for level in ranked
            for kind in ("fine", "coarse")
            for k in KS
        ),
        "Fine and coarse classes",
        "Coarse: the image is assigned to the right superclass, whichever of its classes is "
        "nearest. Fine: the right class is the nearest of those in the true superclass. A model "
        "may be good at either.",
        tuple(_table(level, result) for level, result in shown),
        tuple(_plot(level, result) for level, result in shown),
    )


def _table(level: str, ranked: FineAndCoarse) -> Table:
    results = sorted(per_superclass(ranked), key=lambda result: -result.images)
    return Table(
        f"Distribution of the {level}s, largest first",
        (level, "classes", "images", "coarse top-1 (%)", "fine top-1 (%)"),
        tuple(
            (
                result.name,
                result.classes,
                result.images,
                None if result.coarse_acc1 is None else 100 * result.coarse_acc1,
                None if result.fine_acc1 is None else 100 * result.fine_acc1,
            )
            for result in results
        ),
        f"Fine accuracy of a {level} of one class is 100% by definition.",
    )


def _plot(level: str, ranked: FineAndCoarse) -> Plot:
    return Plot(
        f"fine_coarse_{level}",
        f"Accuracy by {level}: coarse (circles) and fine (diamonds); in brackets its numbers of "
        "classes and images.",
        partial(plot_superclasses, results=per_superclass(ranked)),
        (6.4, 4.8),
    )
