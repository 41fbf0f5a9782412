"""Count records that cannot be used: `BadRecord`, and the `SkipReport` that counts them."""

from __future__ import annotations

from collections import Counter
from typing import Any

EXAMPLES_PER_REASON = 3  # enough to find the cause, few enough to print

# Reasons that are counted but do not stop a run: a third of CC3M's addresses are dead, and the
# records of a manifest were checked when it was written.
NOT_DOWNLOADED = "not downloaded"
IN_MANIFEST = "listed in the manifest"
NO_ROW = "image of no row"
ACCEPTED_REASONS = frozenset({NOT_DOWNLOADED, NO_ROW, IN_MANIFEST})


def printable(text: str) -> str:
    """Escape bytes that are not UTF-8 (surrogates), which would raise when printed."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class MissingData(RuntimeError):
    """Raised if a dataset is not installed; the message has the command that installs it."""


class TooManyBadRecords(ValueError):
    """Raised if more records are bad than allowed; the message has counts and examples."""


class BadRecord(Exception):
    """One record that cannot be used.

    reason: a short phrase that is counted ("truncated", "empty caption"). where: names the record
    for a human (a path, or a member inside an archive).
    """

    def __init__(self, reason: str, where: str) -> None:
        where = printable(where)
        # Both go to Exception so that the error survives pickling out of a worker process.
        super().__init__(reason, where)
        self.reason = reason
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class SkipReport:
    """Counts of skipped records by reason, each with the first few examples."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, reason: str, where: str, count: int = 1) -> None:
        """Count `count` skipped records, of which `where` names one."""
        self.counts[reason] += count
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES_PER_REASON:
            examples.append(printable(where))

    def copy(self) -> SkipReport:
        """Return a report with the same counts and examples."""
        return SkipReport.from_dict(self.to_dict())

    def merge(self, other: SkipReport) -> None:
        """Add the counts of another report, such as that of another rank."""
        for reason, count in other.counts.items():
            for where in other.examples[reason]:
                self.add(reason, where, 0)
            self.counts[reason] += count

    @property
    def total(self) -> int:
        """Number of skipped records over all reasons."""
        return self.counts.total()

    @property
    def judged(self) -> int:
        """Number of skipped records without ACCEPTED_REASONS, which `require_usable` compares."""
        return sum(n for reason, n in self.counts.items() if reason not in ACCEPTED_REASONS)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return {reason: {"count": n, "examples": [where, ...]}} for JSON and other ranks."""
        return {
            reason: {"count": count, "examples": list(self.examples[reason])}
            for reason, count in self.counts.items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, dict[str, Any]]) -> SkipReport:
        """Invert to_dict."""
        report = cls()
        report.counts.update({reason: entry["count"] for reason, entry in values.items()})
        report.examples = {reason: list(entry["examples"]) for reason, entry in values.items()}
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


def require_usable(seen: int, skipped: SkipReport, max_share: float, name: str = "") -> None:
    """Raise TooManyBadRecords if more than max_share of the records seen were bad.

    seen: records examined, good and bad. For a dataset just opened: `dataset.entries() +
    dataset.skipped.judged`; for a loader: steps times batch size, over all ranks. max_share: from 0
    (none may be bad) to 1 (no limit). name: opens the message. ACCEPTED_REASONS are not counted.

    Raises ValueError for a max_share outside [0, 1].
    """
    if not 0 <= max_share <= 1:
        raise ValueError(f"max_share must be between 0 and 1, got {max_share}")
    if skipped.judged > max_share * seen:
        raise TooManyBadRecords(
            f"{name + ': ' if name else ''}{skipped.judged:,} of {seen:,} records are bad "
            f"({skipped.judged / max(seen, 1):.1%}), more than the {max_share:.1%} allowed; "
            f"{skipped}. List them with `cyclip-data verify`, or allow more "
            "(max_share, --max-skipped)"
        )
