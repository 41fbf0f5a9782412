"""A folder of quadruples in the layout in which Winoground is published."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data import ImageDataset, SkipReport
from ...data.captions import clean_caption, is_text
from ...data.columns import Strings
from ...data.folders import ImageFiles
from ...data.images import IMAGE_SUFFIXES

EXAMPLES_FILE = "examples.jsonl"
_CAPTIONS, _IMAGES = ("caption_0", "caption_1"), ("image_0", "image_1")


@dataclass(frozen=True)
class Quadruples:
    """Two images and two captions each; the first caption is that of the first image.

    images: 2 N images, those of quadruple i at 2 i and 2 i + 1; its `skipped` counts lines of the
    file. captions: [N] pairs. tags: [N], the kind of each quadruple, "" for none.

    Raises ValueError for lengths that differ.
    """

    images: ImageDataset
    captions: tuple[tuple[str, str], ...]
    tags: tuple[str, ...]

    def __post_init__(self) -> None:
        counts = {"images": len(self.images), "captions": len(self.captions), "tags": len(self)}
        if not counts["images"] == 2 * counts["captions"] == 2 * counts["tags"]:
            raise ValueError(f"{self.name}: a quadruple has 2 images and 2 captions, got {counts}")

    @property
    def name(self) -> str:
        return self.images.name

    def __len__(self) -> int:
        return len(self.tags)


def open_winoground(folder: Path) -> Quadruples:
    """Open two images and two captions per line.

        examples.jsonl   a JSON object per line: caption_0, caption_1, image_0, image_1 (texts) and
                         optionally tag; other keys are ignored
        images/          the files that image_0 and image_1 name, with or without their suffix

    caption_0 belongs to image_0. Broken and incomplete lines are counted in `skipped`; a missing
    image is found when it is accessed.

    Raises ValueError if no line can be used.
    """
    file = folder / EXAMPLES_FILE
    suffixed: dict[str, list[str]] = {}
    for path in sorted((folder / "images").glob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            suffixed.setdefault(path.stem, []).append(path.name)
    skipped = SkipReport()
    captions: list[tuple[str, str]] = []
    images: list[str] = []
    tags: list[str] = []
    for number, line in enumerate(re.split(rb"\r\n|[\r\n]", file.read_bytes()), 1):
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
        names = [suffixed.get(entry[key], [entry[key]]) for key in _IMAGES]
        if any(len(found) > 1 for found in names):
            skipped.add("two images of one name", where)
            continue
        captions.append((first, second))
        images += [found[0] for found in names]
        tag = entry.get("tag")
        tags.append(tag if isinstance(tag, str) else "")
    if not captions:
        raise ValueError(f"{file} has no usable line: {skipped}")
    dataset = ImageFiles(folder.resolve().name, folder / "images")
    dataset.images = Strings.of(images)
    dataset.skipped = skipped
    return Quadruples(dataset, tuple(captions), tuple(tags))


def _entry(line: bytes) -> dict[str, Any] | None:
    """Return the object of a line if all four parts of a quadruple are texts."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict):
        return None
    parts = [entry.get(key) for key in (*_CAPTIONS, *_IMAGES)]
    return entry if all(isinstance(part, str) and is_text(part) for part in parts) else None
