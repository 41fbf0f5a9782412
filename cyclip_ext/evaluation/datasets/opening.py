"""Opening of evaluation datasets from a user's specification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch

from ...data import BUILTIN, DatasetSplits, ImageDataset, ReadOptions, load_builtin, open_dataset
from ...data.caption_json import read_caption_json
from ...data.class_names import CLASS_NAMES_FILE, read_names
from ...data.folders import ClassFolderDataset, has_class_folders
from ...data.google_tsv import is_google_tsv
from ...data.open import open_table
from ...data.tables import TableDataset, is_token_file
from .torchvision_sets import NAMES, open_torchvision
from .webdataset import open_webdataset
from .winoground import EXAMPLES_FILE, Quadruples, open_winoground

_TABLE_OPTIONS = (
    *("images", "csv_separator", "csv_img_key", "csv_caption_key", "csv_label_key"),
    "csv_quoting",
)
KINDS: dict[str, tuple[str, ...]] = {  # with the fields of ReadOptions that apply to each
    "builtin": (),
    "torchvision": ("split",),
    "folder": (),
    "csv": _TABLE_OPTIONS,
    "wds": ("split",),
    "coco": ("images", "split"),
    "winoground": (),
    "pairs": tuple(option.name for option in fields(ReadOptions)),
}

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
    kind, place = kind_of(spec, options.split)
    options.require_applicable(spec, f"of the kind {kind}", *KINDS[kind])
    if not place:
        raise ValueError(f"{spec} has no path or name after the colon; {_ACCEPTED}")
    split = options.split or "test"
    if kind == "builtin":
        return load_builtin(place)
    if kind == "torchvision":
        return open_torchvision(place, Path(root), options.split)
    if kind == "pairs":
        dataset = open_dataset(place, options)
        path = Path(place).resolve()
        dataset.name = path.stem if path.is_file() else path.name
        return dataset
    path = Path(place)
    if kind in {"csv", "coco"} and not path.exists():
        raise FileNotFoundError(f"{path} (from {spec}) is not a file; {_ACCEPTED}")
    if kind in {"folder", "wds", "winoground"} and not path.is_dir():
        raise FileNotFoundError(f"{path} (from {spec}) is not a folder; {_ACCEPTED}")
    if kind == "folder":
        return ClassFolderDataset(path)
    if kind == "csv":
        return _open_table(path, options)
    if kind == "wds":
        return open_webdataset(path, split)
    if kind == "coco":
        captions = read_caption_json(path, _path(options.images), options.split, "test")
        captions.name = path.stem
        return captions
    if not (path / EXAMPLES_FILE).is_file():
        raise FileNotFoundError(f"{path / EXAMPLES_FILE} (from {spec}) is not a file; {_ACCEPTED}")
    return open_winoground(path)


def applicable(options: ReadOptions, spec: str) -> ReadOptions:
    """Return the options that apply to a dataset, without the others.

    Raises as `kind_of` does.
    """
    kind, _ = kind_of(spec, options.split)
    unused = {option.name: None for option in fields(options) if option.name not in KINDS[kind]}
    return replace(options, **unused)


def kind_of(spec: str, split: str | None = None) -> tuple[str, str]:
    """Return the kind and the place of a specification; the contents of a path decide its kind.

    Raises ValueError or FileNotFoundError if the kind is not recognized.
    """
    if spec in BUILTIN:
        return "builtin", spec
    kind, colon, place = spec.partition(":")
    if colon and kind in KINDS:
        return kind, place
    return _guess(spec, split or "test"), spec


def _guess(spec: str, split: str) -> str:
    """Return the kind of the dataset at a path."""
    if not spec:
        raise ValueError(f"the name of the dataset is empty; {_ACCEPTED}")
    path = Path(spec)
    suffix = path.suffix.lower()
    if path.is_dir():
        if (path / EXAMPLES_FILE).is_file():
            return "winoground"
        if any((path / split).glob("*.tar")):
            return "wds"
        if any(path.glob("*.tar")) or any(path.glob("*.parquet")):
            return "pairs"
        if has_class_folders(path):
            return "folder"
        raise ValueError(
            f"{path} is a folder, but has neither {EXAMPLES_FILE} (winoground) nor {split}/*.tar "
            "(wds) nor .tar or .parquet files (pairs) nor subfolders with images (folder); for "
            f"images with captions beside them give pairs:{path}. {_ACCEPTED}"
        )
    if suffix in {".tar", ".parquet"}:
        return "pairs"
    if path.exists():
        if suffix == ".json":
            return "coco"
        if suffix in {".csv", ".tsv", ".txt", ".token"}:
            return "pairs" if is_google_tsv(path) else "csv"
        raise ValueError(
            f"the format of {path} is not recognized (if training reads it, pass pairs:{path}); "
            f"{_ACCEPTED}"
        )
    hint = f"; did you mean torchvision:{spec}?" if spec in NAMES else ""
    raise FileNotFoundError(f"{spec} does not exist{hint}; {_ACCEPTED}")


def _path(name: str | Path | None) -> Path | None:
    return None if name is None else Path(name)


def _open_table(path: Path, options: ReadOptions) -> TableDataset:
    """Open a table of labels or captions.

    If `classnames.txt` is beside a table of labels, its lines are the classes. Labels are then such
    names, or all of them numbers: line k is the class of label k, the first line that of 0. Without
    the file, classes are the labels that occur: numbers in their order, others alphabetically.

    Raises ValueError, naming file and line, for a label that is not in classnames.txt.
    """
    dataset = open_table(path, options, labels=not is_token_file(path))
    dataset.name = path.stem
    if not len(dataset):
        raise ValueError(f"{path} has no usable row: {dataset.skipped}")
    if dataset.labels is not None:
        file = path.parent / CLASS_NAMES_FILE
        names = read_names(file) if file.is_file() else None
        _name_classes(dataset, path, file, names)
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
