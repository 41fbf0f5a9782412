"""Makers of tiny files, intact and damaged."""

from __future__ import annotations

import io
import re
import struct
import tarfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from cyclip_ext.data import BadRecord, ImageDataset

RED, BLUE = (220, 30, 40), (20, 40, 230)


def halves(mode: str = "RGB", size: tuple[int, int] = (40, 20)) -> Image.Image:
    """Left half red, right half blue: shows rotation and colour errors."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, size[0], size[1]))
    return image.quantize(8) if mode == "P" else image.convert(mode)


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    """Return the bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def jpeg() -> bytes:
    """Return a JPEG large enough to be cut in the middle of its data."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    return encode(Image.fromarray(noise), "JPEG")


def png_bomb(side: int = 15_000) -> bytes:
    """Return a valid PNG header of side x side pixels with next to no data behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def write_tar(
    path: Path, members: list[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT
) -> Path:
    """Write an archive with these members in this order."""
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def colour(number: int) -> tuple[int, int, int]:
    """Return the colour by which image `number` is recognized."""
    return (number * 37 % 256, number * 91 % 256, 40 + number % 200)


def coloured(number: int, format: str = "PNG") -> bytes:
    """Return an image file of one colour."""
    return encode(Image.new("RGB", (16, 16), colour(number)), format)


def png(name: str, number: int) -> tuple[str, bytes]:
    """Return a member of an archive: the image of a number."""
    return name, coloured(number)


def txt(name: str, number: int) -> tuple[str, bytes]:
    """Return a member of an archive: the caption of a number."""
    return name, f"number {number}".encode()


def pair(key: str, number: int, image: str = ".png", text: str = ".txt") -> list[tuple[str, bytes]]:
    """Return the members of a sample: the image and the caption of a number."""
    return [png(key + image, number), txt(key + text, number)]


def numbered(path: Path, number: int) -> Path:
    """Write the image of a number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(coloured(number))
    return path


def pairing(dataset: ImageDataset) -> dict[int | str, int]:
    """Count the captions of each image by number, and records that cannot be used by reason.

    Every caption has "number N" in it; the image must be that of N.
    """
    found: Counter[int | str] = Counter()
    for index in range(len(dataset)):
        try:
            sample = dataset[index]
        except BadRecord as bad:
            found[bad.reason] += 1
            continue
        for caption in sample.captions:
            match = re.search(r"number (\d+)", caption)
            assert match is not None, caption
            number = int(match[1])
            pixel = np.array(sample.image.getpixel((0, 0)))
            assert np.abs(pixel - colour(number)).max() < 8, f"{sample.key} has {caption[:40]}"
            found[number] += 1
    return dict(found)
