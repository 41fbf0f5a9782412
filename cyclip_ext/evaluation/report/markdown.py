"""report.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..outcome import Outcome, Table
from .excerpt import left_out, shown_rows
from .model import About, Section
from .names import file_stem
from .numbers import columns, metric_table


def markdown(
    about: About, sections: Sequence[Section], plots: Mapping[str, bytes], note: str
) -> str:
    """The report; plots: stem of each file in plots/ to its content. note: a line under facts."""
    lines = [f"# {_text(about.title)}", ""]
    lines += [f"- {_text(name)}: {_text(value)}" for name, value in about.facts.items()]
    lines += ["", note, ""] if note else [""]
    for section in sections:
        lines += [f"## {_text(section.title)}", "", *map(_text, section.readings), ""]
        measured = [(o.dataset, o.metrics) for o in section.outcomes if o.metrics]
        if measured:
            lines += table_lines(metric_table("", measured), "")
        for outcome in section.outcomes:
            lines += _details(outcome, plots)
    return "\n".join(lines).rstrip() + "\n"


def _details(outcome: Outcome, plots: Mapping[str, bytes]) -> list[str]:
    lines = []
    for plot in outcome.plots:
        stem = file_stem(outcome, plot.name)
        if stem in plots:
            lines += [f"![{_text(plot.caption)}](plots/{stem}.png)", "", _text(plot.caption), ""]
    for number, table in enumerate(outcome.tables, 1):
        lines += [f"### {_text(outcome.dataset)}: {_text(table.title)}", ""]
        lines += table_lines(table, f"tables/{file_stem(outcome, str(number))}.csv")
    return lines


def table_lines(table: Table, file: str) -> list[str]:
    """A table without its title; file: where all rows are, if some are left out."""
    kinds = columns(table)
    lines = [
        "| " + " | ".join(map(_text, table.header)) + " |",
        "| " + " | ".join("---:" if numeric else "---" for numeric, _ in kinds) + " |",
    ]
    for index in shown_rows(table):
        cells = ["…"] * len(kinds) if index is None else [cells[index] for _, cells in kinds]
        lines.append("| " + " | ".join(map(_text, cells)) + " |")
    lines.append("")
    if left_out(table):
        lines += [f"{left_out(table):,} rows are left out; all are in {_text(file)}.", ""]
    if table.note:
        lines += [_text(table.note), ""]
    return lines


def _text(text: str) -> str:
    """Without what Markdown takes for itself."""
    for character in "\\`*_[]<>|#&~$":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
