"""A folder of quadruples, laid out as Winoground is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...data import SkipReport
from ...data.captions import clean_caption, is_text
from ...data.images import IMAGE_SUFFIXES
from ..sets import Quadruples
from .files import FileImages

EXAMPLES_FILE = "examples.jsonl"
_CAPTIONS, _IMAGES = ("caption_0", "caption_1"), ("image_0", "image_1")


def open_winoground(folder: Path) -> Quadruples:
    """Two pictures and two captions a line.

        examples.jsonl   a JSON object a line: caption_0, caption_1, image_0, image_1 (texts) and,
                         where there is one, tag; other keys do not count
        images/          the files that image_0 and image_1 name, with or without their suffix

    caption_0 belongs to image_0. Lines that are broken or lack something are counted in `skipped`;
    whether a picture is there is found out on opening it. Raises ValueError where no line is left.
    """
    file = folder / EXAMPLES_FILE
    suffixed = {
        path.stem: path.name
        for path in sorted((folder / "images").glob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES
    }
    skipped = SkipReport()
    captions: list[tuple[str, str]] = []
    images: list[tuple[Path, Path]] = []
    tags: list[str] = []
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        entry = _entry(line)
        where = f"{file}:{number}"
        if entry is None:
            skipped.add("broken line", where)
            continue
        first, second = (clean_caption(entry[key]) for key in _CAPTIONS)
        if not first or not second:
            skipped.add("empty caption", where)
            continue
        left, right = (entry[key] for key in _IMAGES)
        captions.append((first, second))
        images.append(
            (
                folder / "images" / suffixed.get(left, left),
                folder / "images" / suffixed.get(right, right),
            )
        )
        tag = entry.get("tag")
        tags.append(tag if isinstance(tag, str) else "")
    if not captions:
        raise ValueError(f"{file} has no line that can be used: {skipped}")
    return Quadruples(
        folder.resolve().name,
        FileImages([first for first, _ in images]),
        FileImages([second for _, second in images]),
        tuple(captions),
        tuple(tags),
        skipped,
    )


def _entry(line: bytes) -> dict[str, Any] | None:
    """The object of a line where all four parts of a quadruple are texts."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict):
        return None
    parts = [entry.get(key) for key in (*_CAPTIONS, *_IMAGES)]
    return entry if all(isinstance(part, str) and is_text(part) for part in parts) else None
