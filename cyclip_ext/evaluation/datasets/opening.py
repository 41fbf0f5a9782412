"""From a user's specification to an evaluation dataset."""

from __future__ import annotations

from pathlib import Path

from ...data import NAMED, DatasetSplits, ImageDataset, load_named
from .coco import open_coco
from .folder import has_class_folders, open_folder
from .shards import open_shards
from .table import open_table
from .torchvision_sets import NAMES, open_torchvision
from .winoground import EXAMPLES_FILE, Quadruples, open_winoground

KINDS = ("torchvision", "folder", "csv", "wds", "coco", "winoground")
SPLIT_KINDS = ("torchvision", "wds")

AnyDataset = ImageDataset | Quadruples | DatasetSplits

_ACCEPTED = f"""accepted are
  {", ".join(NAMED)}         built-in datasets
  torchvision:NAME         one of torchvision's datasets, its files below root: {", ".join(NAMES)}
  folder:PATH              a folder with a subfolder of images for each class
  csv:PATH                 a .csv or .tsv with a header: filepath,label or filepath,caption
  wds:PATH                 CLIP_benchmark's webdataset: <split>/0.tar, ..., classnames.txt
  coco:PATH                COCO's captions JSON, the images near it or in images
  winoground:PATH          a folder with {EXAMPLES_FILE} and images/
  PATH                     any of these, recognized by its contents"""


def open_evaluation_dataset(
    spec: str,
    *,
    split: str | None = None,
    root: str | Path = "data",
    images: str | Path | None = None,
) -> AnyDataset:
    """Open an evaluation dataset by its kind and place.

    Args:
        spec: The name of a built-in dataset, "KIND:PLACE" or a path. See the error message above
            and the open_* function of each kind.
        split: Split of a torchvision dataset or webdataset. Default: "test".
        root: Folder of torchvision's files.
        images: Folder of the images of COCO's captions. Default: near them.

    Raises:
        ValueError: If spec is of no kind above (the message lists what is there), if split or
            images do not belong to the kind, and for contents that are wrong.
        FileNotFoundError, MissingData: If something does not exist.
        ImportError: If torchvision is needed and cannot be imported.
    """
    if spec in NAMED:
        if split is not None:
            raise ValueError(f"{spec} brings its own splits, got split={split!r}")
        return load_named(spec)
    kind, place = kind_of(spec, split)
    if not place:
        raise ValueError(f"{spec} names no place; {_ACCEPTED}")
    if split is not None and kind not in SPLIT_KINDS:
        raise ValueError(
            f"{spec} is of the kind {kind}, which has no splits, got split={split!r}: give the "
            "path of the part instead"
        )
    if images is not None and kind != "coco":
        raise ValueError(f"{spec} is of the kind {kind}: images is only for coco, got {images}")
    if kind == "torchvision":
        return open_torchvision(place, Path(root), split)
    path = Path(place)
    if kind in {"csv", "coco"} and not path.is_file():
        raise FileNotFoundError(f"{path} (from {spec}) is not a file; {_ACCEPTED}")
    if kind in {"folder", "wds", "winoground"} and not path.is_dir():
        raise FileNotFoundError(f"{path} (from {spec}) is not a folder; {_ACCEPTED}")
    if kind == "folder":
        return open_folder(path)
    if kind == "csv":
        return open_table(path)
    if kind == "wds":
        return open_shards(path, split or "test")
    if kind == "coco":
        return open_coco(path, None if images is None else Path(images))
    if not (path / EXAMPLES_FILE).is_file():
        raise FileNotFoundError(f"{path / EXAMPLES_FILE} (from {spec}) is not a file; {_ACCEPTED}")
    return open_winoground(path)


def kind_of(spec: str, split: str | None = None) -> tuple[str, str]:
    """Return the kind and the place of a specification, looking at what is there if it is a path.

    Raises as open_evaluation_dataset does.
    """
    kind, colon, place = spec.partition(":")
    if colon and kind in KINDS:
        return kind, place
    return _guess(spec, split or "test"), spec


def _guess(spec: str, split: str) -> str:
    """Return the kind of what is at a path."""
    if not spec:
        raise ValueError(f"the name of the dataset is empty; {_ACCEPTED}")
    path = Path(spec)
    if path.is_file():
        by_suffix = {".json": "coco", ".csv": "csv", ".tsv": "csv"}
        if path.suffix.lower() in by_suffix:
            return by_suffix[path.suffix.lower()]
        raise ValueError(
            f"{path} is a file, but neither .json (coco) nor .csv or .tsv (csv); {_ACCEPTED}"
        )
    if path.is_dir():
        if (path / EXAMPLES_FILE).is_file():
            return "winoground"
        if any((path / split).glob("*.tar")):
            return "wds"
        if has_class_folders(path):
            return "folder"
        raise ValueError(
            f"{path} is a folder, but has neither {EXAMPLES_FILE} (winoground) nor {split}/*.tar "
            f"(wds) nor subfolders with images (folder); {_ACCEPTED}"
        )
    hint = f"; did you mean torchvision:{spec}?" if spec in NAMES else ""
    raise FileNotFoundError(f"{spec} does not exist{hint}; {_ACCEPTED}")
