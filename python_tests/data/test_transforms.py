"""Augmentation and rendering of RGBA tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cyclip_ext._normalization import MEAN, STD
from cyclip_ext.data.loader import _STILL
from cyclip_ext.data.seeding import uniforms
from cyclip_ext.data.transforms import (
    CROP_DRAWS,
    CROP_SIDE,
    Augment,
    as_input,
    crop_box,
    file_transform,
    random_crop,
    render,
)


def raw(images: torch.Tensor) -> torch.Tensor:
    """Undo the normalization."""
    return images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]


def disc(size: int = 32) -> torch.Tensor:
    """Return an orange disc in the middle of invisible green."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    inside = ((x - (size - 1) / 2) ** 2 + (y - (size - 1) / 2) ** 2) < (size / 4) ** 2
    image = torch.tensor([0, 255, 0, 0], dtype=torch.uint8)[:, None, None].repeat(1, size, size)
    image[:, inside] = torch.tensor([255, 128, 0, 255], dtype=torch.uint8)[:, None]
    return image


def test_render_shows_the_image_on_white() -> None:
    out = raw(render(disc()[None], 32))[0]
    assert out.shape == (3, 32, 32)
    assert torch.allclose(out[:, 0, 0], torch.ones(3), atol=1e-5)
    assert torch.allclose(out[:, 16, 16], torch.tensor([1, 128 / 255, 0]), atol=1e-5)


@pytest.mark.parametrize("size", [16, 24, 32, 48])
def test_resizing_leaves_no_fringe(size: int) -> None:
    out = raw(render(disc()[None], size))[0]
    # Every pixel lies between orange and white: red stays full, invisible green never shows.
    assert out[0].min() > 0.999
    assert (out[1] >= 128 / 255 - 1e-4).all()


def test_augment_without_changes_equals_render() -> None:
    still = _STILL(disc()[None], 32, torch.rand(1, Augment.DRAWS))
    assert torch.allclose(still, render(disc()[None], 32), atol=1e-5)


def test_shift_moves_by_the_stated_share() -> None:
    random = torch.full((1, Augment.DRAWS), 0.5)
    random[0, 2] = 1.0  # all the way in x
    moved = raw(replace(_STILL, shift=0.25)(disc()[None], 32, random))[0]
    centre = raw(render(disc()[None], 32))[0]
    assert torch.allclose(moved[:, :, :24], centre[:, :, 8:], atol=1e-4)


def test_scale_makes_the_drawing_smaller() -> None:
    def covered(scale: float) -> float:
        view = replace(_STILL, scale=(scale, scale))
        out = raw(view(disc()[None], 32, torch.rand(1, Augment.DRAWS)))[0]
        return float((out[2] < 0.5).float().mean())

    assert covered(0.5) / covered(1.0) == pytest.approx(0.25, rel=0.15)


def test_rotation_by_a_right_angle() -> None:
    image = disc()
    image[:, :16] = 0  # lower half only
    random = torch.full((1, Augment.DRAWS), 0.5)
    random[0, 1] = 1.0
    turned = replace(_STILL, rotation=90)(image[None], 32, random)
    upright = render(image[None], 32)
    expected = {k: torch.rot90(upright, k, (2, 3)) for k in (1, -1)}
    assert any(torch.allclose(turned, e, atol=1e-4) for e in expected.values())


def test_stretch_keeps_the_area() -> None:
    random = torch.full((1, Augment.DRAWS), 0.5)
    random[0, 9] = 1.0

    def extent(view: Augment) -> tuple[int, int]:
        dark = raw(view(disc()[None], 32, random))[0, 2] < 0.5
        return int(dark.any(0).sum()), int(dark.any(1).sum())

    assert extent(_STILL) == (16, 16)
    assert extent(replace(_STILL, stretch=1.25)) == (20, 12)  # width, height


def test_contrast_is_about_the_middle_grey() -> None:
    random = torch.full((1, Augment.DRAWS), 0.5)
    random[0, 10] = 0.0  # contrast down
    out = raw(replace(_STILL, contrast=2)(disc()[None], 32, random))[0]
    assert torch.allclose(out[:, 0, 0], torch.full((3,), 0.75), atol=1e-5)
    assert torch.allclose(out[:, 16, 16], torch.tensor([0.75, 0.25 + 64 / 255, 0.25]), atol=1e-5)


def test_background_and_brightness_stay_in_range() -> None:
    images = disc()[None].repeat(200, 1, 1, 1)
    out = raw(Augment()(images, 24, torch.rand(200, Augment.DRAWS)))
    assert out.min() >= -1e-5
    assert out.max() <= 1 + 1e-5
    corners = out[:, :, 0, 0]
    assert corners.std(0).min() > 0.1  # backgrounds differ
    assert out.is_contiguous()


def test_augment_and_render_do_not_change_their_input() -> None:
    images = disc()[None]
    before = images.clone()
    Augment()(images, 24, torch.rand(1, Augment.DRAWS))
    render(images, 24)
    assert torch.equal(images, before)


def noise(shape: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (*shape[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def open_clip_transform() -> Callable[..., Any]:
    open_clip = pytest.importorskip("open_clip", exc_type=Exception)  # or a broken torchvision
    return partial(open_clip.image_transform, mean=MEAN, std=STD)


@pytest.mark.parametrize("size", [48, 63, 224])
@pytest.mark.parametrize("shape", [(80, 64), (48, 48), (300, 200), (20, 1000), (1, 1), (65, 130)])
def test_file_transform_equals_open_clip(
    open_clip_transform: Callable[..., Any], shape: tuple[int, int], size: int
) -> None:
    image = noise(shape)
    theirs = open_clip_transform(size, is_train=False)(image)
    assert torch.equal(file_transform(size)(image), theirs)


@pytest.mark.parametrize("shape", [(80, 64), (48, 48), (300, 200), (20, 1000), (1, 1), (1, 10_000)])
def test_random_crop_equals_open_clip(
    open_clip_transform: Callable[..., Any], shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the same box, the pixels are equal to the bit after resampling and normalization."""
    steps = open_clip_transform(48, is_train=True).transforms
    image = noise(shape)
    for row in uniforms(0, 0, torch.arange(20), CROP_DRAWS).tolist():
        left, top, right, bottom = crop_box(*shape, row)
        box = (top, left, bottom - top, right - left)
        monkeypatch.setattr(steps[0], "get_params", lambda *_, box=box: box)
        theirs = image
        for step in steps:
            theirs = step(theirs)
        ours = as_input(torch.from_numpy(random_crop(image, 48, row)[None].copy()))[0]
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", [(80, 64), (64, 64), (64, 72), (100, 300)])
def test_random_crop_has_the_distribution_of_torchvision(
    open_clip_transform: Callable[..., Any], shape: tuple[int, int]
) -> None:
    crop = open_clip_transform(48, is_train=True).transforms[0]
    count = 4000
    ours = np.array(
        [crop_box(*shape, row) for row in uniforms(1, 0, torch.arange(count), CROP_DRAWS).tolist()]
    )
    torch.manual_seed(0)
    image = Image.new("RGB", shape)
    rows = [crop.get_params(image, crop.scale, crop.ratio) for _ in range(count)]
    theirs = np.array([(j, i, j + w, i + h) for i, j, h, w in rows])
    for one, two in (
        *zip(ours.T, theirs.T, strict=True),
        (ours[:, 2] - ours[:, 0], theirs[:, 2] - theirs[:, 0]),
        (ours[:, 3] - ours[:, 1], theirs[:, 3] - theirs[:, 1]),
    ):
        values = np.unique(np.concatenate([one, two]))
        steps = [np.searchsorted(np.sort(x), values, side="right") / count for x in (one, two)]
        assert np.abs(steps[0] - steps[1]).max() < 1.63 * (2 / count) ** 0.5  # KS, 1 in 100


@pytest.mark.parametrize("shape", [(80, 64), (64, 85), (500, 500), (10, 100), (3, 1)])
def test_crops_lie_inside_and_are_as_large_as_stated(shape: tuple[int, int]) -> None:
    """The loader decodes JPEGs at the resolution that CROP_SIDE allows."""
    for row in uniforms(2, 0, torch.arange(500), CROP_DRAWS).tolist():
        left, top, right, bottom = crop_box(*shape, row)
        assert 0 <= left < right <= shape[0]
        assert 0 <= top < bottom <= shape[1]
        assert min(right - left, bottom - top) >= int(CROP_SIDE * min(shape))
