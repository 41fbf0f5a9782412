"""Fine- and coarse-grained accuracy over classes that are grouped into superclasses.

Source: Goel et al. 2022, their analysis of coarse- and fine-grained accuracy.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._plotting import BLUE, VERMILION, shorten
from .text_files import read_text
from .zero_shot import similarity_blocks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGED = Path(__file__).with_name("hierarchies")  # <name>.json each
CSV_HEADER = ["class", "superclass"]
SHOWN = 20  # superclasses: more names do not fit beside a plot


@dataclass(frozen=True)
class Hierarchy:
    """Which superclass each class belongs to.

    superclass_names: [S], in order of first appearance among the classes, so each has a class.
    superclass_of_class: int64 [C], index into superclass_names.
    """

    superclass_names: tuple[str, ...]
    superclass_of_class: Tensor

    @classmethod
    def build(cls, superclass_of: Mapping[str, str], class_names: Sequence[str]) -> Hierarchy:
        """For the classes of a data set, in their order, from a table of class -> superclass.

        superclass_of: `read_superclasses`, or `Taxonomy.at_depth` and `Taxonomy.under`; it may have
        more classes than the data set. Upper case and underscores make no difference to names of
        classes: "aquarium_fish" is "aquarium fish".

        Raises: ValueError where a class is missing in the table.
        """
        table = {same_name(name): superclass for name, superclass in superclass_of.items()}
        missing = [name for name in class_names if same_name(name) not in table]
        if missing:
            raise ValueError(
                f"the hierarchy has no superclass for {len(missing)} of {len(class_names)} classes "
                f"({', '.join(missing[:5])}); add them to it"
            )
        superclasses = [table[same_name(name)] for name in class_names]
        index = {name: i for i, name in enumerate(dict.fromkeys(superclasses))}
        return cls(tuple(index), torch.tensor([index[name] for name in superclasses]))

    def __len__(self) -> int:
        return len(self.superclass_names)

    def confusion_counts(self, counts: Tensor) -> Tensor:  # int64 [C, C] -> [S, S]
        """Confusions of classes added up by superclass: within one they are on the diagonal."""
        size, of_class = len(self), self.superclass_of_class
        rows = counts.new_zeros(size, counts.shape[1]).index_add_(0, of_class, counts)
        return counts.new_zeros(size, size).index_add_(1, of_class, rows)


def read_superclasses(source: str | Path) -> dict[str, str]:
    """Table of class -> superclass, for `Hierarchy.build`.

    source: "cifar100", whose 100 classes and 20 superclasses come with this package, or a file:
        .json  {"superclass": ["class", ...], ...} or {"class": "superclass", ...}
        .csv   a line per class under the header "class,superclass"
    WordNet-style graphs are read by `Taxonomy.read`.

    Raises: ValueError, naming the file and the line or class, for another form, for a class that
    stands twice in the file, and for a file without classes.
    """
    packaged = PACKAGED / f"{source}.json"
    path = packaged if packaged.is_file() else Path(source)
    if path.suffix not in (".json", ".csv"):
        known = ", ".join(sorted(file.stem for file in PACKAGED.glob("*.json")))
        raise ValueError(f"a hierarchy is a .json or .csv file or one of {known}, got {source}")
    pairs = _read_json(path) if path.suffix == ".json" else _read_csv(path)
    table: dict[str, str] = {}
    first: dict[str, str] = {}
    for where, name, superclass in pairs:
        if not name or not superclass:
            raise ValueError(f"{path}, {where}: class and superclass must not be empty")
        if same_name(name) in first:
            raise ValueError(
                f"{path}, {where}: class {name!r} already stands in {first[same_name(name)]}; "
                "each class belongs to one superclass"
            )
        first[same_name(name)] = where
        table[name] = superclass
    if not table:
        raise ValueError(f"{path} has no classes")
    return table


@dataclass(frozen=True)
class FineAndCoarse:
    """Ranks of every picture's true class and superclass; rank < k is a hit at k.

    labels: int64 [N], true classes. fine_ranks: int64 [N], how many other classes of the true
    superclass are at least as near as the true class. coarse_ranks: int64 [N], how many other
    superclasses are at least as near as the true one. Ties count against the model.
    """

    hierarchy: Hierarchy
    labels: Tensor
    fine_ranks: Tensor
    coarse_ranks: Tensor

    def metrics(self, ks: Sequence[int] = (1, 3, 5, 10)) -> dict[str, float]:
        """fine_acc<k> and coarse_acc<k> for each k, shares of all pictures.

        fine_acc<k> chooses among the classes of the true superclass, so it is 1 for superclasses
        of up to k classes. coarse_acc<k> is 1 with k >= S.
        """
        if not len(self.labels):
            raise ValueError("no pictures to score: the set is empty")
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
    hierarchy: Hierarchy,
) -> FineAndCoarse:
    """Rank every picture's class within its superclass, and its superclass among all.

    A superclass is as near as the nearest of its classes: the maximum, so which of its classes
    that is does not matter. Raises as `classify`; ValueError for a hierarchy of other classes.
    """
    fine, coarse = _ranks(image_features, class_features, labels, hierarchy.superclass_of_class)
    return FineAndCoarse(hierarchy, labels, fine, coarse)


def coarse_accuracy(
    image_features: Tensor,  # [N, d], unit length
    class_features: Tensor,  # [C, d], unit length
    labels: Tensor,  # int64 [N], fine labels
    coarse_of_class: Tensor,  # int64 [C]
) -> float:
    """Share of pictures put into the right superclass: coarse_acc1 of `FineAndCoarse.metrics`.

    A superclass scores the maximum over its classes, so the best class decides; which of its
    classes that is does not matter. A tie with another superclass counts against the model.
    """
    _, coarse = _ranks(image_features, class_features, labels, coarse_of_class)
    if not len(coarse):
        raise ValueError("no pictures to score: the set is empty")
    return (coarse < 1).double().mean().item()


@dataclass(frozen=True)
class SuperclassResult:
    """One superclass: how many classes and pictures it has, and accuracies over its pictures.

    The accuracies are None where it has no pictures. fine_acc1 of a superclass of one class is 1.
    """

    name: str
    classes: int
    pictures: int
    fine_acc1: float | None
    coarse_acc1: float | None


def per_superclass(ranked: FineAndCoarse) -> tuple[SuperclassResult, ...]:
    """Distribution of the superclasses and the accuracies of each, [S], in their order."""
    hierarchy = ranked.hierarchy
    superclass = hierarchy.superclass_of_class[ranked.labels]

    def count(members: Tensor) -> list[int]:
        counts: list[int] = torch.bincount(members, minlength=len(hierarchy)).tolist()
        return counts

    return tuple(
        SuperclassResult(
            name,
            classes,
            pictures,
            fine / pictures if pictures else None,
            coarse / pictures if pictures else None,
        )
        for name, classes, pictures, fine, coarse in zip(
            hierarchy.superclass_names,
            count(hierarchy.superclass_of_class),
            count(superclass),
            count(superclass[ranked.fine_ranks < 1]),
            count(superclass[ranked.coarse_ranks < 1]),
            strict=True,
        )
    )


def plot_superclasses(figure: Figure, results: Sequence[SuperclassResult]) -> None:
    """Fine and coarse accuracy of each superclass that has pictures, best coarse one first.

    Behind each name its numbers of classes and pictures. Of more than 20 superclasses the 20 with
    most pictures are shown, and the axis says so.
    """
    scored = [result for result in results if result.pictures]
    if not scored:
        raise ValueError("results has no superclass with pictures: nothing to plot")
    shown = sorted(scored, key=lambda result: -result.pictures)[:SHOWN]
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
        [f"{shorten(r.name, 32)} ({r.classes}, {r.pictures})" for r in shown],
        fontsize=7,
    )
    axes.invert_yaxis()
    axes.set_xlim(-2, 102)
    axes.set_xlabel("top-1 accuracy (%)")
    axes.grid(axis="x", color="0.9")
    selection = "" if len(shown) == len(scored) else f"\nthe largest {SHOWN} of {len(scored)}"
    axes.set_ylabel(f"superclass (classes, pictures){selection}", fontsize=8)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8
    )


def same_name(name: str) -> str:
    """The form in which names of classes are compared."""
    return name.replace("_", " ").strip().casefold()


def _ranks(
    image_features: Tensor, class_features: Tensor, labels: Tensor, superclass_of_class: Tensor
) -> tuple[Tensor, Tensor]:
    """fine_ranks and coarse_ranks of FineAndCoarse, int64 [N] both."""
    if superclass_of_class.shape != class_features.shape[:1]:
        raise ValueError(
            f"the hierarchy has {len(superclass_of_class)} classes, class_features "
            f"{len(class_features)}; it must have one superclass for each row"
        )
    if superclass_of_class.dtype != torch.int64 or int(superclass_of_class.min()) < 0:
        raise ValueError(
            "superclasses must be int64 and 0 or more, got "
            f"{superclass_of_class.dtype}, at least {superclass_of_class.min().item()}"
        )
    size = int(superclass_of_class.max()) + 1
    fine, coarse = [], []
    for similarity, truth in similarity_blocks(image_features, class_features, labels):
        target = similarity.gather(1, truth[:, None])
        own = superclass_of_class[truth][:, None]
        in_own = own == superclass_of_class
        fine.append(((similarity >= target) & in_own).sum(1) - 1)  # the class itself is among them
        best = similarity.new_full((len(truth), size), -torch.inf).scatter_reduce_(
            1, superclass_of_class.expand(len(truth), -1), similarity, "amax"
        )
        coarse.append((best >= best.gather(1, own)).sum(1) - 1)
    return torch.cat(fine), torch.cat(coarse)


def _read_json(path: Path) -> list[tuple[str, str, str]]:
    """(where in the file, class, superclass) of each entry."""
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
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
    """(where in the file, class, superclass) of each row."""
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
