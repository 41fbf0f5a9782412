"""Transforms from images to a model's float tensors, for batches in memory and single files."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from .._normalization import MEAN, STD


@dataclass(frozen=True)
class Augment:
    """Random view of small images with transparency, drawn per image and epoch.

    shift: up to this share of the width, both ways. scale: range of the drawing's size, 1 = as is,
    uniform in the logarithm. stretch: up to this factor wider or narrower, at the same area.
    rotation: up to this many degrees, both ways. background: share of images put on a random
    colour rather than white. contrast: up to this factor up or down. brightness: added to all
    channels, up to this much of the full range, both ways.
    Images are not mirrored, because that changes the meaning of arrows and letters.

    The defaults were chosen on the validation vendor of the emoji set (docs/results.md).
    """

    shift: float = 0.075
    scale: tuple[float, float] = (0.78, 1.28)
    stretch: float = 1.12
    rotation: float = 17.0
    background: float = 0.5
    contrast: float = 1.35
    brightness: float = 0.15

    DRAWS = 11  # columns of `random` in __call__

    def __call__(self, images: Tensor, image_size: int, random: Tensor) -> Tensor:
        """Return augmented, normalized images.

        images: uint8 [n, 4, s, s], RGBA with straight alpha. random: float32 [n, DRAWS] in [0, 1).
        Returns float32 [n, 3, image_size, image_size]. Each image depends on its own row alone.
        """
        signed = random * 2 - 1
        low, high = self.scale
        zoom = 1 / (low * (high / low) ** random[:, 0])
        angle = signed[:, 1] * (self.rotation * torch.pi / 180)
        grid = _grid(
            zoom * angle.cos(),
            zoom * angle.sin(),
            self.stretch ** signed[:, 9],
            signed[:, 2:4] * (2 * self.shift),
            image_size,
        )
        layers = grid_sample(_premultiplied(images), grid, align_corners=False)
        colour = torch.where(random[:, 4:5] < self.background, random[:, 5:8], torch.ones(()))
        rgb = _over(layers, colour)
        contrast = (self.contrast ** signed[:, 10])[:, None, None, None]
        brightness = (self.brightness * signed[:, 8])[:, None, None, None]
        return _normalized(rgb.sub_(0.5).mul_(contrast).add_(brightness + 0.5).clamp_(0, 1))


def render(images: Tensor, image_size: int) -> Tensor:
    """Return images as evaluation shows them: on white, resized, normalized, nothing random.

    uint8 [n, 4, s, s] RGBA with straight alpha -> float32 [n, 3, image_size, image_size].
    """
    layers = _premultiplied(images)
    if images.shape[-1] != image_size:
        layers = interpolate(layers, size=(image_size, image_size), mode="bilinear", antialias=True)
    return _normalized(_over(layers, torch.ones(len(images), 3)).clamp_(0, 1))


# From open_clip's training transform; the number of attempts is torchvision's.
_CROP_AREA = (0.9, 1.0)
_CROP_RATIO = (3 / 4, 4 / 3)
_CROP_ATTEMPTS = 10
CROP_DRAWS = 4 * _CROP_ATTEMPTS  # random numbers in [0, 1) that crop_box takes

# Both sides of a random crop are at least this share of the image's shorter side, to the pixel: if
# one side of the crop is that of the image, the other is 0.9 of it or more.
CROP_SIDE = 0.9


def crop_box(width: int, height: int, draws: list[float]) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of a random crop, as torchvision's RandomResizedCrop.

    Area 0.9 to 1 of the image, uniform; ratio of the sides 3/4 to 4/3, uniform in the logarithm;
    position uniform. If none of 10 attempts fits, the largest centred crop of such a ratio. draws:
    CROP_DRAWS numbers from [0, 1).

    Source: open_clip's image_transform(is_train=True) and torchvision's get_params, which draws
    from torch's global generator. Seeding and restoring that for every sample would take half the
    time of a small image.
    """
    low, high = math.log(_CROP_RATIO[0]), math.log(_CROP_RATIO[1])
    for attempt in range(0, CROP_DRAWS, 4):
        area = width * height * (_CROP_AREA[0] + (_CROP_AREA[1] - _CROP_AREA[0]) * draws[attempt])
        ratio = math.exp(low + (high - low) * draws[attempt + 1])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(draws[attempt + 2] * (width - w + 1))
            top = int(draws[attempt + 3] * (height - h + 1))
            return left, top, left + w, top + h
    w = min(width, round(height * _CROP_RATIO[1]))
    h = min(height, round(width / _CROP_RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def random_crop(image: Image.Image, size: int, draws: list[float]) -> npt.NDArray[np.uint8]:
    """Return a random crop of an RGB image, resized by bicubic; uint8 [3, size, size]."""
    resized = image.crop(crop_box(*image.size, draws)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    pixels: npt.NDArray[np.uint8] = np.asarray(resized).transpose(2, 0, 1)
    return pixels


def as_input(images: Tensor) -> Tensor:
    """Convert the images of a batch to a model's input, on their device.

    uint8 [n, 3, s, s] -> float32, as torchvision's ToTensor and Normalize. Floats are returned as
    they are.
    """
    return _normalized(images.float().div_(255)) if images.dtype == torch.uint8 else images


def file_transform(image_size: int) -> Callable[[Image.Image], Tensor]:
    """Return the transform of RGB images for evaluation, the same to the bit as open_clip's.

    Resizes the shorter side by bicubic and crops the centre. The function returned maps an image to
    float32 [3, image_size, image_size], normalized as `render`.
    """
    return partial(_centre_crop, image_size)


def _centre_crop(size: int, image: Image.Image) -> Tensor:
    shorter = min(image.size)
    width, height = (int(size * side / shorter) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    pixels = np.array(resized.crop((left, top, left + size, top + size)))
    return as_input(torch.from_numpy(pixels).permute(2, 0, 1).contiguous()[None])[0]


def _premultiplied(images: Tensor) -> Tensor:
    """Convert uint8 RGBA to float32 in [0, 1], colour times alpha, so that pixels average."""
    layers = images.float().mul_(1 / 255)
    layers[:, :3] *= layers[:, 3:]
    return layers


def _grid(cosine: Tensor, sine: Tensor, stretch: Tensor, offset: Tensor, size: int) -> Tensor:
    """Return sampling positions of a stretch, then rotation with zoom, then shift.

    [n], [n], [n], [n, 2] -> [n, size, size, 2].

    Elementwise rather than by affine_grid, whose matrix product may round differently from one
    batch size to another: an image would then depend on its batch.
    """
    axis = (torch.arange(size, dtype=torch.float32) * 2 + 1) / size - 1
    x = axis[None, None, :] / stretch[:, None, None]
    y = axis[None, :, None] * stretch[:, None, None]
    cosine, sine = cosine[:, None, None], sine[:, None, None]
    across = cosine * x - sine * y + offset[:, 0, None, None]
    down = sine * x + cosine * y + offset[:, 1, None, None]
    return torch.stack([across, down], dim=-1)


def _over(layers: Tensor, colour: Tensor) -> Tensor:
    """Composite premultiplied RGBA [n, 4, s, s] onto colours [n, 3]; RGB [n, 3, s, s]."""
    transparency = 1 - layers[:, 3:]
    return layers[:, :3].addcmul(transparency, colour[:, :, None, None])


def _normalized(rgb: Tensor) -> Tensor:
    mean = torch.tensor(MEAN, device=rgb.device)[:, None, None]
    std = torch.tensor(STD, device=rgb.device)[:, None, None]
    return rgb.sub_(mean).div_(std)
