"""Opening of datasets: files by the format of a path, and built-in datasets by name."""

from __future__ import annotations

import glob
import itertools
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .caption_json import read_caption_json
from .dataset import DatasetSplits, FileDataset, ImageDataset
from .debian import load_debian
from .emoji import emoji_available, load_emoji
from .folders import FolderDataset, has_images, is_image, walk
from .google_tsv import is_google_tsv, read_google_tsv
from .manifest import apply_manifest
from .options import ReadOptions
from .parquet import ParquetDataset, read_parquet
from .shapes import load_shapes
from .skips import SkipReport
from .tables import is_token_file, read_table
from .tar import TarDataset

# Datasets that bring their own evaluation.
BUILTIN: dict[str, Callable[[int], DatasetSplits]] = {
    "emoji": load_emoji,
    "shapes": load_shapes,
    "debian": load_debian,
}

_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_TABLES = (".csv", ".tsv", ".txt", ".token")


class UnknownFormat(ValueError):
    """A file of a format that is not among FORMATS."""


@dataclass(frozen=True)
class Format:
    """A format of files.

    name: for messages about a file. example: for messages that list what can be opened. suffixes:
    of its files. options: fields of ReadOptions that apply to it. read: opens (files, options,
    labels, default of split), see open_dataset. recognizes: whether a file of such a suffix is of
    this format; the first of FORMATS that fits is used. many: a pattern or a folder may name
    several files.
    """

    name: str
    example: str
    suffixes: tuple[str, ...]
    options: tuple[str, ...]
    read: Callable[[list[Path], ReadOptions, bool, str], FileDataset]
    recognizes: Callable[[Path], bool] = lambda path: True
    many: bool = False


_FOLDER = Format(
    "a folder",
    "a folder of image files, each with its caption beside it in a .txt or .json of the same name",
    (),
    (),
    lambda files, *_: _open_folder(files[0]),
)
FORMATS = (
    Format(
        "tar shards",
        "00000.tar, a folder of .tar files, 'cc3m/{00000..00331}.tar' or 'cc3m/*.tar': img2dataset "
        "shards",
        (".tar",),
        (),
        lambda files, *_: TarDataset(files),
        many=True,
    ),
    Format(
        "parquet",
        "a .parquet, or a folder of them: img2dataset's output",
        (".parquet",),
        ("images", "csv_img_key", "csv_caption_key"),
        lambda files, options, *_: read_parquet(files, options),
        many=True,
    ),
    Format(
        "a caption file",
        "a .json of captions: COCO's or Karpathy's",
        (".json",),
        ("images", "split"),
        lambda files, options, labels, split: read_caption_json(files[0], options, split),
    ),
    Format(
        "a TSV of captions and addresses",
        "a .tsv of caption<TAB>url (Google's CC3M) with --images <folder of downloaded files>",
        _TABLES,
        ("images", "first_row"),
        lambda files, options, *_: read_google_tsv(
            files[0], options.folder, first_row=options.first_row
        ),
        is_google_tsv,
    ),
    Format(
        "a file of captions without a header",
        "a .token of name#number<TAB>caption (Flickr)",
        _TABLES,
        ("images",),
        lambda files, options, *_: read_table(files[0], options),
        is_token_file,
    ),
    Format(
        "a table with a header",
        "a .csv or .tsv with a header that has an image and a caption column",
        _TABLES,
        (
            *("images", "csv_separator", "csv_img_key", "csv_caption_key", "csv_label_key"),
            "csv_quoting",
        ),
        lambda files, options, labels, _: read_table(files[0], options, labels=labels),
    ),
)

_BUILTIN = f"{', '.join(BUILTIN)}: datasets that bring their own evaluation"
_ACCEPTED = "\n  ".join(
    ["accepted are", _BUILTIN, *(format.example for format in (_FOLDER, *FORMATS))]
)


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


def open_dataset(
    spec: str, options: ReadOptions | None = None, *, labels: bool = False, split: str = "train"
) -> ImageDataset:
    """Open images with captions on disk; `.name` contains the format that was recognized.

    spec: a path or pattern of one of FORMATS, or a folder of images with captions. labels: a table
    may have labels instead of captions. split: default of the option `split`, for files that have
    splits.

    Raises FileNotFoundError if nothing is there, ValueError if it is not of an accepted format
    (both name the path and the accepted formats), if an option does not apply to the format, and if
    the manifest is of other data.
    """
    options = options or ReadOptions()
    format, files = format_of(spec)
    options.require_applicable(spec, format.name, format.options)
    folders = [path for path in map(Path, _expanded(spec)) if format.many and path.is_dir()]
    for folder in folders:
        _require_whole(folder, [f for f in files if f.parent == folder], format.suffixes[0])
    dataset = format.read(files, options, labels, split)
    for folder in folders if isinstance(dataset, TarDataset | ParquetDataset) else ():
        stems = {path.stem for path in files}  # img2dataset writes 0.parquet about 0.tar
        for parent, names in walk(folder, dataset.skipped):
            for name in names:
                stem, suffix = os.path.splitext(name)
                if is_image(name):
                    dataset.skipped.add("image beside shards", str(folder / parent / name))
                elif suffix.lower() == ".parquet" and stem not in stems:
                    dataset.skipped.add("parquet beside shards", str(folder / parent / name))
    if not len(dataset):
        raise ValueError(f"{dataset.name} has no record that can be used; {dataset.skipped}")
    return dataset if options.manifest is None else apply_manifest(dataset, Path(options.manifest))


def format_of(spec: str) -> tuple[Format, list[Path]]:
    """Return the format of the files that a path or pattern names, and the files.

    Raises FileNotFoundError if nothing is there, UnknownFormat, and ValueError for a pattern of
    several formats and for compressed archives.
    """
    for format in FORMATS:
        files = _matching(spec, format.suffixes[0]) if format.many else []
        if files:
            return format, files
    path = Path(spec)
    if path.is_dir():
        return _FOLDER, [path]
    if not path.exists():
        raise FileNotFoundError(f"{spec} does not exist; {_ACCEPTED}")
    for format in FORMATS:
        if path.suffix.lower() in format.suffixes and format.recognizes(path):
            return format, [path]
    raise UnknownFormat(f"{spec} is not of a known format; {_ACCEPTED}")


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


def _expanded(spec: str) -> list[str]:
    """Expand the braces of a pattern; an existing path is returned as it is."""
    return [spec] if Path(spec).exists() else expand_braces(spec)


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


def _matching(spec: str, suffix: str) -> list[Path]:
    """Return the files with a suffix that a path or pattern matches, sorted within each pattern.

    The list is empty if the path has another suffix, or is a folder without such files.

    Raises FileNotFoundError for a part of a pattern that is not there, ValueError for one that has
    no such file although others have, and if a file is named twice.
    """
    found: list[Path] = []
    without: list[str] = []
    for name in _expanded(spec):
        path = Path(name)
        matches: list[Path] = []
        inside = sorted(os.listdir(path)) if path.is_dir() else []
        packed = next((each for each in (name, *inside) if each.endswith(_PACKED)), None)
        if packed is not None:
            raise ValueError(
                f"{path / packed if inside else name} is a compressed archive: samples cannot be "
                "reached at random in it. Unpack it to a plain .tar (images are compressed "
                "already, it hardly grows)"
            )
        if path.is_dir():
            matches = [path / n for n in inside if n.lower().endswith(suffix) and n[0] != "."]
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
            f"{suffix} file; name only existing files of one kind"
        )
    if len({path.resolve() for path in found}) < len(found):
        raise ValueError(f"{spec} names a shard twice; name each once")
    return found


def _require_whole(folder: Path, files: list[Path], suffix: str) -> None:
    """Raise ValueError if there are more files in subfolders; warn of gaps between the numbers."""
    _warn_of_gaps(folder, files)
    deeper = _first_below(folder, suffix)
    if deeper is not None:
        raise ValueError(
            f"{folder} has {suffix} files, and others in subfolders ({deeper}): name those to read "
            f"by a pattern, '{folder}/*{suffix}' or '{folder}/*/*{suffix}'"
        )


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
                stacklevel=4,
            )
