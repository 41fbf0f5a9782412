"""Opening of datasets: files by the format of a path, and built-in datasets by name."""

from __future__ import annotations

import glob
import itertools
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from .caption_json import read_caption_json
from .dataset import DatasetSplits, FileDataset, ImageDataset
from .debian import load_debian
from .emoji import emoji_available, load_emoji
from .folders import FolderDataset, has_images, is_image, walk
from .google_tsv import is_google_tsv, read_google_tsv
from .manifest import apply_manifest
from .parquet import read_parquet
from .shapes import load_shapes
from .skips import SkipReport
from .tables import TableDataset, is_token_file, read_table, typed_separator
from .tar import TarDataset

# Datasets that bring their own evaluation.
BUILTIN: dict[str, Callable[[int], DatasetSplits]] = {
    "emoji": load_emoji,
    "shapes": load_shapes,
    "debian": load_debian,
}

_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_TEXT_TABLES = {".csv", ".tsv", ".txt", ".token"}

_ACCEPTED = f"""accepted are
  {", ".join(BUILTIN)}: datasets that bring their own evaluation
  00000.tar, a folder of .tar files, 'cc3m/{{00000..00331}}.tar' or 'cc3m/*.tar': img2dataset shards
  a folder of image files, each with its caption beside it in a .txt or .json of the same name
  a .tsv of caption<TAB>url (Google's CC3M) with --images <folder of downloaded files>
  a .csv or .tsv with a header that has an image and a caption column; Flickr's .token
  a .json of captions: COCO's or Karpathy's
  a .parquet, or a folder of them: img2dataset's output"""


TABLE_OPTIONS = tuple(
    f"csv_{name}" for name in ("separator", "img_key", "caption_key", "label_key", "quoting")
)


@dataclass(frozen=True)
class ReadOptions:
    """How to read a dataset; each option belongs to some formats, None is the default of each.

    Attributes:
        images: Folder of the images of a table or caption file.
        first_row: Number of the first row of Google's TSV in the names of its images, 0 or 1.
        csv_separator: Character between columns.
        csv_img_key: Name of the column of images.
        csv_caption_key: Name of the column of captions.
        csv_label_key: Name of the column of classes.
        csv_quoting: Whether quotes enclose fields: "auto", "quoted" or "none".
        split: Split of Karpathy's JSON.
        manifest: File written by `cyclip-data verify` for this data; the records it lists as bad
            are skipped.
    """

    images: str | Path | None = None
    first_row: int | None = None
    csv_separator: str | None = None
    csv_img_key: str | None = None
    csv_caption_key: str | None = None
    csv_label_key: str | None = None
    csv_quoting: str | None = None
    split: str | None = None
    manifest: str | Path | None = None

    def require_applicable(self, spec: str, kind: str, *accepted: str) -> None:
        """Raise ValueError if an option is given that does not apply to this kind of dataset."""
        given = [
            option.name
            for option in fields(self)
            if getattr(self, option.name) is not None and option.name not in {*accepted, "manifest"}
        ]
        if given:
            flags = ", ".join(f"{name} (--{name.replace('_', '-')})" for name in given)
            does = "does" if len(given) == 1 else "do"
            raise ValueError(f"{spec} is {kind}: {flags} {does} not apply")


def resolved(name: str) -> str:
    """Return the name or path; "auto" becomes "emoji" if it is installed, else "shapes"."""
    if name != "auto":
        return name
    return "emoji" if emoji_available() else "shapes"


def load_builtin(name: str, size: int = 64) -> DatasetSplits:
    """Load the in-memory dataset "emoji", "shapes" or "debian", images `size` pixels square.

    Raises ValueError for another name, MissingData if its packages are not installed.
    """
    if name not in BUILTIN:
        raise ValueError(f"no dataset is called {name!r}; known: {', '.join(BUILTIN)}")
    return BUILTIN[name](size)


def open_dataset(spec: str, options: ReadOptions | None = None) -> ImageDataset:
    """Open images with captions on disk; `.name` contains the format that was recognized.

    spec: a path or pattern in one of the formats of `_ACCEPTED`.

    Raises FileNotFoundError if nothing is there, ValueError if it is not of an accepted format
    (both name the path and the accepted formats), if an option does not apply to the format, and if
    the manifest is of other data.
    """
    options = options or ReadOptions()
    dataset = _open(spec, options)
    if not len(dataset):
        raise ValueError(f"{dataset.name} has no record that can be used; {dataset.skipped}")
    return dataset if options.manifest is None else apply_manifest(dataset, Path(options.manifest))


def _open(spec: str, options: ReadOptions) -> FileDataset:
    path = Path(spec)
    images = None if options.images is None else Path(options.images)
    shards = _files(spec, ".tar")
    if shards:
        options.require_applicable(spec, "tar shards")
        return _open_shards(spec, shards)
    tables = _files(spec, ".parquet")
    if tables:
        options.require_applicable(spec, "parquet", "images", "csv_img_key", "csv_caption_key")
        return read_parquet(
            tables,
            images=images,
            image_key=options.csv_img_key,
            caption_key=options.csv_caption_key,
        )
    if path.is_dir():
        options.require_applicable(spec, "a folder")
        return _open_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"{spec} does not exist; {_ACCEPTED}")
    if path.suffix.lower() == ".json":
        options.require_applicable(spec, "a caption file", "images", "split")
        return read_caption_json(path, images, options.split)
    if path.suffix.lower() not in _TEXT_TABLES:
        raise ValueError(f"{spec} is not of a known format; {_ACCEPTED}")
    if is_google_tsv(path):
        options.require_applicable(spec, "a TSV of captions and addresses", "images", "first_row")
        if images is None:
            raise ValueError(
                f"{spec} lists web addresses: images (--images) must name the folder the files "
                "were downloaded to, got None"
            )
        return read_google_tsv(path, images, first_row=options.first_row)
    if is_token_file(path):
        options.require_applicable(spec, "a file of captions without a header", "images")
    options.require_applicable(spec, "a table with a header", "images", *TABLE_OPTIONS)
    return open_table(path, options)


def open_table(path: Path, options: ReadOptions, *, labels: bool = False) -> TableDataset:
    """Open a table with a header, or Flickr's token file, with the options that apply to it."""
    return read_table(
        path,
        images=None if options.images is None else Path(options.images),
        separator=typed_separator(options.csv_separator),
        image_key=options.csv_img_key,
        caption_key=options.csv_caption_key,
        label_key=options.csv_label_key,
        quoting=options.csv_quoting or "auto",
        labels=labels,
    )


def _open_folder(folder: Path) -> FolderDataset:
    dataset = FolderDataset(folder)
    if len(dataset):
        return dataset
    inside = _first_below(folder, ".tar")
    if inside is not None:
        pattern = "/".join(["*"] * (len(inside.parts) - 1) + ["*.tar"])
        raise ValueError(
            f"the .tar files in {folder} are in subfolders ({inside}): name them by a pattern, "
            f"'{folder}/{pattern}'"
        )
    if not has_images(folder):
        raise ValueError(f"{folder} is a folder without .tar files and without images; {_ACCEPTED}")
    raise ValueError(
        f"no image in {folder} has a caption, a .txt or .json of the same name beside it. If its "
        "subfolders are named after classes: a class name is not a caption; write a CSV with the "
        f"columns image,caption instead. {_ACCEPTED}"
    )


def _open_shards(spec: str, shards: list[Path]) -> TarDataset:
    if len({shard.resolve() for shard in shards}) < len(shards):
        raise ValueError(f"{spec} names a shard twice")
    dataset = TarDataset(shards)
    folder = Path(spec)
    if folder.is_dir():
        for parent, names in walk(folder, dataset.skipped):
            for name in filter(is_image, names):
                dataset.skipped.add("image beside shards", str(folder / parent / name))
    return dataset


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


def _files(spec: str, suffix: str) -> list[Path]:
    """Return the files with a suffix that a path or pattern matches, sorted within each pattern.

    The list is empty if the path has another suffix, or is a folder without such files.

    Raises FileNotFoundError for a part of a pattern that is not there, ValueError for one that has
    no such file although others have.
    """
    if spec.endswith(_PACKED):
        raise _compressed(spec)
    found: list[Path] = []
    without: list[str] = []
    # Braces and brackets in the name of an existing path are not expanded.
    names = [spec] if Path(spec).exists() else expand_braces(spec)
    for name in names:
        path = Path(name)
        matches: list[Path] = []
        if path.is_dir():
            matches = _inside(path, suffix)
        elif name.lower().endswith(suffix):
            matches = [path] if path.exists() else sorted(map(Path, glob.glob(name)))
            if not matches:
                raise FileNotFoundError(f"{name} (from {spec}) does not exist; {_ACCEPTED}")
        if not matches:
            without.append(name)
        found.extend(matches)
    if found and without:
        raise ValueError(
            f"{spec} names {found[0]}, but also {without[0]}, which is not there or has no "
            f"{suffix} file: name files of one kind only, that exist"
        )
    return found


def _inside(folder: Path, suffix: str) -> list[Path]:
    packed = [p for s in _PACKED for p in sorted(folder.glob(f"*{s}"))]
    if packed:
        raise _compressed(packed[0])
    found = sorted(
        Path(entry.path)
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(suffix) and entry.name[0] != "."
    )
    _warn_of_gaps(folder, found)
    deeper = _first_below(folder, suffix) if found else None
    if deeper is not None:
        raise ValueError(
            f"{folder} has {suffix} files, and others in subfolders ({deeper}): name those to read "
            f"by a pattern, '{folder}/*{suffix}' or '{folder}/*/*{suffix}'"
        )
    return found


def _first_below(folder: Path, suffix: str) -> Path | None:
    """Return a file with a suffix in a subfolder, relative to the folder."""
    for parent, names in walk(folder, SkipReport()):
        for name in names if parent != "." else ():
            if name.lower().endswith(suffix):
                return Path(parent, name)
    return None


def _warn_of_gaps(folder: Path, files: list[Path]) -> None:
    """Warn if shards are missing between the first and the last number."""
    series: dict[str, set[int]] = {}
    for path in files:
        match = re.fullmatch(r"(.*?)(\d{1,18})", path.stem, re.ASCII)
        if match:
            series.setdefault(match[1], set()).add(int(match[2]))
    for prefix, numbers in series.items():
        count = max(numbers) - min(numbers) + 1 - len(numbers)
        if count:
            first = next(n for n in itertools.count(min(numbers)) if n not in numbers)
            warnings.warn(
                f"{folder} has {len(files):,} shards, but {count:,} between the first and the "
                f"last number are missing (e.g. number {first}{' of ' + prefix if prefix else ''})",
                stacklevel=5,
            )
