"""Names of classes: from `classnames.txt` beside the images, from folders, from WordNet ids."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from .._files import read_text

CLASS_NAMES_FILE = "classnames.txt"

_PARTS = re.compile(r"(\d+)")  # text, number, text, ...
_WORDNET_ID = re.compile(r"n\d{8}")


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, trimmed, without the blank ones at its end.

    Raises ValueError if it is not UTF-8.
    """
    text = read_text(path)
    # Not splitlines: it also splits at rare characters, and shifts all labels that follow.
    return [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []


def read_names(path: Path) -> tuple[str, ...]:
    """Return the names in a file, one per line; line k is that of label k.

    Raises ValueError for a line, or a file, without a name.
    """
    names = read_lines(path)
    if not names:
        raise ValueError(f"{path} must have a class name a line, but is empty")
    for number, name in enumerate(names, 1):
        if not name:
            raise ValueError(
                f"{path}:{number}: a class needs a name, and line k is that of label k"
            )
    return tuple(names)


def require_one_order(classes: Sequence[str], names: str | Path) -> None:
    """Raise ValueError if the order by numbers differs from the alphabetical one: c2, c10.

    The order of a list of names is then unknown. names: the place of the list, for the message.
    """
    by_number = sorted(
        classes, key=lambda each: [int(n) if n.isdecimal() else n for n in _PARTS.split(each)]
    )
    if list(classes) != by_number and list(classes) == sorted(classes):
        place = next(i for i, each in enumerate(by_number) if each != classes[i])
        raise ValueError(
            f"{names} gives one name per class, but class {place} (from 0) is "
            f"{classes[place]!r} in alphabetical order and {by_number[place]!r} by number: give "
            f"the numbers leading zeros, or write lines of folder<TAB>name to {CLASS_NAMES_FILE} "
            "in the folder of classes"
        )


def readable(name: str) -> str:
    """Return the name of a folder as used in prompts: "golden_retriever" is "golden retriever"."""
    return " ".join(name.replace("_", " ").split()) or name


def are_wordnet_ids(names: Sequence[str]) -> bool:
    """Return whether all names are ids of WordNet's nouns, like those of ImageNet's folders."""
    return bool(names) and all(_WORDNET_ID.fullmatch(name) for name in names)


def wordnet_names(ids: Sequence[str]) -> tuple[str, ...] | None:
    """Return the names of WordNet ids from tables of installed packages; None if one is unknown.

    ImageNet's 1,000 classes are named as open_clip names them, others by the first lemma of
    WordNet. The tables of ids are timm's, which open_clip needs.
    """
    names = _imagenet_names()
    found = [names.get(each) for each in ids]
    if None in found:
        lemmas = _lemmas()
        found = [name or lemmas.get(each) for each, name in zip(ids, found, strict=True)]
    known = [name for name in found if name]
    if len(known) < len(ids):
        return None
    if len(set(known)) < len(known):  # "crane" the bird and the machine
        full = _lemmas(all_of_them=True)
        pairs = zip(ids, known, strict=True)
        known = [full.get(each, name) if known.count(name) > 1 else name for each, name in pairs]
    return tuple(known) if len(set(known)) == len(known) else None


def imagenet_ids() -> tuple[str, ...] | None:
    """Return the WordNet ids of ImageNet's 1,000 classes, in the order of the labels.

    None without timm, which has the list.
    """
    file = _timm_file("imagenet_synsets.txt")
    return None if file is None else tuple(read_lines(file))


@cache
def _imagenet_names() -> dict[str, str]:
    ids = imagenet_ids()
    if ids is None or importlib.util.find_spec("open_clip") is None:
        return {}
    from open_clip import IMAGENET_CLASSNAMES

    return dict(zip(ids, IMAGENET_CLASSNAMES, strict=True))


@cache
def _lemmas(all_of_them: bool = False) -> dict[str, str]:
    file = _timm_file("imagenet_synset_to_lemma.txt")
    lines = [] if file is None else read_lines(file)
    pairs = (line.partition("\t")[::2] for line in lines)
    return {each: text if all_of_them else text.partition(",")[0] for each, text in pairs}


def _timm_file(name: str) -> Path | None:
    spec = importlib.util.find_spec("timm")
    places = spec.submodule_search_locations if spec is not None else None
    files = [Path(place) / "data" / "_info" / name for place in places or ()]
    return next((file for file in files if file.is_file()), None)
