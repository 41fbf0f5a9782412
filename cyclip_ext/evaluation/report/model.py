"""What a report is about, and its outcomes in sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..outcome import Outcome
from .names import file_stem


@dataclass(frozen=True)
class About:
    """What was evaluated.

    model, pretrained: as in CLIP_benchmark's records. title: of the report. facts: name and value
    of what a reader must know besides. main: the data set whose numbers stand at the top, where a
    task has it; else each task's first.
    """

    model: str
    pretrained: str
    title: str
    facts: Mapping[str, str] = field(default_factory=dict)
    main: str = ""


@dataclass(frozen=True)
class Section:
    """All outcomes of one title; data sets are in the order they were measured in."""

    title: str
    anchor: str
    outcomes: tuple[Outcome, ...]

    @property
    def readings(self) -> tuple[str, ...]:
        """How to read the numbers, each sentence once."""
        return tuple(dict.fromkeys(outcome.reading for outcome in self.outcomes))

    def main(self, dataset: str) -> Outcome:
        """That data set's outcome, the first where there is none."""
        own = [outcome for outcome in self.outcomes if outcome.dataset == dataset]
        return (own or self.outcomes)[0]


def sections(outcomes: Sequence[Outcome]) -> tuple[Section, ...]:
    """Outcomes by title, in the order in which titles come first.

    Raises ValueError where the files of two outcomes would overwrite each other.
    """
    groups: dict[str, list[Outcome]] = {}
    stems: set[str] = set()
    for outcome in outcomes:
        stem = file_stem(outcome, "")
        if stem in stems:
            raise ValueError(
                f"two outcomes have the files {stem}: task {outcome.task!r} on {outcome.dataset!r}"
            )
        stems.add(stem)
        groups.setdefault(outcome.title, []).append(outcome)
    return tuple(
        Section(title, f"section-{number}", tuple(own))
        for number, (title, own) in enumerate(groups.items(), 1)
    )
