"""From what a user writes to an evaluation set."""

from __future__ import annotations

from pathlib import Path

from ..sets import CaptionedImages, ClassifiedImages, Quadruples
from .coco import open_coco
from .folder import has_class_folders, open_folder
from .shards import open_shards
from .table import open_table
from .torchvision_sets import NAMES, open_torchvision
from .winoground import EXAMPLES_FILE, open_winoground

KINDS = ("torchvision", "folder", "csv", "wds", "coco", "winoground")

_ACCEPTED = f"""accepted are
  torchvision:NAME         one of torchvision's sets, its files below root: {", ".join(NAMES)}
  folder:PATH              a folder with a subfolder of pictures for each class
  csv:PATH                 a .csv or .tsv with a header: filepath,label or filepath,caption
  wds:PATH                 CLIP_benchmark's webdataset: <split>/0.tar, ..., classnames.txt
  coco:PATH                COCO's captions JSON, the pictures near it or in images
  winoground:PATH          a folder with {EXAMPLES_FILE} and images/
  PATH                     any of these, told apart by what lies there"""


def open_set(
    spec: str,
    *,
    split: str | None = None,
    root: str | Path = "data",
    images: str | Path | None = None,
) -> ClassifiedImages | CaptionedImages | Quadruples:
    """Open an evaluation set by its kind and place.

    spec: "KIND:PLACE" or a path, see the error message above and the open_* function of each kind.
    split: of torchvision's sets and webdatasets, default "test". root: the folder of torchvision's
    files. images: the folder of the pictures of COCO's captions, default: near them.

    Raises: ValueError where spec is of no kind above (it says what lies there), where split or
    images do not belong to the kind, and for contents that are wrong; FileNotFoundError or
    MissingData where something is not there, MissingDependency without torchvision.
    """
    kind, colon, place = spec.partition(":")
    if not colon or kind not in KINDS:
        kind, place = _guess(spec, split or "test"), spec
    if not place:
        raise ValueError(f"{spec} names no place; {_ACCEPTED}")
    if split is not None and kind not in {"torchvision", "wds"}:
        raise ValueError(
            f"{spec} is of the kind {kind}, which has no splits, got split={split!r}: name the "
            "part you mean by its path"
        )
    if images is not None and kind != "coco":
        raise ValueError(f"{spec} is of the kind {kind}: images is for coco alone, got {images}")
    if kind == "torchvision":
        return open_torchvision(place, Path(root), split)
    path = Path(place)
    if kind in {"csv", "coco"} and not path.is_file():
        raise FileNotFoundError(f"{path} (from {spec}) is no file; {_ACCEPTED}")
    if kind in {"folder", "wds", "winoground"} and not path.is_dir():
        raise FileNotFoundError(f"{path} (from {spec}) is no folder; {_ACCEPTED}")
    if kind == "folder":
        return open_folder(path)
    if kind == "csv":
        return open_table(path)
    if kind == "wds":
        return open_shards(path, split or "test")
    if kind == "coco":
        return open_coco(path, None if images is None else Path(images))
    if not (path / EXAMPLES_FILE).is_file():
        raise FileNotFoundError(f"{path / EXAMPLES_FILE} (from {spec}) is no file; {_ACCEPTED}")
    return open_winoground(path)


def _guess(spec: str, split: str) -> str:
    """The kind of what lies at a path."""
    if not spec:
        raise ValueError(f"the set's name is empty; {_ACCEPTED}")
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
            f"(wds) nor subfolders with pictures (folder); {_ACCEPTED}"
        )
    hint = f"; did you mean torchvision:{spec}?" if spec in NAMES else ""
    raise FileNotFoundError(f"{spec} does not exist{hint}; {_ACCEPTED}")
