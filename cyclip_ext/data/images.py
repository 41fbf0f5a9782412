"""From the bytes of a file to an RGB (or RGBA) picture: one policy for every source."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .skips import BadRecord, SkipReport

# 67 megapixels: above what cameras deliver and any web picture needs, far below what exhausts
# memory (a 200-megapixel PNG of one colour is a few hundred kilobytes on disk).
MAX_PIXELS = 2**26

# By the name's end; what a file really is, its first bytes decide.
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})

_EXIF_ORIENTATION = 0x0112

# Pillow reads dozens of formats, some of them little tested, and EPS by starting Ghostscript: what
# the web serves as pictures is enough. JPEG includes MPO, several pictures in one file.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

# What Pillow's decoders raise on damaged data: SyntaxError comes from the PNG reader, RuntimeError
# from that of AVIF.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    RuntimeError,
    struct.error,
    zlib.error,
)


def open_image(
    source: Path | bytes,
    where: str,
    *,
    keep_alpha: bool = False,
    max_pixels: int = MAX_PIXELS,
    min_side: int | None = None,
) -> Image.Image:
    """Decode a picture whole and bring it to RGB, or RGBA with keep_alpha.

    Rotation and mirroring stored as EXIF orientation are applied; palettes, grey, CMYK and 16-bit
    pictures are converted; transparency is composited onto white unless it is kept; of an animation
    the first frame is taken; gamma and colour profiles are ignored. `where` names the record in
    errors. min_side: a JPEG may come out at 1/2, 1/4 or 1/8 of its size, averaged over pixels by
    its decoder, as long as neither side falls below this; default: full size.

    Raises BadRecord with reason missing, unreadable, empty file, not an image (none of JPEG, PNG,
    WebP, GIF, BMP, TIFF and, where Pillow has it, AVIF; zero by zero pixels), too many pixels or
    truncated.
    """
    data = source if isinstance(source, bytes) else read_bytes(source, where)
    if not data:
        raise BadRecord("empty file", where)
    try:
        image = Image.open(BytesIO(data), formats=_formats())
    # Below twice its own limit Pillow only warns; who turns warnings into errors gets the same.
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadRecord("too many pixels", where) from None
    except UnidentifiedImageError:
        raise BadRecord("not an image", where) from None
    except _DAMAGE:
        raise BadRecord("truncated", where) from None
    if image.width * image.height > max_pixels:  # from the header: nothing is decoded yet
        raise BadRecord("too many pixels", where)
    try:
        if min_side is not None and image.format in {"JPEG", "MPO"}:
            image.draft(None, (min_side, min_side))
        image.load()
        return _convert(_upright(image), keep_alpha)
    except _DAMAGE:
        raise BadRecord("truncated", where) from None


@cache
def _formats() -> tuple[str, ...]:
    Image.init()  # loads the readers; those of a format this Pillow lacks are not there
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def read_bytes(path: Path, where: str) -> bytes:
    """A whole file; BadRecord with reason missing or unreadable where that fails."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte in it
        raise BadRecord("missing", where) from None
    except OSError as error:
        raise BadRecord(f"unreadable ({type(error).__name__})", where) from None


def on_white(image: Image.Image) -> Image.Image:
    """RGBA over a white background; RGB out, of the same size."""
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        if image.getexif().get(_EXIF_ORIENTATION, 1) == 1:
            return image  # exif_transpose would copy it
        return ImageOps.exif_transpose(image)
    except _DAMAGE:  # a damaged EXIF block does not spoil the picture: it just is not turned
        return image


def _convert(image: Image.Image, keep_alpha: bool) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = _to_eight_bits(image)
    # "transparency" stands for PNG's and GIF's single transparent colour or palette entry.
    if image.mode in {"RGBA", "RGBa", "LA", "La", "PA"} or "transparency" in image.info:
        image = image.convert("RGBA")
        return image if keep_alpha else on_white(image)
    mode = "RGBA" if keep_alpha else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey pictures of more than 8 bits, scaled: Pillow's own conversion clips them to white."""
    values = np.asarray(image).astype(np.float32)
    peak = float(values.max(initial=0))
    # The mode does not tell the range: "I" may hold 8 or 16 bits, "F" mostly 0..1.
    if image.mode == "F" and peak <= 1:
        values *= 255
    elif image.mode.startswith("I;16") or peak > 255:
        values /= 257
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


def square_rgba(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """An RGBA picture fitted into a transparent square, in proportion; uint8 [4, size, size].

    Resizing runs on premultiplied colour, so that the invisible colour of transparent pixels does
    not bleed into the outline.
    """
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    resized = image.convert("RGBa").resize(
        (width, height),
        Image.Resampling.BICUBIC,
        reducing_gap=2.0,  # large pictures are first averaged over whole pixels: far fewer taps
    )
    square = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    square.paste(resized.convert("RGBA"), ((size - width) // 2, (size - height) // 2))
    pixels: npt.NDArray[np.uint8] = np.asarray(square)
    return np.moveaxis(pixels, 2, 0)


def decode_squares(
    sources: Sequence[tuple[str, Path | bytes]], size: int, skipped: SkipReport
) -> tuple[list[int], Tensor]:
    """Decode images, (name for messages, file) each, into one array, with all cores.

    Returns the positions in `sources` of those that could be decoded and their images, uint8
    [n, 4, size, size]; the others are added to `skipped`.
    """

    def decode(source: tuple[str, Path | bytes]) -> npt.NDArray[np.uint8] | BadRecord:
        where, file = source
        try:
            return square_rgba(open_image(file, where, keep_alpha=True), size)
        except BadRecord as bad:
            return bad

    kept: list[int] = []
    images = torch.empty(len(sources), 4, size, size, dtype=torch.uint8)
    # Threads suffice: Pillow decodes and resizes without holding the interpreter lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for position, result in enumerate(pool.map(decode, sources)):
            if isinstance(result, BadRecord):
                skipped.add(result.reason, result.where)
            else:
                images[len(kept)] = torch.tensor(result)
                kept.append(position)
    return kept, images[: len(kept)]
