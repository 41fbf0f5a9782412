"""From the bytes of a file to an RGB (or RGBA) image: one policy for every dataset."""

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

from .._files import NotRegularFileError, regular_size
from .skips import BadRecord, SkipReport

# 67 megapixels: more than cameras deliver and any image on the web needs, far below what exhausts
# memory (a 200-megapixel PNG of one colour is a few hundred kilobytes on disk).
MAX_PIXELS = 2**26
MAX_BYTES = 2**29  # such an image in 16-bit RGB, uncompressed

# Suffixes of names; the format is decided by a file's first bytes.
# Those of formats that cannot be decoded are among them, so that such files are counted.
IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
        *(".avif", ".heic", ".heif", ".jp2", ".jxl", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"),
    }
)

_EXIF_ORIENTATION = 0x0112

# Pillow reads dozens of formats, some of them little tested, and EPS by starting Ghostscript. The
# image formats of the web are enough. JPEG includes MPO, several images in one file.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

# The errors of Pillow's decoders on damaged data: SyntaxError comes from the PNG reader,
# RuntimeError from that of AVIF.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, RuntimeError),
    *(struct.error, zlib.error),
)


def open_image(
    source: Path | bytes, where: str, *, keep_alpha: bool = False, min_side: int | None = None
) -> Image.Image:
    """Decode an image completely and convert it to RGB, or RGBA with keep_alpha.

    Rotation and mirroring stored as EXIF orientation are applied; palettes, grey, CMYK and 16-bit
    images are converted; transparency is composited onto white unless it is kept; only the first
    frame of an animation is used; gamma and colour profiles are ignored. `where` names the record
    in errors. min_side: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, averaged over pixels
    by its decoder, as long as neither side falls below this; default: full size.

    Raises BadRecord as read_bytes, and with reason empty file, not an image (none of JPEG, PNG,
    WebP, GIF, BMP, TIFF and, if Pillow supports it, AVIF; zero by zero pixels), too many pixels,
    truncated or out of memory.
    """
    data = source if isinstance(source, bytes) else read_bytes(source, where)
    if not data:
        raise BadRecord("empty file", where)
    try:
        image = Image.open(BytesIO(data), formats=_formats())
        if image.width * image.height > MAX_PIXELS:  # from the header: nothing is decoded yet
            raise BadRecord("too many pixels", where)
        if min_side is not None and image.format in {"JPEG", "MPO"}:
            image.draft(None, (min_side, min_side))
        image.load()
        return _convert(_upright(image), keep_alpha)
    # Below twice its own limit Pillow only warns, which a filter may turn into an error.
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadRecord("too many pixels", where) from None
    except UnidentifiedImageError:
        raise BadRecord("not an image", where) from None
    except MemoryError:
        raise BadRecord("out of memory", where) from None
    except _DAMAGE:
        raise BadRecord("truncated", where) from None


@cache
def _formats() -> tuple[str, ...]:
    Image.init()  # loads the readers; this Pillow may lack some
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def read_bytes(path: Path, where: str) -> bytes:
    """Read a whole file.

    Raises BadRecord with reason missing, not a regular file (a folder, FIFO or device), too large
    (over MAX_BYTES), unreadable or out of memory.
    """
    try:
        if regular_size(path) > MAX_BYTES:
            raise BadRecord("too large", where)
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte in it
        raise BadRecord("missing", where) from None
    except NotRegularFileError:
        raise BadRecord("not a regular file", where) from None
    except OSError as error:
        raise BadRecord(f"unreadable ({type(error).__name__})", where) from None
    except MemoryError:
        raise BadRecord("out of memory", where) from None


def on_white(image: Image.Image) -> Image.Image:
    """Composite RGBA onto a white background; return RGB of the same size."""
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        if image.getexif().get(_EXIF_ORIENTATION, 1) == 1:
            return image  # exif_transpose would copy it
        return ImageOps.exif_transpose(image)
    except _DAMAGE:  # an image with a damaged EXIF block is used, but not rotated
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
    """Scale grey images of more than 8 bits; Pillow's own conversion clips them to white."""
    values = np.nan_to_num(np.asarray(image).astype(np.float32))  # NaN: black
    peak = float(values.max(initial=0))
    # The mode does not give the range: "I" may hold 8 or 16 bits, "F" mostly 0..1.
    if image.mode == "F" and peak <= 1:
        values *= 255
    elif image.mode.startswith("I;16") or peak > 255:
        values /= 257
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


def square_rgba(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """Fit an RGBA image into a transparent square, in proportion; uint8 [4, size, size].

    Resizing runs on premultiplied colour, so that the invisible colour of transparent pixels does
    not bleed into the outline.
    """
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    resized = image.convert("RGBa").resize(
        (width, height),
        Image.Resampling.BICUBIC,
        reducing_gap=2.0,  # averages whole pixels of large images first: far fewer taps
    )
    square = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    square.paste(resized.convert("RGBA"), ((size - width) // 2, (size - height) // 2))
    pixels: npt.NDArray[np.uint8] = np.asarray(square)
    return np.moveaxis(pixels, 2, 0)


def decode_squares(
    sources: Sequence[tuple[str, Path | bytes]], size: int, skipped: SkipReport
) -> tuple[list[int], Tensor]:
    """Decode (name, file) pairs into one array of images, on all cores.

    Returns the positions in `sources` of those that could be decoded and their images, uint8
    [n, 4, size, size]; the others are added to `skipped`.
    """

    def decode(source: tuple[str, Path | bytes]) -> npt.NDArray[np.uint8] | BadRecord:
        where, file = source
        try:
            return square_rgba(open_image(file, where, keep_alpha=True), size)
        except BadRecord as bad:
            return bad

    decoded: list[int] = []
    images = torch.empty(len(sources), 4, size, size, dtype=torch.uint8)
    # Threads suffice, because Pillow decodes and resizes without the interpreter lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for position, result in enumerate(pool.map(decode, sources)):
            if isinstance(result, BadRecord):
                skipped.add(result.reason, result.where)
            else:
                images[len(decoded)] = torch.tensor(result)
                decoded.append(position)
    return decoded, images[: len(decoded)]
