"""Captions in COCO's JSON, with the pictures in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...data import MissingData, SkipReport
from ...data.captions import clean_caption, is_text
from .files import ImageFiles


def open_coco(annotations: Path, images: Path | None = None) -> ImageFiles:
    """The pictures of a captions file, each with all captions that name its id.

    annotations: {"images": [{"id", "file_name"}, ...], "annotations": [{"image_id", "caption"},
    ...]}. images: the folder of the files; default: the first of these that has one of them: the
    folder of the JSON, the one above it, `images` in either, and beside the folder of the JSON the
    one that the end of its name names (captions_val2017.json: val2017).

    Pictures without caption, captions of no picture, empty ones and broken entries are counted in
    `skipped`; whether a file is there is found out on opening it. Raises ValueError where the file
    is not such JSON, two pictures have one id or nothing is left, MissingData, naming the folders
    tried, where none of them has a picture.
    """
    content = _content(annotations)
    skipped = SkipReport()
    names: dict[Any, str] = {}
    for where, entry in _entries(annotations, content, "images"):
        key, name = entry.get("id"), entry.get("file_name")
        if not isinstance(key, int | str) or not isinstance(name, str) or not name:
            skipped.add("broken image entry", where)
        elif key in names:
            raise ValueError(f"{where}: id {key!r} already belongs to {names[key]!r}")
        else:
            names[key] = name
    captions: dict[Any, list[str]] = {}
    for where, entry in _entries(annotations, content, "annotations"):
        key, text = entry.get("image_id"), entry.get("caption")
        caption = clean_caption(text) if isinstance(text, str) and is_text(text) else ""
        if not caption:
            skipped.add("empty caption", where)
        elif not isinstance(key, int | str) or key not in names:
            skipped.add("caption of no picture", where)
        else:
            captions.setdefault(key, []).append(caption)
    for key, name in names.items():
        if key not in captions:
            skipped.add("no caption", f"{annotations}: {name}")
    if not captions:
        raise ValueError(f"{annotations} has no picture with a caption: {skipped}")
    kept = [key for key in names if key in captions]
    files = [names[key] for key in kept]
    folder = images if images is not None else _folder(annotations, files)
    return ImageFiles(
        annotations.stem,
        [folder / file for file in files],
        captions=[tuple(captions[key]) for key in kept],
        skipped=skipped,
    )


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # ValueError: UnicodeDecodeError, too
        raise ValueError(f"{path} is no JSON file: {error}") from None
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        found = sorted(content)[:10] if isinstance(content, dict) else type(content).__name__
        raise ValueError(f'{path} must be an object with "images" and "annotations", got {found}')
    return content


def _entries(path: Path, content: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(content[key], list):
        raise ValueError(f'{path}: "{key}" must be a list, got {type(content[key]).__name__}')
    for number, entry in enumerate(content[key]):
        yield f"{path}: {key}[{number}]", entry if isinstance(entry, dict) else {}


def _folder(annotations: Path, files: list[str]) -> Path:
    parent = annotations.parent
    above = parent.resolve().parent
    split = annotations.stem.rpartition("_")[2]
    tried = [parent, parent / "images", above, above / "images", above / split]
    for folder in tried:
        if any((folder / file).is_file() for file in files):
            return folder
    raise MissingData(
        f"no picture that {annotations} names (the first is {files[0]}) is in any of "
        f"{', '.join(map(str, tried))}: give their folder as images"
    )
