"""What every source of training pairs hands out, and how it accounts for what it had to drop."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from dataclasses import dataclass

from PIL import Image
from torch.utils.data import Dataset

EXAMPLES_PER_REASON = 3  # enough to find the culprit, few enough to print


class MissingData(RuntimeError):
    """A data set that is not installed; the message carries the command that installs it."""


class BadRecord(Exception):
    """One record that cannot be used.

    `reason` is a short phrase that is counted ("truncated", "empty caption"); `where` names the
    record for a human (a path, or a member inside an archive).
    """

    def __init__(self, reason: str, where: str) -> None:
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

    def add(self, reason: str, where: str) -> None:
        """Count one dropped record."""
        self.counts[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES_PER_REASON:
            examples.append(where)

    @property
    def total(self) -> int:
        """Number of dropped records over all reasons."""
        return self.counts.total()

    def __str__(self) -> str:
        """One line: "3 skipped: 2 truncated (e.g. a.jpg), 1 empty caption (e.g. b.jpg)"."""
        if not self.counts:
            return "none skipped"
        parts = [
            f"{count:,} {reason} (e.g. {self.examples[reason][0]})"
            for reason, count in self.counts.most_common()
        ]
        return f"{self.total:,} skipped: " + ", ".join(parts)


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


def clean_caption(text: str) -> str:
    """The caption on one line: runs of white space become one space, the ends are trimmed."""
    return " ".join(text.split())
