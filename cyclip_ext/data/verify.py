"""Read every record of a dataset once, on all cores, and report the bad ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .captions import caption_hash, normalized_caption, shorten
from .dataset import FileDataset
from .images import open_image
from .manifest import BadEntry, Manifest
from .skips import BadRecord, SkipReport, printable
from .workers import ordered_map

_CHUNK = 64  # records per answer of a worker
_SHOWN_GROUPS = 3

# One row per good record, and one per caption of a good record: 3 million records take 150 MB.
_IMAGE = np.dtype([("record", "<i8"), ("width", "<i4"), ("height", "<i4")])
_CAPTION = np.dtype([("record", "<i8"), ("text", "<i8"), ("characters", "<i4"), ("words", "<i4")])

Table = npt.NDArray[Any]


@dataclass
class Findings:
    """The result of one pass.

    images: a row of _IMAGE per good record. captions: a row of _CAPTION per caption of a good
    record. entries: those of the files that the good records consist of (ImageDataset.entries).
    shortened: captions that training cuts, see captions.shorten. bad: the other records. skipped:
    bad records by reason, with those that opening the dataset had dropped.
    """

    images: Table
    captions: Table
    entries: int = 0
    shortened: int = 0
    bad: list[BadEntry] = field(default_factory=list)
    skipped: SkipReport = field(default_factory=SkipReport)

    @property
    def seen(self) -> int:
        """Entries of the files, with the bad ones (except for ACCEPTED_REASONS)."""
        return self.entries + self.skipped.judged

    def equal_captions(self) -> list[npt.NDArray[np.int64]]:
        """Return the records of each caption that several of them have, most frequent first.

        Captions are equal as in `normalized_caption`.
        """
        # A record that has the same caption twice counts once.
        pairs = np.unique(self.captions[["text", "record"]])
        starts = np.flatnonzero(np.append(True, pairs["text"][1:] != pairs["text"][:-1]))
        sizes = np.diff(np.append(starts, len(pairs)))
        several = np.flatnonzero(sizes > 1)
        several = several[np.argsort(-sizes[several], kind="stable")]
        return [pairs["record"][starts[i] : starts[i] + sizes[i]] for i in several]

    def to_dict(self) -> dict[str, Any]:
        """Return the counts, for JSON."""
        groups = self.equal_captions()
        return {
            "records": self.seen,
            "good": len(self.images),
            "skipped": self.skipped.to_dict(),
            "equal_captions": {"groups": len(groups), "records": sum(map(len, groups))},
            "shortened_captions": self.shortened,
        }


def examine(
    dataset: FileDataset, workers: int, progress: Callable[[int], None] = lambda done: None
) -> Findings:
    """Read and decode every record. progress is called with the number done since the last call.

    Raises WorkerDied if a worker process was killed.
    """
    findings = Findings(np.empty(0, _IMAGE), np.empty(0, _CAPTION))
    findings.skipped.merge(dataset.skipped)
    images, captions = [findings.images], [findings.captions]
    starts = range(0, len(dataset), _CHUNK)
    for part in ordered_map(_Examiner(dataset), starts, workers):
        images.append(part.images)
        captions.append(part.captions)
        findings.entries += part.entries
        findings.shortened += part.shortened
        findings.bad += part.bad
        for entry in part.bad:
            findings.skipped.add(entry.reason, entry.where)
        progress(len(part.images) + len(part.bad))
    findings.images, findings.captions = np.concatenate(images), np.concatenate(captions)
    return findings


@dataclass(frozen=True)
class _Examiner:
    """A function that examines the _CHUNK records from `start` on."""

    dataset: FileDataset

    def __call__(self, start: int) -> Findings:
        images: list[tuple[int, int, int]] = []
        captions: list[tuple[int, int, int, int]] = []
        bad: list[BadEntry] = []
        shortened = 0
        for index in range(start, min(start + _CHUNK, len(self.dataset))):
            try:
                found = self.dataset.encoded(index)
                image = open_image(found.data, found.key)
            except (BadRecord, MemoryError) as error:
                reason, where = error.args or ("out of memory", f"{self.dataset.name}[{index}]")
                bad.append(BadEntry(index, reason, where))
                continue
            images.append((index, *image.size))
            for caption in found.captions:
                text = caption_hash(caption)
                captions.append((index, text, len(caption), len(caption.split())))
                shortened += shorten(caption) != caption
        good = np.array(images, _IMAGE)
        entries = self.dataset.entries(good["record"])
        return Findings(good, np.array(captions, _CAPTION), entries, shortened, bad)


def manifest_of(dataset: FileDataset, findings: Findings) -> Manifest:
    """Return the bad records for training, with the counts of the report beside them."""
    return Manifest(len(dataset), dataset.fingerprint(), findings.bad, findings.to_dict())


def report(dataset: FileDataset, findings: Findings) -> str:
    """Return the findings as text."""
    images, captions, skipped = findings.images, findings.captions, findings.skipped
    lines = [f"{dataset.name}: {len(images):,} records can be used, {skipped.total:,} cannot"]
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
    ]
    if len(captions):
        lines += [
            _spread("caption, characters", captions["characters"]),
            _spread("caption, words", captions["words"]),
        ]
    lines.append(f"{len(captions):,} captions, {len(captions) / len(images):.2f} per record")
    if findings.shortened:
        lines.append(f"{findings.shortened:,} captions with endless words, cut before tokenizing")
    groups = findings.equal_captions()
    lines.append(
        f"equal captions: {sum(map(len, groups)):,} records in {len(groups):,} groups"
        + (" (see cyclip-train --mask-duplicates)" if groups else "")
    )
    for members in groups[:_SHOWN_GROUPS]:
        one, two = (dataset.encoded(int(index)) for index in members[:2])
        others = set(map(normalized_caption, two.captions))
        shared = next(text for text in one.captions if normalized_caption(text) in others)
        lines.append(f"  {len(members):>9,}  {shared[:60]!r}, e.g. {printable(one.key)}")
    return "\n".join(lines)


def _spread(name: str, values: npt.NDArray[Any]) -> str:
    low, middle, high = np.min(values), np.median(values), np.max(values)
    return f"  {name:<19}{low:>10,.6g} {middle:>10,.6g} {high:>10,.6g}"
