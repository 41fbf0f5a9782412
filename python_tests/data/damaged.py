"""Images of unusual formats and damaged ones, and a dataset of them in every format."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from .files import encode, halves, jpeg, png_bomb, write_tar

WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Case:
    """A file, and the image that it must give within a tolerance, or the reason why it cannot."""

    name: str
    data: bytes
    expected: Image.Image | str
    tolerance: int = 0


def good_cases() -> list[Case]:
    """Return intact images of unusual formats."""
    plain = halves()
    clear = halves("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 20, 20))
    on_white = plain.copy()
    on_white.paste(WHITE, (0, 0, 20, 20))
    grey = halves("L")
    ramp = np.arange(256, dtype=np.uint16)[None].repeat(4, 0)
    turned = Image.Exif()
    turned[0x0112] = 6  # stored lying on its side
    clear_grey = Image.new("LA", (30, 30), (100, 255))
    clear_grey.paste((0, 0), (0, 0, 30, 10))
    grey_on_white = Image.new("RGB", (30, 30), (100, 100, 100))
    grey_on_white.paste(WHITE, (0, 0, 30, 10))
    palette = halves("P")
    exact = {"quality": 95, "subsampling": 0}
    frames = [halves(), Image.new("RGB", (40, 20), "green")]
    png = encode(plain)
    return [
        Case("plain.png", png, plain),
        Case("cmyk.jpg", encode(halves("CMYK"), "JPEG", **exact), plain, 12),
        Case("clear.png", encode(clear), on_white),
        Case("palette.png", encode(palette, transparency=palette.getpixel((0, 0))), on_white, 12),
        Case(
            "sixteen.png",
            encode(Image.fromarray(ramp * 257)),
            Image.fromarray(ramp.astype(np.uint8)).convert("RGB"),
        ),
        Case(
            "exif.jpg",
            encode(plain, "JPEG", exif=turned, **exact),
            plain.transpose(Image.Transpose.ROTATE_270),
            12,
        ),
        Case(
            "animated.gif",
            encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
            plain,
            12,
        ),
        Case("dot.png", encode(Image.new("RGB", (1, 1), "red")), Image.new("RGB", (1, 1), "red")),
        Case(
            "line.png",
            encode(Image.new("RGB", (1, 10_000), "red")),
            Image.new("RGB", (1, 10_000), "red"),
        ),
        Case("grey.jpg", encode(grey, "JPEG", quality=95), grey.convert("RGB"), 12),
        Case("gamma.png", with_gamma(png), plain),
        Case("grey_alpha.png", encode(clear_grey), grey_on_white),
        Case("web.webp", encode(plain, "WEBP", lossless=True), plain),
        Case("named_wrongly.jpg", png, plain),
        Case("progressive.jpg", encode(plain, "JPEG", progressive=True, **exact), plain, 12),
    ]


def bad_cases() -> list[Case]:
    """Return files that cannot be decoded."""
    whole = jpeg()
    progressive = encode(Image.open(BytesIO(whole)), "JPEG", progressive=True)
    return [
        Case("half.jpg", whole[: len(whole) // 2], "truncated"),
        Case("tail.jpg", progressive[: -len(progressive) // 4], "truncated"),
        Case("tail.png", encode(halves())[:-30], "truncated"),
        Case("empty.jpg", b"", "empty file"),
        Case("zeros.jpg", b"\0" * 5000, "not an image"),
        Case("page.jpg", b"<!DOCTYPE html><html>404 Not Found</html>", "not an image"),
        Case("bomb.png", png_bomb(), "too many pixels"),
        Case("flat.png", png_bomb(0), "not an image"),
    ]


def with_gamma(png: bytes) -> bytes:
    """Return the PNG with a gAMA chunk of 1.0, which a viewer would show darker."""
    body = b"gAMA" + struct.pack(">I", 100_000)
    after_header = 8 + 25
    chunk = struct.pack(">I", 4) + body + struct.pack(">I", zlib.crc32(body))
    return png[:after_header] + chunk + png[after_header:]


@dataclass(frozen=True)
class Source:
    """A dataset of all cases: how to open it, and the counts of its bad records."""

    path: str
    arguments: dict[str, str]
    counts: Counter[str]


def _counts(*extra: str) -> Counter[str]:
    return Counter([*(str(case.expected) for case in bad_cases()), *extra])


def caption(case: Case) -> str:
    """Return a caption that occurs once, so that tests notice exchanged captions."""
    return f"the image {case.name}"


def folder(path: Path) -> Source:
    """img2dataset's "files": images in subfolders with captions beside them."""
    for number, case in enumerate(good_cases() + bad_cases()):
        place = path / f"{number % 2:05d}" / case.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(case.data)
        # animated.gif.txt would be another stem: one caption per name without suffix
        place = place.rename(place.with_name(f"{number}_{case.name}"))
        place.with_suffix(".txt").write_text(caption(case))
    good = encode(halves())
    for name, text in (("no_text", None), ("latin", b"caf\xe9"), ("blank", b" \n")):
        (path / f"{name}.png").write_bytes(good)
        if text is not None:
            (path / f"{name}.txt").write_bytes(text)
    (path / "no_image.txt").write_text("alone")
    (path / "00000_stats.json").write_text("{}")
    counts = _counts("no caption file", "no image file", "bad encoding", "empty caption")
    return Source(str(path), {}, counts)


def csv(path: Path) -> Source:
    """CyCLIP's table, with a byte order mark, Windows line ends and quotes."""
    lines = [b"image,caption"]
    for case in good_cases() + bad_cases():
        (path / case.name).write_bytes(case.data)
        lines.append(f'{case.name},"{caption(case)}"'.encode())
    lines += [b"plain.png\xff,x", b"gone.png,missing", b"a.png,caf\xe9", b'a.png," "']
    (path / "table.csv").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines) + b"\r\n")
    # A name that is not UTF-8 is a name all the same: of a file that is not there.
    counts = _counts("missing", "missing", "bad encoding", "empty caption")
    return Source(str(path / "table.csv"), {}, counts)


def google(path: Path) -> Source:
    """Google's table with the downloads by row number."""
    rows = []
    for number, case in enumerate(good_cases() + bad_cases()):
        (path / f"{number}{Path(case.name).suffix}").write_bytes(case.data)
        rows.append(f"{caption(case)}\thttp://host/{number}".encode())
    rows += [b"never fetched\thttp://host/x", b"caf\xe9\thttp://host/y", b" \thttp://host/z", b"w"]
    (path / "table.tsv").write_bytes(b"\n".join(rows) + b"\n")
    counts = _counts("not downloaded", "bad encoding", "empty caption", "not two columns")
    return Source(str(path / "table.tsv"), {"images": str(path)}, counts)


def tar(path: Path) -> Source:
    """Two shards; the second is cut off inside its last image."""
    members = []
    for number, case in enumerate(good_cases() + bad_cases()):
        members.append((f"{number:05d}{Path(case.name).suffix}", case.data))
        members.append((f"{number:05d}.txt", caption(case).encode()))
    png = encode(halves())
    members += [("a.png", png), ("b.txt", b"alone")]
    members += [("c.png", png), ("c.txt", b"caf\xe9"), ("d.png", png), ("d.txt", b" \n")]
    members += [("e.png", png), ("e.json", b"{broken")]
    write_tar(path / "0.tar", members)
    last = write_tar(path / "1.tar", [("f.txt", b"first"), ("f.png", png), ("g.jpg", jpeg())])
    last.write_bytes(last.read_bytes()[: 512 * 4 + len(png) // 512 * 512 + 1024])
    counts = _counts(
        *("no caption file", "no image file", "bad encoding", "empty caption"),
        *("broken metadata", "broken tar"),
    )
    return Source(str(path), {}, counts)


SOURCES: dict[str, Callable[[Path], Source]] = {
    "folder": folder,
    "csv": csv,
    "google": google,
    "tar": tar,
}
