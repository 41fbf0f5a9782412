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

from .damaged import Case, bad_cases, good_cases
from .files import encode, halves, jpeg, png_bomb


@pytest.mark.parametrize(
    "case",
    [
        *good_cases(),
        Case("ycbcr.jpg", encode(halves("YCbCr"), "JPEG", quality=95, subsampling=0), halves(), 12),
        Case("rgba.png", encode(halves("RGBA")), halves()),
        Case("palette.png", encode(halves("P")), halves(), 12),
        Case("windows.bmp", encode(halves(), "BMP"), halves()),
    ],
    ids=lambda case: case.name,
)
def test_every_image_becomes_upright_rgb_on_white(case: Case) -> None:
    image = open_image(case.data, "x")
    assert image.mode == "RGB"
    assert isinstance(case.expected, Image.Image)
    assert image.size == case.expected.size
    difference = np.subtract(image, case.expected, dtype=int)
    assert np.abs(difference).max() <= case.tolerance


def test_transparency_is_kept_on_request() -> None:
    image = halves("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 20, 20))
    kept = open_image(encode(image), "x", keep_alpha=True)
    assert kept.mode == "RGBA"
    assert kept.getpixel((3, 10))[3] == 0  # type: ignore[index]


@pytest.mark.parametrize(
    "ramp",
    [
        np.array([[0, 128 * 257, 255 * 257]], np.uint16),
        np.array([[0, 0.5, 1]], np.float32),
        np.array([[np.nan, 0.5, 1]], np.float32),  # no data in this pixel
    ],
)
def test_tiff_of_more_than_eight_bits_is_scaled_not_clipped(ramp: np.ndarray) -> None:
    image = open_image(encode(Image.fromarray(ramp), "TIFF"), "x")
    assert [image.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "case",
    [
        *bad_cases(),
        Case("overwritten.png", encode(halves())[:40] + b"\0" * 60, "not an image"),
        Case("small_bomb.png", png_bomb(10_000), "too many pixels"),  # below Pillow's own limit
    ],
    ids=lambda case: case.name,
)
def test_each_kind_of_damage_has_its_reason(case: Case) -> None:
    with pytest.raises(BadRecord) as caught:
        open_image(case.data, "some/name.jpg")
    assert caught.value.reason == case.expected
    assert str(caught.value) == f"some/name.jpg: {case.expected}"


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
