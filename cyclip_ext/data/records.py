"""What every source of training pairs hands out, and how it accounts for what it had to drop."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch.utils.data import Dataset

EXAMPLES_PER_REASON = 3  # enough to find the culprit, few enough to print

# Reasons that say nothing about the data at hand: a third of CC3M's addresses are dead, and what a
# manifest lists was judged when it was written. They are counted, but stop no run.
NOT_DOWNLOADED = "not downloaded"
IN_MANIFEST = "listed in the manifest"
ACCEPTED_REASONS = frozenset({NOT_DOWNLOADED, IN_MANIFEST})


class MissingData(RuntimeError):
    """A data set that is not installed; the message carries the command that installs it."""


class TooManyBadRecords(ValueError):
    """More records are bad than the user allows; the message has counts and examples."""


class BadRecord(Exception):
    """One record that cannot be used.

    `reason` is a short phrase that is counted ("truncated", "empty caption"); `where` names the
    record for a human (a path, or a member inside an archive).
    """

    def __init__(self, reason: str, where: str) -> None:
        where = printable(where)
        # Both go to Exception so that the error survives pickling out of a worker process.
        super().__init__(reason, where)
        self.reason = reason
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Record:
    """A picture with its captions.

    image: RGB, or RGBA where the source was asked to keep transparency.
    captions: at least one, none of them empty; the first is the canonical one.
    key: names the record inside its source.
    """

    image: Image.Image
    captions: tuple[str, ...]
    key: str


class SkipReport:
    """Counts of dropped records by reason, each with the first few culprits."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, reason: str, where: str, count: int = 1) -> None:
        """Count `count` dropped records."""
        self._count(reason, count, [where])

    def merge(self, other: SkipReport) -> None:
        """Count what another report counted, too: of another rank or another stage."""
        for reason, count in other.counts.items():
            self._count(reason, count, other.examples[reason])

    def _count(self, reason: str, count: int, examples: Sequence[str]) -> None:
        self.counts[reason] += count
        known = self.examples.setdefault(reason, [])
        known.extend(map(printable, examples[: EXAMPLES_PER_REASON - len(known)]))

    @property
    def total(self) -> int:
        """Number of dropped records over all reasons."""
        return self.counts.total()

    @property
    def judged(self) -> int:
        """The same without ACCEPTED_REASONS: what `require_usable` looks at."""
        return sum(n for reason, n in self.counts.items() if reason not in ACCEPTED_REASONS)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """{reason: {"count": n, "examples": [where, ...]}}: plain, for JSON and other ranks."""
        return {
            reason: {"count": count, "examples": list(self.examples[reason])}
            for reason, count in self.counts.items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, dict[str, Any]]) -> SkipReport:
        """Inverse of to_dict."""
        report = cls()
        for reason, entry in values.items():
            report._count(reason, entry["count"], entry["examples"])
        return report

    def __str__(self) -> str:
        """One line: "3 skipped: 2 truncated (e.g. a.jpg), 1 empty caption (e.g. b.jpg)"."""
        if not self.counts:
            return "none skipped"
        parts = [
            f"{count:,} {reason} (e.g. {self.examples[reason][0]})"
            for reason, count in self.counts.most_common()
        ]
        return f"{self.total:,} skipped: " + ", ".join(parts)


def require_usable(seen: int, skipped: SkipReport, max_share: float, source: str = "") -> None:
    """Raise TooManyBadRecords where more than max_share of the records seen were bad.

    seen: records looked at, good and bad; of a source just opened `len(pairs) +
    pairs.skipped.judged`, of a loader steps times batch size, over all ranks. max_share: from 0
    (none may be bad) to 1 (no limit). source: opens the message.

    Not counted are ACCEPTED_REASONS. Raises ValueError for a max_share outside [0, 1].
    """
    if not 0 <= max_share <= 1:
        raise ValueError(f"max_share must be between 0 and 1, got {max_share}")
    if skipped.judged > max_share * seen:
        raise TooManyBadRecords(
            f"{source + ': ' if source else ''}{skipped.judged:,} of {seen:,} records are bad "
            f"({skipped.judged / max(seen, 1):.1%}), more than the {max_share:.1%} allowed; "
            f"{skipped}. See what is wrong with `python -m cyclip_ext.data verify`, or allow more "
            "(max_share, --max-skipped)"
        )


class Pairs(Dataset[Record]):
    """Map-style source of records; holds no position, so any order of access is as good.

    `pairs[i]` raises BadRecord where record i cannot be used: nothing is ever put in place of a
    missing picture. Transforms are applied outside.
    """

    source: str  # what was opened, for messages
    skipped: SkipReport  # what opening already dropped; such records have no index

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Record: ...

    def reduced(self, index: int, side: int) -> Record:
        """Record `index`, its picture possibly decoded smaller, but not below `side` either way.

        For who scales it down anyway; sources that decode files save time here.
        """
        return self[index]


class Part(Pairs):
    """Some records of another source, by index."""

    def __init__(self, pairs: Pairs, indices: Sequence[int] | npt.NDArray[np.int64]) -> None:
        self.pairs = pairs
        self.indices = np.asarray(indices, dtype=np.int64)  # 12 million ints are 400 MB in a list
        self.source = pairs.source
        self.skipped = pairs.skipped

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.pairs[int(self.indices[index])]

    def reduced(self, index: int, side: int) -> Record:
        """See Pairs.reduced."""
        return self.pairs.reduced(int(self.indices[index]), side)


def clean_caption(text: str) -> str:
    """The caption on one line: runs of white space become one space, the ends are trimmed.

    Byte order marks are dropped: files with one that were joined have them in the middle.
    """
    return " ".join(text.replace("\ufeff", "").split())


def printable(text: str) -> str:
    """text with bytes that were no UTF-8 spelt out: printing them as they are would raise."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def is_text(text: str) -> bool:
    """Whether text was UTF-8: read with "surrogateescape", other bytes cannot be written again.

    UTF-16 without a byte order mark passes for UTF-8, with a NUL beside each Latin letter: no
    caption has one.
    """
    if "\0" in text:
        return False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
