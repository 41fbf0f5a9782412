"""Opening of evaluation datasets by a specification, such as a name or a path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch

from ...data import BUILTIN, DatasetSplits, ImageDataset, ReadOptions, load_builtin, open_dataset
from ...data.class_names import CLASS_NAMES_FILE, read_names
from ...data.folders import ClassFolderDataset, has_class_folders
from ...data.open import FORMATS, UnknownFormat, format_of
from ...data.pairs import TableDataset
from .torchvision_sets import NAMES, open_torchvision
from .webdataset import open_webdataset
from .winoground import EXAMPLES_FILE, Quadruples, open_winoground

_KINDS: dict[str, tuple[str, ...]] = {  # with the fields of ReadOptions that apply to each
    "builtin": (),
    "torchvision": ("split",),
    "folder": (),
    "wds": ("split",),
    "winoground": (),
}
_FILES = ("csv", "coco", "pairs", "file")  # formats that training reads; format_of has the options

AnyDataset = ImageDataset | Quadruples | DatasetSplits

_ACCEPTED = f"""accepted are
  {", ".join(BUILTIN)}   built-in datasets
  torchvision:NAME         one of torchvision's datasets, its files below root: {", ".join(NAMES)}
  folder:PATH              a folder with a subfolder of images for each class
  csv:PATH                 a table with a header: filepath,label or filepath,caption
  wds:PATH                 CLIP_benchmark's webdataset: <split>/0.tar, ..., classnames.txt
  coco:PATH                a captions JSON, COCO's or Karpathy's
  winoground:PATH          a folder with {EXAMPLES_FILE} and images/
  pairs:PATH               images with captions in any format that training reads
  PATH                     any of these, recognized by its contents"""


def open_evaluation_dataset(
    spec: str, options: ReadOptions | None = None, *, root: str | Path = "data"
) -> AnyDataset:
    """Open an evaluation dataset by its kind and place.

    Args:
        spec: The name of a built-in dataset, "KIND:PLACE" or a path. See the error message above
            and the function or class that opens each kind.
        options: How to read files; the split is "test" by default.
        root: Folder of torchvision's files.

    Raises:
        ValueError: If the kind of spec is not recognized (the message lists the kinds), if an
            option does not apply to the kind, and for invalid contents.
        FileNotFoundError, MissingData: If something does not exist.
        ImportError: If a package is needed and cannot be imported.
    """
    options = options or ReadOptions()
    kind, place = _kind_of(spec, options.split)
    if not place:
        raise ValueError(f"{spec} has no path or name after the colon; {_ACCEPTED}")
    path = Path(place)
    if kind in {"csv", "coco"} and not path.exists():
        raise FileNotFoundError(f"{path} (from {spec}) is not a file; {_ACCEPTED}")
    if kind in {"folder", "wds", "winoground"} and not path.is_dir():
        raise FileNotFoundError(f"{path} (from {spec}) is not a folder; {_ACCEPTED}")
    if kind in _FILES:
        return _open_files(place, options, labels=kind != "pairs")
    options.require_applicable(spec, f"of the kind {kind}", _KINDS[kind])
    if kind == "builtin":
        return load_builtin(place)
    if kind == "torchvision":
        return open_torchvision(place, Path(root), options.split)
    if kind == "folder":
        return ClassFolderDataset(path)
    if kind == "wds":
        return open_webdataset(path, options.split or "test")
    if not (path / EXAMPLES_FILE).is_file():
        raise FileNotFoundError(f"{path / EXAMPLES_FILE} (from {spec}) is not a file; {_ACCEPTED}")
    return open_winoground(path)


def options_of(spec: str, split: str | None = None) -> tuple[str, ...]:
    """Return the fields of ReadOptions that apply to a dataset.

    Raises ValueError or FileNotFoundError if its kind is not recognized.
    """
    kind, place = _kind_of(spec, split)
    return format_of(place)[0].options if kind in _FILES else _KINDS[kind]


def applicable(options: ReadOptions, spec: str) -> ReadOptions:
    """Return the options that apply to a dataset, without the others. Raises as `options_of`."""
    accepted = options_of(spec, options.split)
    return replace(options, **{o.name: None for o in fields(options) if o.name not in accepted})


def _kind_of(spec: str, split: str | None) -> tuple[str, str]:
    """Return the kind and the place of a specification; the contents of a path decide its kind."""
    if spec in BUILTIN:
        return "builtin", spec
    kind, colon, place = spec.partition(":")
    if colon and kind in (*_KINDS, *_FILES):
        return kind, place
    return _guess(spec, split or "test"), spec


def _guess(spec: str, split: str) -> str:
    """Return the kind of the dataset at a path."""
    if not spec:
        raise ValueError(f"the name of the dataset is empty; {_ACCEPTED}")
    path = Path(spec)
    if path.is_dir():
        if (path / EXAMPLES_FILE).is_file():
            return "winoground"
        if any((path / split).glob("*.tar")):
            return "wds"
        if any(any(path.glob(f"*{f.suffixes[0]}")) for f in FORMATS if f.many):
            return "pairs"
        if has_class_folders(path):
            return "folder"
        raise ValueError(
            f"{path} is a folder, but has neither {EXAMPLES_FILE} (winoground) nor {split}/*.tar "
            "(wds) nor .tar or .parquet files (pairs) nor subfolders with images (folder); for "
            f"images with captions beside them give pairs:{path}. {_ACCEPTED}"
        )
    try:
        format_of(spec)
    except FileNotFoundError:
        hint = f"; did you mean torchvision:{spec}?" if spec in NAMES else ""
        raise FileNotFoundError(f"{spec} does not exist{hint}; {_ACCEPTED}") from None
    except UnknownFormat:
        raise ValueError(f"the format of {path} is not recognized; {_ACCEPTED}") from None
    return "file"


def _open_files(place: str, options: ReadOptions, labels: bool) -> ImageDataset:
    """Open a dataset in a format that training reads; a table may have labels.

    If `classnames.txt` is beside a table of labels, its lines are the classes. Labels are then such
    names, or all of them numbers: line k is the class of label k, the first line that of 0. Without
    the file, classes are the labels that occur: numbers in their order, others alphabetically.

    Raises ValueError, naming file and line, for a label that is not in classnames.txt.
    """
    dataset = open_dataset(place, options, labels=labels, split="test")
    path = Path(place)
    dataset.name = path.resolve().stem if path.is_file() else path.resolve().name
    if dataset.labels is not None:
        if not isinstance(dataset, TableDataset):
            raise ValueError(f"{place} has labels: manifest applies to images with captions only")
        file = path.parent / CLASS_NAMES_FILE
        _name_classes(dataset, path, file, read_names(file) if file.exists() else None)
        if len(dataset.class_names) < 2:
            raise ValueError(
                f"{path} has a single class, {dataset.class_names[0]}: every answer is right. List "
                f"the classes to choose among in {file}"
            )
    return dataset


def _name_classes(
    dataset: TableDataset, path: Path, file: Path, names: Sequence[str] | None
) -> None:
    found = dataset.class_names
    numbers = all(label.isdecimal() for label in found)
    if names is None:
        names = sorted(found, key=int) if numbers else sorted(found)
        index = {name: label for label, name in enumerate(names)}
    elif numbers:
        index = {label: int(label) for label in found if int(label) < len(names)}
    else:
        index = {name: label for label, name in enumerate(names)}
    assert dataset.labels is not None
    for old, label in enumerate(found):
        if label not in index:
            first = int((dataset.labels == old).nonzero()[0])
            raise ValueError(
                f"{path}:{dataset.line(first)}: label {label}, but {file} has {len(names)} lines, "
                f"which name 0 .. {len(names) - 1}, and none of them is {label!r}"
            )
    dataset.labels = torch.tensor([index[label] for label in found])[dataset.labels]
    dataset.class_names = tuple(names)
