"""From what a user writes after --train-data to a source of pairs."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable
from pathlib import Path

from .dataset import DatasetSplits, FileDataset, ImageDataset
from .debian import load_debian
from .emoji import emoji_available, load_emoji
from .folders import FolderDataset, has_images
from .manifest import apply_manifest
from .shapes import load_shapes
from .tables import is_google_tsv, read_google_tsv, read_table
from .tar import TarDataset

# Sets that come with their own evaluation.
NAMED: dict[str, Callable[[int], DatasetSplits]] = {
    "emoji": load_emoji,
    "shapes": load_shapes,
    "debian": load_debian,
}

_FLAGS = {  # argument of open_pairs: flag of the command line
    "images": "--images",
    "first_row": "--first-row",
    "separator": "--csv-separator",
    "image_key": "--csv-img-key",
    "caption_key": "--csv-caption-key",
}

_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")

_ACCEPTED = f"""accepted are
  {", ".join(NAMED)}: sets that come with their own evaluation
  00000.tar, a folder of .tar files, 'cc3m/{{00000..00331}}.tar' or 'cc3m/*.tar': img2dataset shards
  a folder of image files, each with its caption beside it in a .txt or .json of the same name
  a .tsv of caption<TAB>url (Google's CC3M) with --images <folder of downloaded files>
  a .csv or .tsv with a header that has an image and a caption column"""


def resolved(name: str) -> str:
    """The name or path, "auto" replaced by the data set that it stands for on this machine."""
    if name != "auto":
        return name
    return "emoji" if emoji_available() else "shapes"


def load_named(name: str, size: int = 64) -> DatasetSplits:
    """The in-memory set "emoji", "shapes" or "debian", pictures `size` pixels square.

    Raises ValueError for another name, MissingData where its packages are not installed.
    """
    if name not in NAMED:
        raise ValueError(f"no data set is called {name!r}; known: {', '.join(NAMED)}")
    return NAMED[name](size)


def open_pairs(
    path: str,
    *,
    images: str | None = None,
    first_row: int = 0,
    separator: str | None = None,
    image_key: str | None = None,
    caption_key: str | None = None,
    manifest: str | Path | None = None,
) -> ImageDataset:
    """Open training pairs on disk by what `path` is; `.name` says what it was taken for.

    path: see the error message below. images, first_row: for Google's TSV (read_google_tsv).
    separator, image_key, caption_key: for tables with a header (read_table). manifest: written by
    `python -m cyclip_ext.data verify` for this data; the records it lists as bad are left out.

    Raises FileNotFoundError where nothing is there, ValueError where it is no accepted format (both
    name the path and the accepted formats), where an argument does not belong to the format, or
    where the manifest is of other data.
    """
    table_arguments = {
        "separator": separator,
        "image_key": image_key,
        "caption_key": caption_key,
    }
    given = {name for name, value in table_arguments.items() if value is not None}
    google_arguments = {"images": images is not None, "first_row": first_row != 0}
    google_given = {name for name, present in google_arguments.items() if present}
    shards = _shards(path)
    file = Path(path)
    pairs: FileDataset
    if shards:
        _refuse(path, "tar shards", given | google_given)
        pairs = TarDataset(shards)
    elif file.is_dir():
        _refuse(path, "a folder", given | google_given)
        pairs = _open_folder(file)
    elif not file.is_file():
        raise FileNotFoundError(f"{path} does not exist; {_ACCEPTED}")
    elif file.suffix.lower() not in {".csv", ".tsv", ".txt"}:
        raise ValueError(f"{path} is of no known format; {_ACCEPTED}")
    elif is_google_tsv(file):
        _refuse(path, "a TSV of captions and addresses", given)
        if images is None:
            raise ValueError(
                f"{path} lists web addresses: images (--images) must name the folder the files "
                "were downloaded to, got None"
            )
        pairs = read_google_tsv(file, Path(images), first_row=first_row)
    else:
        _refuse(path, "a table with a header", google_given)
        pairs = read_table(
            file,
            separator=separator,
            image_key=image_key,
            caption_key=caption_key,
        )
    return pairs if manifest is None else apply_manifest(pairs, Path(manifest))


def _open_folder(folder: Path) -> FolderDataset:
    packed = next((name for s in _PACKED for name in sorted(folder.glob(f"*{s}"))), None)
    if packed is not None:
        raise _compressed(packed)
    pairs = FolderDataset(folder)
    if len(pairs):
        return pairs
    if not has_images(folder):
        raise ValueError(f"{folder} is a folder without .tar files and without images; {_ACCEPTED}")
    raise ValueError(
        f"no image in {folder} has a caption, a .txt or .json of the same name beside it. If its "
        "subfolders are named after classes: a class name is no caption; write a CSV with the "
        f"columns image,caption instead. {_ACCEPTED}"
    )


def _compressed(path: str | Path) -> ValueError:
    return ValueError(
        f"{path} is a compressed archive: samples cannot be reached at random in it. Unpack it to "
        "a plain .tar (images are compressed already, it hardly grows)"
    )


def expand_braces(pattern: str) -> list[str]:
    """Expand "a{00..02}.tar" to a00.tar, a01.tar, a02.tar, and "{x,y}", as webdataset does."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        return [pattern]
    first, last, words = match.groups()
    if words is not None:
        parts = words.split(",")
    else:
        width = len(first) if first.startswith("0") else 0
        parts = [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [expanded for part in parts for expanded in expand_braces(head + part + tail)]


def _shards(path: str) -> list[Path]:
    """The .tar files a path stands for, sorted within each glob; none where it is no such path."""
    shards: list[Path] = []
    if path.endswith(_PACKED):
        raise _compressed(path)
    # What exists is taken by its name, even one with braces or brackets in it.
    for name in [path] if Path(path).exists() else expand_braces(path):
        if Path(name).is_dir():
            shards.extend(sorted(Path(name).glob("*.tar")))
        elif name.endswith(".tar") and Path(name).exists():
            shards.append(Path(name))
        elif name.endswith(".tar"):
            matches = sorted(map(Path, glob.glob(name)))
            if not matches:
                raise FileNotFoundError(f"{name} (from {path}) does not exist; {_ACCEPTED}")
            shards.extend(matches)
    return shards


def _refuse(path: str, what: str, arguments: set[str]) -> None:
    if arguments:
        raise ValueError(
            f"{path} is {what}: {', '.join(f'{n} ({_FLAGS[n]})' for n in sorted(arguments))} "
            f"do{'es' if len(arguments) == 1 else ''} not apply"
        )
