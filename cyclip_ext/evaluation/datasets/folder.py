"""A folder of pictures with a subfolder for each class."""

from __future__ import annotations

import os
from pathlib import Path

from ...data.images import IMAGE_SUFFIXES
from .files import ImageFiles
from .names import CLASS_NAMES_FILE, read_lines, read_names, readable


def open_folder(folder: Path) -> ImageFiles:
    """Pictures anywhere below the subfolder of their class; other and hidden files do not count.

    Links to folders are followed, once within a class.
    The classes are the subfolders in the order of their names, and where all of these are numbers
    in the order of the numbers. A class is called as its folder, with spaces for underscores, or as
    `classnames.txt` in `folder` says, in one of two forms:
        folder<TAB>name   a line for each class; names classes that have no folder, too
        name              line k for subfolder k; where the folders are numbers, line k for folder k
                          (the first line is that of 0)
    A class without pictures stays: it is one more to choose among.

    Raises: ValueError, naming the folder or line, where there is no subfolder, no picture at all,
    two subfolders that are called alike, and where classnames.txt and subfolders do not fit
    together.
    """
    folders = sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith(".")
    )
    if not folders:
        raise ValueError(f"{folder} must have a subfolder for each class, but has no subfolder")
    if all(name.isdecimal() for name in folders):
        folders.sort(key=int)
    label_of, names = _classes(folder, folders)
    paths: list[Path] = []
    labels: list[int] = []
    for name in folders:
        found = _pictures(folder / name)
        paths += found
        labels += [label_of[name]] * len(found)
    if not paths:
        raise ValueError(
            f"{folder} has {len(folders)} subfolders ({', '.join(folders[:5])}), but no picture in "
            f"them; pictures end in {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return ImageFiles(folder.resolve().name, paths, labels=labels, class_names=names)


def has_class_folders(folder: Path) -> bool:
    """Whether there is a subfolder with a picture somewhere in it."""
    return any(
        entry.is_dir() and not entry.name.startswith(".") and bool(_pictures(Path(entry.path)))
        for entry in os.scandir(folder)
    )


def _pictures(folder: Path) -> list[Path]:
    found: list[Path] = []
    visited: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(parent)
        if place in visited:  # a link to a folder above it would never end
            folders.clear()
            continue
        visited.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(parent, name)
            for name in sorted(names)
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        ]
    return found


def _classes(folder: Path, folders: list[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """The label of each subfolder, and the name of each label."""
    file = folder / CLASS_NAMES_FILE
    if not file.is_file():
        folder_of: dict[str, str] = {}
        for entry in folders:
            other = folder_of.setdefault(readable(entry), entry)
            if other != entry:
                raise ValueError(
                    f"{folder}: the folders {other!r} and {entry!r} are both called "
                    f"{readable(entry)!r}, and classes of one name cannot be told apart: rename "
                    f"one, or write {CLASS_NAMES_FILE}"
                )
        return {name: label for label, name in enumerate(folders)}, tuple(folder_of)
    lines = read_lines(file)
    if any("\t" in line for line in lines):
        return _named_folders(file, lines, folders)
    names = read_names(file)
    if all(name.isdecimal() for name in folders):
        label_of = {name: int(name) for name in folders}
        if max(label_of.values()) >= len(names):
            raise ValueError(
                f"{file} has {len(names)} lines, so names folders 0 .. {len(names) - 1}, but there "
                f"is a folder {folders[-1]}"
            )
        return label_of, names
    if len(names) != len(folders):
        raise ValueError(
            f"{file} has {len(names)} lines for {len(folders)} subfolders; write folder<TAB>name "
            "lines to say which is which"
        )
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
            raise ValueError(f"{file}:{number}: folder {key!r} already has a name")
        name_of[key] = name
    unnamed = [name for name in folders if name not in name_of]
    if unnamed:
        raise ValueError(f"{file} has no line for the folder(s) {', '.join(unnamed[:5])}")
    return {key: label for label, key in enumerate(name_of)}, tuple(name_of.values())
