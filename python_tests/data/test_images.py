"""The decoding policy: every image becomes upright 8-bit RGB, or has a counted reason."""

from __future__ import annotations

import contextlib
import os
import subprocess
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from cyclip_ext.data.images import open_image, square_rgba
from cyclip_ext.data.skips import BadRecord

from .files import BLUE, RED, encode, halves, jpeg, png_bomb


def near(pixel: object, expected: tuple[int, ...], tolerance: int = 12) -> bool:
    return bool(np.abs(np.subtract(pixel, expected)).max() <= tolerance)  # type: ignore[call-overload]


def ends(image: Image.Image) -> tuple[object, object]:
    middle = image.height // 2
    return image.getpixel((3, middle)), image.getpixel((image.width - 4, middle))


@pytest.mark.parametrize(
    "data",
    [
        encode(halves()),
        encode(halves("P")),
        encode(halves("RGBA")),
        encode(halves("CMYK"), "JPEG", quality=95, subsampling=0),
        encode(halves("YCbCr"), "JPEG", quality=95, subsampling=0),
        encode(halves(), "GIF"),
        encode(halves(), "WEBP", lossless=True),
        encode(halves(), "BMP"),
    ],
    ids=["rgb", "palette", "rgba", "cmyk", "jpeg", "gif", "webp", "bmp"],
)
def test_every_mode_becomes_the_same_rgb(data: bytes) -> None:
    image = open_image(data, "x")
    assert image.mode == "RGB"
    left, right = ends(image)
    assert near(left, RED)
    assert near(right, BLUE)


def test_transparency_is_composited_onto_white_unless_kept() -> None:
    image = halves("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 20, 20))  # black, but invisible: naive conversion shows black
    left, right = ends(open_image(encode(image), "x"))
    assert left == (255, 255, 255)
    assert right == BLUE
    kept = open_image(encode(image), "x", keep_alpha=True)
    assert kept.mode == "RGBA"
    assert kept.getpixel((3, 10))[3] == 0  # type: ignore[index]


def test_a_transparent_palette_entry_becomes_white() -> None:
    image = halves("P")
    left, right = ends(open_image(encode(image, transparency=image.getpixel((0, 0))), "x"))
    assert left == (255, 255, 255)
    assert near(right, BLUE)


def test_grey_with_alpha() -> None:
    image = Image.new("LA", (8, 8), (100, 255))
    image.putpixel((0, 0), (0, 0))
    opened = open_image(encode(image), "x")
    assert opened.getpixel((0, 0)) == (255, 255, 255)
    assert opened.getpixel((4, 4)) == (100, 100, 100)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(format: str) -> None:
    ramp = np.array([[0, 128 * 257, 255 * 257]], dtype=np.uint16)
    image = open_image(encode(Image.fromarray(ramp), format), "x")
    assert [image.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]


def test_float_tiff_of_zero_to_one() -> None:
    image = open_image(encode(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)), "TIFF"), "x")
    assert [image.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]  # type: ignore[index]


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: turn by 90 degrees clockwise to show
    image = open_image(encode(halves(), "JPEG", exif=exif, quality=95, subsampling=0), "x")
    assert image.size == (20, 40)
    assert near(image.getpixel((10, 3)), RED)
    assert near(image.getpixel((10, 36)), BLUE)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html>404</html>", "not an image"),
        (jpeg()[: len(jpeg()) // 2], "truncated"),
        (encode(halves())[:-30], "truncated"),
        (encode(halves())[:40] + b"\0" * 60, "not an image"),
        (png_bomb(), "too many pixels"),
        (png_bomb(10_000), "too many pixels"),  # below Pillow's own limit
        (b"\0" * 5000, "not an image"),
    ],
    ids=["empty", "html", "half", "tail", "overwritten", "bomb", "small bomb", "zeros"],
)
def test_each_kind_of_damage_has_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadRecord) as caught:
        open_image(data, "some/name.jpg")
    assert caught.value.reason == reason
    assert str(caught.value) == f"some/name.jpg: {reason}"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.jpg", "missing"),
        ("a.png/b.jpg", "missing"),
        ("nul\0.jpg", "missing"),
        ("x" * 300, "unreadable (OSError)"),
        ("folder", "not a regular file"),
        ("pipe", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        ("huge.jpg", "too large"),
    ],
)
def test_a_path_that_is_not_an_image_file_is_a_reason(
    tmp_path: Path, name: str, reason: str
) -> None:
    """A FIFO would never end, and /dev/zero or a sparse file of 30 GB would fill the memory."""
    (tmp_path / "a.png").write_bytes(encode(halves()))
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(30 * 2**30)
    with pytest.raises(BadRecord) as caught:
        open_image(tmp_path / name, name)
    assert caught.value.reason == reason


@pytest.mark.parametrize("step", ["open", "load", "read"])
def test_running_out_of_memory_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError

    (tmp_path / "a.png").write_bytes(encode(halves()))
    target = {"open": (Image, "open"), "load": (ImageFile.ImageFile, "load")}
    monkeypatch.setattr(*target.get(step, (Path, "read_bytes")), fail)
    with pytest.raises(BadRecord, match="out of memory"):
        open_image(tmp_path / "a.png", "a.png")


@pytest.mark.filterwarnings("ignore:Truncated File Read", "ignore:Corrupt EXIF")
def test_every_prefix_of_a_file_is_an_image_or_a_bad_record() -> None:
    for whole in (jpeg(), encode(halves("P")), encode(halves(), "GIF"), encode(halves(), "TIFF")):
        for cut in range(0, len(whole), max(1, len(whole) // 60)):
            with contextlib.suppress(BadRecord):
                open_image(whole[:cut], "x")


def test_square_keeps_proportions_and_clean_edges() -> None:
    pixels = square_rgba(halves("RGBA"), 16)
    assert pixels.shape == (4, 16, 16)
    assert pixels.dtype == np.uint8
    assert (pixels[3, :4] == 0).all()  # 2:1 image: transparent above and below
    assert (pixels[3, 5:11] == 255).all()
    # Invisible pixels are often stored as black or green: none of it may show at the edge.
    ring = Image.new("RGBA", (64, 64), (0, 255, 0, 0))
    ring.paste((255, 0, 0, 255), (16, 16, 48, 48))
    small = square_rgba(ring, 24)
    visible = small[3] > 32
    assert small[1][visible].max() <= 8


def test_bytes_and_path_agree(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(halves()))
    one = open_image(tmp_path / "a.png", "a")
    two = open_image(encode(halves()), "a")
    assert one.tobytes() == two.tobytes()


def photo(width: int, height: int) -> Image.Image:
    """Return a smooth image, like a photograph: waves of several lengths and directions."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = [np.sin(40 * x + 9 * y), np.sin(11 * x - 50 * y), np.sin(30 * (x * x + y))]
    return Image.fromarray((127.5 + 120 * np.stack(waves, axis=-1)).astype(np.uint8))


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_reduced_decoding_shows_the_same_image(options: dict[str, bool]) -> None:
    """Decoding below the size that is needed, or another image, would spoil training unseen."""
    data = encode(photo(1000, 700), "JPEG", quality=95, **options)
    full = open_image(data, "x")
    reduced = open_image(data, "x", min_side=107)
    assert reduced.size == (250, 175)  # a quarter: an eighth would have 88 rows
    one, two = (
        np.asarray(image.resize((48, 48), Image.Resampling.BICUBIC), dtype=np.float64)
        for image in (full, reduced)
    )
    assert np.abs(one - two).mean() < 1
    assert open_image(data, "x", min_side=701).size == full.size
    png = encode(halves(size=(400, 400)))
    assert open_image(png, "x", min_side=10).size == (400, 400)


def test_reduced_decoding_finds_the_same_damage() -> None:
    for options in ({}, {"progressive": True}):
        data = encode(photo(400, 400), "JPEG", **options)
        for cut in range(len(data) // 2, len(data) - 2, len(data) // 40):
            with pytest.raises(BadRecord, match="truncated"):
                open_image(data[:cut], "x", min_side=50)


def test_formats_that_the_web_does_not_serve_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would run Ghostscript on PostScript from the web that is named x.jpg."""

    def started(*arguments: object, **options: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", started)
    for format in ("EPS", "PPM", "TGA", "ICNS"):
        with pytest.raises(BadRecord, match="not an image"):
            open_image(encode(halves(size=(64, 64)), format), "x.jpg")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_damaged_avif_is_a_reason() -> None:
    """Its decoder raises RuntimeError, which would end the run."""
    whole = encode(photo(200, 150), "AVIF")
    assert open_image(whole, "x").size == (200, 150)
    noise = np.random.default_rng(0)
    reasons = set()
    for _ in range(200):
        data = bytearray(whole)
        start = int(noise.integers(len(data)))
        data[start : start + 40] = noise.bytes(len(data[start : start + 40]))
        try:
            open_image(bytes(data), "x")
        except BadRecord as bad:
            reasons.add(bad.reason)
    assert "truncated" in reasons


def test_the_first_of_several_images_in_a_jpeg_is_reduced_too() -> None:
    """Phones write MPO: decoding it whole takes several times as long."""
    more = [photo(400, 280)]
    data = encode(photo(1000, 700), "MPO", save_all=True, append_images=more, quality=95)
    assert Image.open(BytesIO(data)).format == "MPO"
    full = open_image(data, "x")
    reduced = open_image(data, "x", min_side=107)
    assert (full.size, reduced.size) == ((1000, 700), (250, 175))
    small = [np.asarray(image.resize((48, 48)), dtype=np.float64) for image in (full, reduced)]
    assert np.abs(small[0] - small[1]).mean() < 2
