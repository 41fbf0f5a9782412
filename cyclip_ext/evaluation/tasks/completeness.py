"""Completeness of captions: which annotated objects of an image its captions do not name.

Source: Chen et al. 2024 (arXiv 2310.00927), figures 4 and 5. Annotations and captions are COCO's.
A caption names a category if the category's name or one of its words from a table, singular or
plural, occurs as whole words, in any case. If phrases overlap, the longest counts: a hot dog is
not a dog. The meaning is ignored: "an orange shirt" names the category orange.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from ..._plotting import BLUE, GREEN, plain
from .base import Metric, Plot, Table, TaskResult, Unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASK = "caption_completeness"

EXAMPLES = 10

# Category -> words that name it besides its own name, for COCO's 80; plurals are added in code.
COCO_WORDS = Path(__file__).with_name("words.json")

Phrase = tuple[str, ...]


class Compared(NamedTuple):
    """The annotated categories of an image, and those that a caption, or all, do not name."""

    text: str
    annotated: tuple[str, ...]  # each once, in the order of the file's categories
    missing: tuple[str, ...]


class Completeness(NamedTuple):
    """All captions, and all images with their captions joined.

    Captioned images without annotated objects, and annotated images without captions, are not
    compared but counted.
    """

    captions: list[Compared]
    images: list[Compared]
    without_objects: int  # images
    without_captions: int  # images


def caption_completeness(instances: Path, captions: Path) -> Completeness:
    """Compare COCO's instances_*.json with its captions_*.json.

    Raises ValueError, naming file and key, for a file that is not JSON or lacks something, and if
    no image has both objects and captions; OSError for a file that cannot be read.
    """
    names, objects = _read_instances(instances)
    texts = _read_captions(captions)
    phrases = _phrases(names, json.loads(COCO_WORDS.read_text("utf-8")))
    single: list[Compared] = []
    joined: list[Compared] = []
    for image_id, own in texts.items():
        annotated = tuple(name for name in names if name in objects.get(image_id, ()))
        if annotated:
            named = [_named(text, phrases) for text in own]
            single += map(partial(_compare, annotated), own, named)
            joined.append(_compare(annotated, " / ".join(own), set().union(*named)))
    if not joined:
        raise ValueError(f"no image has both objects in {instances} and captions in {captions}")
    without_captions = sum(image_id not in texts for image_id in objects)
    return Completeness(single, joined, len(texts) - len(joined), without_captions)


def _compare(annotated: tuple[str, ...], text: str, named: set[str]) -> Compared:
    return Compared(text, annotated, tuple(name for name in annotated if name not in named))


def plot_completeness(figure: Figure, completeness: Completeness) -> None:
    """Plot how many categories captions, and all captions of an image together, do not name."""
    axes = figure.subplots()
    groups = (
        ("one caption", completeness.captions, BLUE, -0.2),
        ("all captions of the image", completeness.images, GREEN, 0.2),
    )
    for name, entries, color, offset in groups:
        counts = Counter(len(entry.missing) for entry in entries)
        most = max(counts)
        axes.bar(
            [k + offset for k in range(most + 1)],
            [100 * counts[k] / len(entries) for k in range(most + 1)],
            width=0.38,
            color=color,
            label=f"{name} (mean {_mean_missing(entries):.2f})",
        )
    axes.set(xlabel="annotated categories that are not named", ylabel="share (%)")
    axes.locator_params(axis="x", integer=True, nbins=12)
    axes.legend(frameon=False, fontsize=9)
    plain(axes)


def _mean_missing(entries: Sequence[Compared]) -> float:
    return fmean(len(entry.missing) for entry in entries)


# ------------------------------------------------------------------------------------ words


def _split(text: str) -> Phrase:
    """Split into words of letters and digits; hyphens and apostrophes separate them."""
    return tuple(re.findall(r"[^\W_]+", text.casefold()))


def _phrases(
    names: Iterable[str], words: Mapping[str, Sequence[str]]
) -> dict[Phrase, frozenset[str]]:
    """Map every phrase, with its plural, to the categories that it names."""
    owners: defaultdict[Phrase, set[str]] = defaultdict(set)
    for name in names:
        for text in (name, *words.get(name, ())):
            phrase = _split(text)
            if phrase:
                plural = (*phrase[:-1], _plural(phrase[-1]))
                owners[phrase].add(name)
                owners[plural].add(name)
    return {phrase: frozenset(own) for phrase, own in owners.items()}


def _plural(word: str) -> str:
    """Return the regular plural; the table lists the others (men, knives)."""
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in set("aeiou"):
        return word[:-1] + "ies"
    return word + "s"


def _named(text: str, phrases: Mapping[Phrase, frozenset[str]]) -> set[str]:
    """Find the categories named in a text; each word counts in one phrase, the longest."""
    words = _split(text)
    longest = max(map(len, phrases), default=1)
    named: set[str] = set()
    start = 0
    while start < len(words):
        for length in range(min(longest, len(words) - start), 0, -1):
            own = phrases.get(words[start : start + length])
            if own is not None:
                named |= own
                break
        start += length  # 1 if nothing matched
    return named


# ------------------------------------------------------------------------------------ files


def _read_instances(path: Path) -> tuple[list[str], dict[int, set[str]]]:
    """Return the names of the categories, and those annotated in each image that has any."""
    content = _read_object(path)
    names: dict[int, str] = dict(_records(path, content, "categories", id=int, name=str))
    objects: defaultdict[int, set[str]] = defaultdict(set)
    annotations = _records(path, content, "annotations", image_id=int, category_id=int)
    for index, (image_id, category) in enumerate(annotations):
        if category not in names:
            place = f"annotations[{index}]"
            raise ValueError(f"{path}: {place}: category_id {category} is not in categories")
        objects[image_id].add(names[category])
    return list(names.values()), objects


def _read_captions(path: Path) -> dict[int, list[str]]:
    captions: defaultdict[int, list[str]] = defaultdict(list)
    content = _read_object(path)
    for image_id, caption in _records(path, content, "annotations", image_id=int, caption=str):
        captions[image_id].append(caption)
    return captions


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # of JSON and of its encoding
        raise ValueError(f"{path} is not a JSON file, damaged or cut off: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold one JSON object, got {type(content).__name__}")
    return content


def _records(path: Path, content: dict[str, Any], key: str, **fields: type) -> Iterator[Any]:
    """Yield these fields of every object of the list `key`, after a check of their types."""
    entries = content.get(key)
    if not isinstance(entries, list):
        found = type(entries).__name__ if key in content else "no such key"
        raise ValueError(f"{path}: {key!r} must be a list, got {found}")
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: {key}[{index}] must be an object, got {entry!r}")
        for name, kind in fields.items():
            if not isinstance(entry.get(name), kind):
                found = repr(entry[name]) if name in entry else "no such key"
                raise ValueError(
                    f"{path}: {key}[{index}]: {name!r} must be {kind.__name__}, got {found}"
                )
        yield tuple(entry[name] for name in fields)


# --------------------------------------------------------------------------------------- task


def run(instances: Path, captions: Path) -> TaskResult:
    """Compare COCO's instances_*.json with its captions_*.json; see caption_completeness.

    It takes no embeddings and so is not in TASKS.
    """
    found = caption_completeness(instances, captions)
    least = sorted(found.captions, key=lambda entry: -len(entry.missing))  # stable: in file order
    used, total = len(found.images), len(found.images) + found.without_objects
    table = Table(
        "The least complete captions",
        ("caption", "not named", "annotated"),
        tuple(
            (entry.text, ", ".join(entry.missing), len(entry.annotated))
            for entry in least[:EXAMPLES]
        ),
        f"{used:,} of {total:,} captioned images are compared; {found.without_objects:,} have no "
        f"annotated object. {found.without_captions:,} annotated images have no caption.",
    )
    complete_captions = fmean(not entry.missing for entry in found.captions)
    complete_images = fmean(not entry.missing for entry in found.images)
    return TaskResult(
        captions.stem,
        TASK,
        {
            Metric("objects_per_image", "objects per image"): fmean(
                len(entry.annotated) for entry in found.images
            ),
            Metric("missing_per_caption", "missing per caption"): _mean_missing(found.captions),
            Metric("missing_per_image", "missing per image"): _mean_missing(found.images),
            Metric("complete_captions", "captions that name all", Unit.SHARE): complete_captions,
            Metric(
                "complete_images", "images whose captions name all", Unit.SHARE
            ): complete_images,
        },
        "Completeness of captions",
        "How many of the kinds of objects annotated in an image its caption does not name. The "
        "measure is one of the captions, not of the model: training treats objects that a "
        "caption omits as absent (arXiv 2310.00927, figures 4 and 5).",
        (table,),
        (
            Plot(
                "completeness",
                "How many annotated kinds of objects a caption does not name, and all captions of "
                "an image together.",
                partial(plot_completeness, completeness=found),
            ),
        ),
    )
