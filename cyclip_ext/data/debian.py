"""Clip art and stamps from Debian packages, added to the emoji: `--train-data debian`.

Open Clip Art has titles and keywords as their authors typed them (noisy, as on the web), Tux
Paint's stamps one careful line each. Both are only for training. Evaluation is that of the emoji,
with fashion-mnist as a dataset far from the training data.
"""

from __future__ import annotations

import gzip
import re
from collections import Counter
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import torch

from .captions import clean_caption
from .dataset import DatasetSplits, InMemoryDataset, Superclasses
from .emoji import load_emoji
from .images import decode_squares
from .skips import BadRecord, MissingData, SkipReport

ROOT = Path("/usr/share")
PACKAGES = {  # Debian package: its folder below ROOT
    "openclipart-png": "openclipart/png",
    "openclipart-svg": "openclipart/svg",
    "tuxpaint-stamps-default": "tuxpaint/stamps",
    "dataset-fashion-mnist": "datasets/fashion-mnist",
}
FASHION_CLASSES = (  # in the order of the labels: (name, subgroup, group)
    ("t-shirt", "tops", "clothing"),
    ("trousers", "bottoms", "clothing"),
    ("pullover", "tops", "clothing"),
    ("dress", "dresses", "clothing"),
    ("coat", "outerwear", "clothing"),
    ("sandal", "shoes", "accessories"),
    ("shirt", "tops", "clothing"),
    ("sneaker", "shoes", "accessories"),
    ("bag", "bags", "accessories"),
    ("ankle boot", "shoes", "accessories"),
)

# A title of this many drawings is that of a collection and does not describe them.
_COLLECTION = 8
_COLLECTION_TITLE = re.compile(r"Clipart by |Part of the |$")
_KEYWORDS_IN_CAPTION = 3
_DESCRIPTION_WORDS = 15
_NOT_KEYWORDS = {"", "hash"}  # "hash" is a trace of the library's export script
_WORK = "{http://web.resource.org/cc/}Work"
_DC = "{http://purl.org/dc/elements/1.1/}"
_RDF_ITEM = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"

Captioned = tuple[Path, tuple[str, ...]]


def load_debian(size: int = 64, root: Path = ROOT) -> DatasetSplits:
    """Load emoji, openclipart and stamps for training, emoji and fashion-mnist for evaluation.

    Raises MissingData with the apt command if a package is not installed, and as load_emoji.
    """
    missing = [name for name, folder in PACKAGES.items() if not (root / folder).is_dir()]
    if missing:
        raise MissingData(
            f"the Debian data needs {', '.join(missing)}: apt install {' '.join(PACKAGES)}"
        )
    emoji = load_emoji(size)
    skipped = emoji.skipped
    clipart = read_openclipart(root / "openclipart", skipped)
    stamps = read_stamps(root / "tuxpaint/stamps", skipped)
    found = _without_copies(clipart + stamps, skipped)
    decoded, images = decode_squares([(str(path), path) for path, _ in found], size, skipped)
    fashion = {"fashion_mnist": load_fashion_mnist("test", root)}
    return replace(
        emoji,
        name="debian",
        train=InMemoryDataset(
            name="debian (openclipart, tuxpaint, emoji)",
            images=torch.cat([emoji.train.images, images]),
            captions=emoji.train.captions + tuple(found[i][1] for i in decoded),
        ),
        evaluation=emoji.evaluation | fashion,
    )


def read_openclipart(folder: Path, skipped: SkipReport) -> list[Captioned]:
    """Return PNG files with captions from the metadata of the SVG file of the same name.

    Captions: the title, the title with the first keywords, and a short description. If the title is
    that of a whole collection, the words of the file's name are used instead. Counted as skipped:
    links (the same drawing under another heading), broken metadata, drawings without a name, and
    names that many drawings share, since these would be each other's negatives.
    """
    drawings: list[tuple[Path, str, list[str], str]] = []
    for svg in sorted((folder / "svg").rglob("*.svg")):
        if svg.is_symlink():
            skipped.add("link to another drawing", str(svg))
            continue
        try:
            title, keywords, description = _svg_metadata(svg)
        except (ElementTree.ParseError, OSError):
            skipped.add("broken metadata", str(svg))
            continue
        png = folder / "png" / svg.relative_to(folder / "svg").with_suffix(".png")
        drawings.append((png, title, keywords, description))

    titles = Counter(title.lower() for _, title, _, _ in drawings)
    named = []
    for png, title, keywords, description in drawings:
        if titles[title.lower()] >= _COLLECTION or _COLLECTION_TITLE.match(title):
            title = clean_caption(re.sub(r"[\W\d_]+", " ", png.stem))  # "jigsaw_red_10": words
        named.append((png, title, keywords, description))
    uses = Counter(name.lower() for _, name, _, _ in named)
    found: list[Captioned] = []
    for png, name, keywords, description in named:
        if not name:
            skipped.add("empty caption", str(png))
        elif uses[name.lower()] >= _COLLECTION:
            skipped.add("one caption for many drawings", str(png))
        else:
            texts = [name]
            if keywords:
                texts.append(", ".join([name, *keywords[:_KEYWORDS_IN_CAPTION]]))
            if 0 < len(description.split()) <= _DESCRIPTION_WORDS and "@" not in description:
                texts.append(description)
            found.append((png, tuple(dict.fromkeys(texts))))
    return found


def read_stamps(folder: Path, skipped: SkipReport) -> list[Captioned]:
    """Return PNG stamps with the English line of the .txt file beside them."""
    found: list[Captioned] = []
    for png in sorted(folder.rglob("*.png")):
        # A mirrored stamp shares the text of the plain one.
        text = png.with_name(re.sub(r"_(mirror|flip)+$", "", png.stem) + ".txt")
        try:
            # The first line is English; translations follow as "de.utf8=...".
            caption = clean_caption(text.read_text(encoding="utf-8").split("\n", 1)[0])
        except FileNotFoundError:
            caption = ""
        except UnicodeDecodeError:
            skipped.add("bad encoding", str(text))
            continue
        if caption:
            found.append((png, (caption,)))
        else:
            skipped.add("empty caption", str(png))
    return found


def load_fashion_mnist(split: str, root: Path = ROOT) -> InMemoryDataset:
    """Load the "train" (60,000) or "test" (10,000) images, grey on black, 28 pixels square.

    Raises ValueError for another split, MissingData with the apt command if the package is not
    installed, BadRecord if its files are damaged.
    """
    prefixes = {"train": "train", "test": "t10k"}
    if split not in prefixes:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    folder = root / PACKAGES["dataset-fashion-mnist"]
    if not folder.is_dir():
        raise MissingData(f"no fashion-mnist in {folder}: apt install dataset-fashion-mnist")
    grey = _read_idx(folder / f"{prefixes[split]}-images-idx3-ubyte.gz")
    labels = _read_idx(folder / f"{prefixes[split]}-labels-idx1-ubyte.gz")
    images = np.empty((len(grey), 4, *grey.shape[1:]), dtype=np.uint8)
    images[:, :3] = grey[:, None]
    images[:, 3] = 255
    return InMemoryDataset(
        name=f"fashion-mnist/{split}",
        images=torch.from_numpy(images),
        captions=tuple((FASHION_CLASSES[label][0],) for label in labels),
        labels=torch.from_numpy(labels.astype(np.int64)),
        class_names=tuple(name for name, _, _ in FASHION_CLASSES),
        levels={
            "subgroup": Superclasses.build([subgroup for _, subgroup, _ in FASHION_CLASSES]),
            "group": Superclasses.build([group for *_, group in FASHION_CLASSES]),
        },
        domains=torch.zeros(len(labels), dtype=torch.int64),
        domain_names=("fashion-mnist",),
    )


def _svg_metadata(svg: Path) -> tuple[str, list[str], str]:
    """Return title, keywords and description of one drawing, empty if they are absent."""
    for _, work in ElementTree.iterparse(svg):
        if work.tag == _WORK:  # the drawing itself, which follows, is large
            break
    else:
        return "", [], ""
    # Artists sign among the keywords.
    artists = {clean_caption(e.text or "").lower() for e in work.iter(f"{_DC}title")}
    words = [clean_caption(e.text or "").replace("_", " ").lower() for e in work.iter(_RDF_ITEM)]
    return (
        clean_caption((work.findtext(f"{_DC}title") or "").replace("_", " ")),
        [word for word in words if word not in _NOT_KEYWORDS and word not in artists],
        clean_caption(work.findtext(f"{_DC}description") or ""),
    )


def _without_copies(found: list[Captioned], skipped: SkipReport) -> list[Captioned]:
    """Drop copies of the same bytes, which would be false negatives in a batch."""
    seen: set[bytes] = set()
    first: list[Captioned] = []
    for path, captions in found:
        try:
            digest = blake2b(path.read_bytes(), digest_size=16).digest()
        except FileNotFoundError:
            skipped.add("missing", str(path))
            continue
        if digest in seen:
            skipped.add("copy of another image", str(path))
        else:
            seen.add(digest)
            first.append((path, captions))
    return first


def _read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read an array of bytes in the IDX format of MNIST: magic, big-endian sizes, data."""
    try:
        data = gzip.decompress(path.read_bytes())
        dimensions = data[3]
        shape = np.frombuffer(data, ">u4", count=dimensions, offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except FileNotFoundError:
        raise BadRecord("missing", str(path)) from None
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise BadRecord(f"damaged ({error})", str(path)) from None
