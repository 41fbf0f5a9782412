"""Writers of small files, and the contents of opened evaluation datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.files import encode
from PIL import Image

from cyclip_ext.data import BadRecord, FileDataset, ImageDataset, ReadOptions
from cyclip_ext.evaluation.datasets import open_evaluation_dataset


def image(grey: int, kind: str = "PNG") -> bytes:
    return encode(Image.new("L", (8, 6), grey), kind)


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def classified(spec: str | Path, root: Path | str = "data", **options: Any) -> ImageDataset:
    found = open_evaluation_dataset(str(spec), ReadOptions(**options), root=root)
    assert isinstance(found, ImageDataset)
    assert len(found.labels) == len(found)
    return found


def captioned(spec: str | Path, **options: Any) -> ImageDataset:
    found = open_evaluation_dataset(str(spec), ReadOptions(**options))
    assert isinstance(found, ImageDataset)
    assert found.labels is None
    return found


def captions(data: ImageDataset) -> list[tuple[str, ...] | str]:
    """Return the captions of each record, or the reason why they cannot be read."""
    assert isinstance(data, FileDataset)
    found: list[tuple[str, ...] | str] = []
    for index in range(len(data)):
        try:
            found.append(data.encoded(index).captions)
        except BadRecord as bad:
            found.append(bad.reason)
    return found


def greys(data: ImageDataset) -> list[int | str]:
    """Return the grey of each image, or the reason why it cannot be read."""
    found: list[int | str] = []
    for index in range(len(data)):
        try:
            image = data[index].image
            assert image.mode == "RGB"
            found.append(image.getpixel((0, 0))[0])
        except BadRecord as bad:
            found.append(bad.reason)
    return found


def named(data: ImageDataset) -> dict[int | str, str]:
    """Return class names by grey, which do not depend on the order of the images."""
    names = [data.class_names[label] for label in data.labels.tolist()]
    return dict(zip(greys(data), names, strict=True))
