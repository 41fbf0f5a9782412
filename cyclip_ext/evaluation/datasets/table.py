"""A table of images with a label each, or with captions."""

from __future__ import annotations

from pathlib import Path

import torch

from ...data.class_names import CLASS_NAMES_FILE, read_names
from ...data.open import ReadOptions, open_table
from ...data.tables import TableDataset


def open_evaluation_table(path: Path, options: ReadOptions) -> TableDataset:
    """Open a table with an image column and a label column or caption columns, see `read_table`.

    label: the name of the class. If `classnames.txt` is beside the table, its lines are the
    classes, and labels are such names, or all of them numbers: line k is that of label k, the first
    line that of 0. Without the file, classes are the labels that occur, numbers in their order,
    others in alphabetical order.

    Raises ValueError as `read_table`, and if a label is not a line of classnames.txt or no row can
    be used.
    """
    dataset = open_table(path, options, labels=True)
    dataset.name = path.stem
    if not len(dataset):
        raise ValueError(f"{path} has no row that can be used: {dataset.skipped}")
    if dataset.labels is not None:
        _use_class_names(path, dataset)
    return dataset


def _use_class_names(path: Path, dataset: TableDataset) -> None:
    """Number the labels as classnames.txt does, or in their order."""
    found = dataset.class_names
    numbers = all(label.isdecimal() for label in found)
    file = path.parent / CLASS_NAMES_FILE
    if file.is_file():
        names = read_names(file)
        index = {name: number for number, name in enumerate(names)}
        if numbers:
            index = {label: int(label) for label in found if int(label) < len(names)}
    else:
        names = tuple(sorted(found, key=int) if numbers else sorted(found))
        index = {name: number for number, name in enumerate(names)}
    unknown = [number for number, label in enumerate(found) if label not in index]
    assert dataset.labels is not None
    if unknown:
        first = int((dataset.labels == unknown[0]).nonzero()[0])
        label = found[unknown[0]]
        raise ValueError(
            f"{path}:{dataset.line(first)}: label {label}, but {file} has {len(names)} lines and "
            f"so names 0 .. {len(names) - 1}, and none of them is {label!r}"
        )
    dataset.labels = torch.tensor([index[label] for label in found])[dataset.labels]
    dataset.class_names = names
