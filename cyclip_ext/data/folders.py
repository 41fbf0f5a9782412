"""Folders of image files: with captions beside them, or with a subfolder for each class."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from .captions import CAPTION_SUFFIXES, decode_captions
from .class_names import (
    CLASS_NAMES_FILE,
    are_wordnet_ids,
    read_lines,
    read_names,
    readable,
    require_one_order,
    wordnet_names,
)
from .columns import Strings
from .dataset import Encoded, FileDataset, digest
from .images import IMAGE_SUFFIXES, read_bytes
from .skips import BadRecord, SkipReport

_NO_SUFFIX = "file without a suffix"
_STATISTICS = "_stats"  # img2dataset's 00000_stats.json describes a shard, not an image
_TRAINING, _EVALUATION = (
    re.compile(rf"(?:imagenet[-_ ]?)?(?:{names})(?:[-_ ]?(?:set|data|images|\d+))?", re.IGNORECASE)
    for names in ("train(?:ing)?", "val(?:id(?:ation)?)?|test(?:ing)?|dev|eval(?:uation)?")
)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"  # what macOS adds to archives


def walk(folder: Path, skipped: SkipReport) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder below `folder`, relative to it, with the sorted names of its files.

    Links to folders are followed, each folder once. Hidden files and folders are ignored. Folders
    that cannot be read are counted.
    """

    def unreadable(error: OSError) -> None:
        skipped.add(f"unreadable folder ({type(error).__name__})", str(error.filename))

    visited: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=unreadable):
        place = os.path.realpath(parent)
        if place in visited:  # without this, a link to a parent folder is an endless loop
            folders.clear()
            continue
        visited.add(place)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        yield os.path.relpath(parent, folder), sorted(n for n in names if not _is_hidden(n))


def size_of(path: Path) -> int:
    """Return the size of a file in bytes, -1 if it cannot be read."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def content_state(file: Path | int) -> tuple[int, int]:
    """Return size and time of change of a file, or of a descriptor; -1 if it cannot be read."""
    try:
        status = os.stat(file)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def is_image(name: str) -> bool:
    """Return whether a file is an image by its suffix."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def has_images(folder: Path) -> bool:
    """Return whether there is any image file below a folder."""
    return any(any(map(is_image, names)) for _, names in walk(folder, SkipReport()))


class ImageFiles(FileDataset):
    """Image files by name, relative to a folder."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.skipped = SkipReport()
        self.images = Strings.of(())

    def __len__(self) -> int:
        return len(self.images)

    def encoded(self, index: int) -> Encoded:
        path = self.folder / self.images[index]
        return Encoded(read_bytes(path, str(path)), str(path))

    def fingerprint(self) -> str:
        sizes = [size_of(self.folder / self.images[index]) for index in range(len(self))]
        labels = None if self.labels is None else self.labels.tolist()
        return digest(self.images.digest(), repr((sizes, labels, self.class_names)))


class FolderDataset(ImageFiles):
    """Image files anywhere below a folder, each with the .txt or .json of the same stem beside it.

    The caption is the whole .txt, or else "caption" of the .json. Hidden files are passed over.
    Images without a caption file, caption files without an image, images that share a caption file,
    files without a suffix and tar shards are counted in `skipped`.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(f"image folder {folder}", folder)
        self._suffixes: list[str] = []  # of caption files
        images: list[str] = []
        kinds: list[int] = []
        for parent, names in walk(folder, self.skipped):
            for name, suffix in self._pairs(parent, names):
                images.append(os.path.normpath(os.path.join(parent, name)))
                if suffix not in self._suffixes:
                    self._suffixes.append(suffix)
                kinds.append(self._suffixes.index(suffix))
        self.images = Strings.of(images)
        self._kinds = np.array(kinds, dtype=np.uint8)

    def _pairs(self, parent: str, names: list[str]) -> Iterator[tuple[str, str]]:
        """Yield (image, suffix of its caption file) of one folder, and count all other files."""
        images: dict[str, list[str]] = {}
        texts: dict[str, str] = {}
        place = self.folder / parent
        for name in names:
            stem, suffix = os.path.splitext(name)
            kind = suffix.lower()
            if kind in IMAGE_SUFFIXES:
                images.setdefault(stem, []).append(name)
            elif kind in CAPTION_SUFFIXES and not stem.endswith(_STATISTICS):
                order = CAPTION_SUFFIXES.index
                texts[stem] = min(texts.get(stem, suffix), suffix, key=lambda s: order(s.lower()))
            elif not suffix:
                self.skipped.add(_NO_SUFFIX, str(place / name))
            elif kind == ".tar":
                self.skipped.add("shard among images", str(place / name))
        for stem, found in images.items():
            if stem not in texts:
                for name in found:
                    self.skipped.add("no caption file", str(place / name))
            elif len(found) > 1:
                where = f"{place / found[0]} and {found[1]}"
                self.skipped.add("two images of one caption file", where, len(found))
            else:
                yield found[0], texts[stem]
        for stem in sorted(texts.keys() - images):
            self.skipped.add("no image file", str(place / (stem + texts[stem])))

    def encoded(self, index: int) -> Encoded:
        image, text = self._files(index)
        captions = decode_captions(
            read_bytes(text, str(image)), text.suffix.lower() == ".json", str(image)
        )
        return Encoded(read_bytes(image, str(image)), str(image), captions)

    def _files(self, index: int) -> tuple[Path, Path]:
        image = self.folder / self.images[index]
        return image, image.with_name(image.stem + self._suffixes[self._kinds[index]])

    def fingerprint(self) -> str:
        """See ImageDataset.fingerprint: names and sizes of images, contents of caption files."""
        texts = []
        for index in range(len(self)):
            try:
                texts.append(digest(read_bytes(self._files(index)[1], "")))
            except BadRecord as bad:
                texts.append(bad.reason)
        return digest(super().fingerprint(), Strings.of(texts).digest())


class ClassFolderDataset(ImageFiles):
    """Images at any depth below the subfolder of their class; other and hidden files are ignored.

    The classes are the subfolders in the order of their names, and if all of these are numbers, in
    the order of the numbers. A class has the name of its folder, with spaces for underscores, or of
    its WordNet id if all folders are called by one, or what `classnames.txt` in `folder` gives it,
    in one of two forms:
        folder<TAB>name   a line for each class; may name classes that have no folder
        name              line k for subfolder k, which must have the same place by the alphabet
                          and by its number; if the folders are numbers, line k for folder k (the
                          first line is that of 0)
    A class without images remains among the classes to choose from.

    class_ids: the folder of each class. skipped: images beside the class folders, files without a
    suffix, and folders that cannot be read.

    Raises ValueError, naming the folder or line, if there is no subfolder, no image, only one
    class, two subfolders of one name, if the subfolders are splits of a dataset, and if
    classnames.txt and subfolders do not fit together.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.resolve().name, folder)
        folders = _subfolders(folder)
        if not folders:
            raise ValueError(f"{folder} must have a subfolder for each class, but has no subfolder")
        _require_no_splits(folder, folders)
        if all(name.isdecimal() for name in folders):
            folders.sort(key=int)
        label_of, self.class_names = _classes(folder, folders)
        ids = dict(zip(label_of.values(), label_of, strict=True))
        self.class_ids = tuple(ids.get(label, "") for label in range(len(self.class_names)))
        images: list[str] = []
        labels: list[int] = []
        for name in folders:
            for parent, names in walk(folder / name, self.skipped):
                for file in names:
                    if is_image(file):
                        images.append(os.path.normpath(os.path.join(name, parent, file)))
                        labels.append(label_of[name])
                    elif not os.path.splitext(file)[1]:
                        self.skipped.add(_NO_SUFFIX, str(folder / name / parent / file))
        self.images = Strings.of(images)
        self.labels = torch.tensor(labels, dtype=torch.int64)
        if not images:
            raise ValueError(
                f"{folder} has {len(folders)} subfolders ({', '.join(folders[:5])}), but no image "
                f"in them; images end in {', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        if len(self.class_names) < 2:
            raise ValueError(
                f"{folder} has a single subfolder, {folders[0]}: with one class every answer is "
                f"right. Name a folder with a subfolder for each class, or write "
                f"{CLASS_NAMES_FILE} with all classes"
            )
        for entry in sorted(os.listdir(folder)):
            if is_image(entry) and not entry.startswith("."):
                self.skipped.add("image in no class folder", str(folder / entry))


def has_class_folders(folder: Path) -> bool:
    """Return whether there is a subfolder with an image somewhere in it."""
    return any(has_images(folder / name) for name in _subfolders(folder))


def _subfolders(folder: Path) -> list[str]:
    names = sorted(name for name in os.listdir(folder) if not _is_hidden(name))
    return [name for name in names if (folder / name).is_dir()]


def _require_no_splits(folder: Path, folders: Sequence[str]) -> None:
    training = [name for name in folders if _TRAINING.fullmatch(name)]
    evaluation = [name for name in folders if _EVALUATION.fullmatch(name)]
    if (training and evaluation) or len(training) + len(evaluation) == len(folders):
        raise ValueError(
            f"the subfolders of {folder} are splits of a dataset ({', '.join(folders)}), not "
            f"classes: name the split to evaluate, {folder / (evaluation or training)[0]}"
        )


def _classes(folder: Path, folders: list[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the label of each subfolder, and the name of each label."""
    file = folder / CLASS_NAMES_FILE
    if not file.exists():
        label_of = {name: label for label, name in enumerate(folders)}
        if are_wordnet_ids(folders):
            names = wordnet_names(folders)
            if names is not None:
                return label_of, names
            warnings.warn(
                f"{folder}: the classes are called by WordNet ids ({folders[0]}), and no installed "
                "package names them, so prompts have the ids. Install open_clip_torch, pass "
                f"--class-names, or write {CLASS_NAMES_FILE} with lines of folder<TAB>name",
                stacklevel=3,
            )
        folder_of: dict[str, str] = {}
        for entry in folders:
            other = folder_of.setdefault(readable(entry), entry)
            if other != entry:
                raise ValueError(
                    f"{folder}: the folders {other!r} and {entry!r} are both called "
                    f"{readable(entry)!r}, and classes of one name cannot be told apart: rename "
                    f"one, or write {CLASS_NAMES_FILE}"
                )
        return label_of, tuple(folder_of)
    lines = read_lines(file)
    if any("\t" in line for line in lines):
        return _named_folders(file, lines, folders)
    names = read_names(file)
    if all(name.isdecimal() for name in folders):
        label_of = {name: int(name) for name in folders}
        if max(label_of.values()) >= len(names):
            raise ValueError(
                f"{file} has {len(names)} lines, so names folders 0 .. {len(names) - 1}, but there "
                f"is a folder {folders[-1]}; add the missing lines"
            )
        if len(set(label_of.values())) < len(label_of):
            raise ValueError(
                f"{folder} has several folders of one number ({', '.join(folders)}); rename "
                "or merge them"
            )
        return label_of, names
    if len(names) != len(folders):
        raise ValueError(
            f"{file} has {len(names)} lines for {len(folders)} subfolders; write lines of "
            "folder<TAB>name to assign them"
        )
    require_one_order(folders, file)
    return {name: label for label, name in enumerate(folders)}, names


def _named_folders(
    file: Path, lines: list[str], folders: list[str]
) -> tuple[dict[str, int], tuple[str, ...]]:
    name_of: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        key, _, name = (part.strip() for part in line.partition("\t"))
        if not key or not name:
            raise ValueError(f"{file}:{number}: must be folder<TAB>name, got {line!r}")
        if key in name_of:
            raise ValueError(f"{file}:{number}: folder {key!r} already has a name; remove one")
        name_of[key] = name
    unnamed = [name for name in folders if name not in name_of]
    if unnamed:
        more = f" and {len(unnamed) - 1} more" if len(unnamed) > 1 else ""
        raise ValueError(
            f"{file} has no line for the folder {unnamed[0]}{more}; write a line of "
            "folder<TAB>name for each"
        )
    return {key: label for label, key in enumerate(name_of)}, tuple(name_of.values())
