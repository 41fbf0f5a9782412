"""Reads every record of a source once, with all cores, and says what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from .captions import normalized_caption, printable
from .dataset import FileDataset
from .duplicates import Groups, difference_hash, expected_pairs, group, mixed
from .images import open_image
from .manifest import BadEntry, Manifest
from .skips import BadRecord, SkipReport
from .workers import ordered_map

_CHUNK = 64  # records per answer of a worker
_SHOWN_GROUPS = 3

# What is kept of a good record and of each of its captions: 3 million records take 200 MB.
_IMAGE = np.dtype(
    [("record", "<i8"), ("bytes", "<u8"), ("look", "<u8"), ("width", "<i4"), ("height", "<i4")]
)
_CAPTION = np.dtype(
    [("record", "<i8"), ("text", "<u8"), ("share", "<f8"), ("characters", "<i4"), ("words", "<i4")]
)

Table = npt.NDArray[Any]


@dataclass
class Findings:
    """What one pass found.

    images: a row of _IMAGE per good record. captions: a row of _CAPTION per caption of a good
    record. bad: the others. skipped: bad by reason, with what opening the source had dropped.
    """

    images: Table
    captions: Table
    bad: list[BadEntry] = field(default_factory=list)
    skipped: SkipReport = field(default_factory=SkipReport)

    @property
    def seen(self) -> int:
        """Records looked at, those dropped on opening included (but for ACCEPTED_REASONS)."""
        return len(self.images) + self.skipped.judged


def examine(
    pairs: FileDataset, workers: int, progress: Callable[[int], None] = lambda done: None
) -> Findings:
    """Read and decode every record. progress is called with the number done so far."""
    starts = range(0, len(pairs), _CHUNK)
    images: list[Table] = []
    captions: list[Table] = []
    bad: list[BadEntry] = []
    skipped = SkipReport()
    skipped.merge(pairs.skipped)
    done = 0
    for found in ordered_map(_Examiner(pairs), starts, workers):
        images.append(found[0])
        captions.append(found[1])
        for entry in found[2]:
            bad.append(entry)
            skipped.add(entry.reason, entry.where)
        done = min(done + _CHUNK, len(pairs))
        progress(done)
    return Findings(
        np.concatenate([*images, np.empty(0, dtype=_IMAGE)]),
        np.concatenate([*captions, np.empty(0, dtype=_CAPTION)]),
        bad,
        skipped,
    )


@dataclass(frozen=True)
class _Examiner:
    """Examines the records from `start` on; what a worker process executes."""

    pairs: FileDataset

    def __call__(self, start: int) -> tuple[Table, Table, list[BadEntry]]:
        images: list[tuple[int, int, int, int, int]] = []
        captions: list[tuple[int, int, float, int, int]] = []
        bad: list[BadEntry] = []
        for index in range(start, min(start + _CHUNK, len(self.pairs))):
            try:
                found = self.pairs.encoded(index)
                image = open_image(found.data, found.key)
            except BadRecord as error:
                bad.append(BadEntry(index, error.reason, error.where))
                continue
            images.append((index, _hash(found.data), difference_hash(image), *image.size))
            for caption in found.captions:
                text = _hash(normalized_caption(caption).encode())
                share = 1 / len(found.captions)
                captions.append((index, text, share, len(caption), len(caption.split())))
        return np.array(images, dtype=_IMAGE), np.array(captions, dtype=_CAPTION), bad


@dataclass(frozen=True)
class Doubles:
    """Groups of records with an equal caption, equal image bytes, or an image of equal look.

    false_negatives: by kind, and "any" of them, the expected number of pairs in a batch.
    """

    captions: Groups
    images: Groups
    looks: Groups
    batch_size: int
    false_negatives: dict[str, float]


def find_doubles(findings: Findings, batch_size: int) -> Doubles:
    """Compare all good records with each other, by their hashes."""
    images, captions = findings.images, findings.captions
    count = len(images)
    telling = images[images["look"] != 0]
    # What is of one colour looks alike only where it is alike.
    look = np.where(images["look"] != 0, images["look"], mixed(images["bytes"], images["bytes"]))
    look_of_caption = look[np.searchsorted(images["record"], captions["record"])]
    ones = np.ones(count)
    text = (captions["text"], captions["record"], captions["share"])
    both = (mixed(look_of_caption, captions["text"]), captions["record"], captions["share"])
    by_caption = expected_pairs(*text, batch_size, count)
    by_look = expected_pairs(look, images["record"], ones, batch_size, count)
    return Doubles(
        group(captions["text"], captions["record"]),
        group(images["bytes"], images["record"]),
        group(telling["look"], telling["record"]),
        batch_size,
        {
            "caption": by_caption,
            "image": expected_pairs(images["bytes"], images["record"], ones, batch_size, count),
            "look": by_look,
            "any": by_caption + by_look - expected_pairs(*both, batch_size, count),
        },
    )


def manifest_of(pairs: FileDataset, findings: Findings, doubles: Doubles) -> Manifest:
    """What training needs, with the counts of the report beside it."""
    summary = {
        "records": findings.seen,
        "good": len(findings.images),
        "skipped": findings.skipped.to_dict(),
        "duplicates": {
            kind: {"groups": len(groups), "records": groups.records}
            for kind, groups in _kinds(doubles).items()
        },
        "false_negatives": {"batch_size": doubles.batch_size, **doubles.false_negatives},
    }
    return Manifest(len(pairs), pairs.fingerprint(), findings.bad, summary)


def report(pairs: FileDataset, findings: Findings, doubles: Doubles) -> str:
    """The findings as text for people."""
    images, captions, skipped = findings.images, findings.captions, findings.skipped
    lines = [
        f"{pairs.name}: {len(images):,} of {len(images) + skipped.total:,} records can be used"
    ]
    for reason, count in skipped.counts.most_common():
        lines.append(f"  {count:>9,}  {reason:<22} e.g. {', '.join(skipped.examples[reason])}")
    if not len(images):
        return "\n".join(lines)
    width, height = images["width"], images["height"]
    lines += [
        "                     smallest     median    largest",
        _spread("width, pixels", width),
        _spread("height, pixels", height),
        _spread("width / height", width / height),
        _spread("caption, characters", captions["characters"]),
        _spread("caption, words", captions["words"]),
        f"{len(captions):,} captions, {len(captions) / len(images):.2f} per record",
    ]
    for kind, groups in _kinds(doubles).items():
        lines.append(f"{kind}: {groups.records:,} records in {len(groups):,} groups")
        for members in groups.largest(_SHOWN_GROUPS):
            first = pairs.encoded(int(members[0]))
            shown = repr(first.captions[0][:60])
            if kind == "equal captions":
                shown = repr(_shared_caption(pairs, members)[:60])
            lines.append(f"  {len(members):>9,}  {shown}, e.g. {printable(first.key)}")
    expected = doubles.false_negatives
    lines.append(
        f"in a batch of {doubles.batch_size:,}, expected pairs that are not really negative: "
        f"{expected['caption']:.3g} of equal caption, {expected['image']:.3g} of equal image, "
        f"{expected['look']:.3g} that look alike, {expected['any']:.3g} of any of these"
    )
    return "\n".join(lines)


def _kinds(doubles: Doubles) -> dict[str, Groups]:
    return {
        "equal captions": doubles.captions,
        "equal images": doubles.images,
        "images that look alike": doubles.looks,
    }


def _shared_caption(pairs: FileDataset, members: npt.NDArray[np.int64]) -> str:
    """A caption that the first two members have in common."""
    others = set(map(normalized_caption, pairs.encoded(int(members[1])).captions))
    captions = pairs.encoded(int(members[0])).captions
    return next(caption for caption in captions if normalized_caption(caption) in others)


def _spread(name: str, values: npt.NDArray[Any]) -> str:
    low, middle, high = np.min(values), np.median(values), np.max(values)
    return f"  {name:<19}{low:>10,.6g} {middle:>10,.6g} {high:>10,.6g}"


def _hash(data: bytes) -> int:
    """64 bits: among 3 million, two different ones agree with a probability of 2.4e-7."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
