"""Procedural drawings of coloured shapes with captions.

The data of the tests, and the default if the emoji packages are not installed. It has the same
splits as the emoji: classes ("small red circle") with subgroups (the shape) and groups (round,
angular, pointed), drawing styles in place of vendors, and classes held out entirely.
"""

from __future__ import annotations

import math
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw

from .dataset import DatasetSplits, InMemoryDataset, Superclasses

COLOURS = {
    "red": (214, 40, 40),
    "orange": (243, 129, 32),
    "yellow": (245, 205, 47),
    "green": (56, 142, 60),
    "blue": (30, 96, 200),
    "purple": (126, 60, 170),
    "brown": (121, 85, 61),
    "black": (35, 35, 35),
}
# name: (group, corners, inner radius of a star or 1); 0 corners: a smooth outline
SHAPES = {
    "circle": ("round shapes", 0, 1.0),
    "ellipse": ("round shapes", 0, 0.55),
    "triangle": ("angular shapes", 3, 1.0),
    "square": ("angular shapes", 4, 1.0),
    "hexagon": ("angular shapes", 6, 1.0),
    "four-pointed star": ("pointed shapes", 4, 0.4),
    "five-pointed star": ("pointed shapes", 5, 0.45),
    "eight-pointed star": ("pointed shapes", 8, 0.6),
}
SIZES = {"small": 0.5, "large": 0.85}

TRAIN_STYLES = ("filled", "rimmed")
VALIDATION_STYLES = ("striped",)
TEST_STYLES = ("outlined", "dotted")

HELD_OUT_SHARE = 0.12
DRAWINGS_PER_CLASS = 4  # of each style; they differ in rotation and place

_SUPERSAMPLING = 4  # Pillow draws without antialiasing


def load_shapes(size: int = 64, seed: int = 0) -> DatasetSplits:
    """Draw the dataset, `size` pixels square; the same seed gives the same images to the bit.

    The seed moves and rotates the drawings; classes and splits do not depend on it. Takes less than
    a second at 64 pixels.
    """
    names = [(size_, colour, shape) for shape in SHAPES for colour in COLOURS for size_ in SIZES]
    trained = [name for name in names if not _held_out(name)]
    held_out = [name for name in names if _held_out(name)]
    random = np.random.default_rng(seed)

    def draw(
        name: str, chosen: list[tuple[str, str, str]], styles: tuple[str, ...], copies: int
    ) -> InMemoryDataset:
        images, captions, labels, domains = [], [], [], []
        for label, (size_, colour, shape) in enumerate(chosen):
            for domain, style in enumerate(styles):
                for _ in range(copies):
                    images.append(_draw(size_, colour, shape, style, size, random))
                    captions.append(_captions(size_, colour, shape))
                    labels.append(label)
                    domains.append(domain)
        return InMemoryDataset(
            name=f"shapes/{name}",
            images=torch.from_numpy(np.stack(images)),
            captions=tuple(captions),
            labels=torch.tensor(labels),
            class_names=tuple(map(" ".join, chosen)),
            levels={
                "subgroup": Superclasses.build([shape for *_, shape in chosen]),
                "group": Superclasses.build([SHAPES[shape][0] for *_, shape in chosen]),
            },
            domains=torch.tensor(domains),
            domain_names=styles,
        )

    return DatasetSplits(
        name="shapes",
        train=draw("train", trained, TRAIN_STYLES, DRAWINGS_PER_CLASS),
        evaluation={
            "in_domain": draw("in_domain", trained, TRAIN_STYLES, 1),
            "validation": draw("validation", trained, VALIDATION_STYLES, 1),
            "shifted": draw("shifted", trained, TEST_STYLES, 1),
            "heldout_in_domain": draw("heldout_in_domain", held_out, TRAIN_STYLES, 1),
            "heldout_validation": draw("heldout_validation", held_out, VALIDATION_STYLES, 1),
            "heldout_shifted": draw("heldout_shifted", held_out, TEST_STYLES, 1),
        },
    )


def _held_out(name: tuple[str, str, str]) -> bool:
    # By colour and shape, so that small and large red circles are on one side of the split.
    digest = blake2b("/".join(name[1:]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < HELD_OUT_SHARE


def _captions(size: str, colour: str, shape: str) -> tuple[str, ...]:
    plain = f"{size} {colour} {shape}"
    article = "an" if colour[0] in "aeiou" else "a"
    return (
        plain,
        f"a {plain}",
        f"{article} {colour} {shape}, {size}",
        f"a drawing of a {size} {shape} in {colour}",
    )


def _draw(
    size_name: str, colour_name: str, shape: str, style: str, size: int, random: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Draw one shape on a transparent background; uint8 [4, size, size]."""
    _, corners, inner = SHAPES[shape]
    canvas = size * _SUPERSAMPLING
    radius = canvas / 2 * SIZES[size_name] * random.uniform(0.9, 1.0)
    slack = canvas / 2 - radius
    centre = canvas / 2 + random.uniform(-slack, slack, size=2)
    outline = _outline(corners, inner, radius, centre, random.uniform(0, 2 * math.pi))

    width = max(2, canvas // 24)
    closed = [*outline, *outline[:2]]  # one side more joins the first corner
    fill, rim = (Image.new("L", (canvas, canvas), 0) for _ in range(2))
    if style != "outlined":
        ImageDraw.Draw(fill).polygon(outline, fill=255)
    if style in {"outlined", "rimmed"}:
        ImageDraw.Draw(rim).line(closed, fill=255, width=width, joint="curve")
    inside = np.array(fill)
    rows, columns = np.ogrid[:canvas, :canvas]
    if style == "striped":
        inside[(rows + columns) // width % 2 == 0] = 0
    elif style == "dotted":
        pitch = 2 * width
        inside[np.hypot(rows % pitch - width, columns % pitch - width) > 0.8 * width] = 0

    # Colour does not depend on alpha, so edges blend without a halo; rims are darker.
    alpha = _reduced(np.maximum(inside, np.asarray(rim)))
    darkness = _reduced(np.asarray(rim)) / np.maximum(alpha, 1) if style == "rimmed" else 0 * alpha
    layers = [value * (1 - darkness / 2) for value in COLOURS[colour_name]]
    drawing: npt.NDArray[np.uint8] = np.stack([*layers, alpha]).round().astype(np.uint8)
    return drawing


def _reduced(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    return np.asarray(Image.fromarray(mask).reduce(_SUPERSAMPLING), dtype=np.float64)


def _outline(
    corners: int, inner: float, radius: float, centre: npt.NDArray[np.float64], turn: float
) -> list[tuple[float, float]]:
    """Return the points of a polygon, a star (every other one at `inner`) or an ellipse."""
    if corners == 0:
        angles = np.arange(64) * (2 * math.pi / 64)
        x, y = radius * np.cos(angles), inner * radius * np.sin(angles)
        x, y = x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)
    else:
        count = corners if inner == 1.0 else 2 * corners
        angles = np.arange(count) * (2 * math.pi / count) + turn
        radii = np.where(np.arange(count) % 2 == 0, 1.0, inner) * radius
        x, y = radii * np.cos(angles), radii * np.sin(angles)
    return list(zip((x + centre[0]).tolist(), (y + centre[1]).tolist(), strict=True))
