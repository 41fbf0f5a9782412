"""report.html: one file that needs no network and no scripts, for a phone as for a desk."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from ..outcome import Outcome, Table
from .excerpt import left_out, shown_rows
from .model import About, Section
from .names import file_stem
from .numbers import columns, metric_table, name_of, shown
from .style import STYLE

OPEN_ROWS = 12  # a table of more rows is folded
SHORT = 16  # characters of a text that is kept on one line
FEW_METRICS = 8  # more, of a single set, are folded where tables below break them down

# The metrics that stand at the top, by task.
HEADLINES = {
    "zeroshot_classification": ("acc1", "acc5"),
    "consistency": ("consistency@1",),
    "zeroshot_retrieval": ("image_retrieval_recall@5", "text_retrieval_recall@5"),
    "linear_probe": ("lp_acc1",),
    "image_caption_selection": ("acc",),
}


def page(about: About, sections: Sequence[Section], plots: Mapping[str, bytes], note: str) -> str:
    """The whole file; plots: stem of each plot to its PNG. note: a line under the facts."""
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(about.title)}</title>",
        f"<style>{STYLE}</style>",
        "</head>",
        "<body>",
        "<header>",
        f"<h1>{escape(about.title)}</h1>",
        *_headlines(about, sections),
        "<dl>",
        *(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in about.facts.items()),
        "</dl>",
        *([f'<p class="note">{escape(note)}</p>'] if note else []),
        "</header>",
        '<nav aria-label="Contents"><h2>Contents</h2><ol>',
        *(f'<li><a href="#{s.anchor}">{escape(s.title)}</a></li>' for s in sections),
        "</ol></nav>",
        "<main>",
        *(line for section in sections for line in _section(section, plots)),
        "</main>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _headlines(about: About, sections: Sequence[Section]) -> list[str]:
    tiles = []
    for section in sections:
        outcome = section.main(about.main)
        for metric in HEADLINES.get(outcome.task, ()):
            if metric in outcome.metrics:
                value = shown(metric, outcome.metrics[metric])
                tiles.append(
                    f"<li><b>{escape(value)}</b><span>{escape(name_of(metric))}</span>"
                    f'<span class="soft">{escape(section.title)}, {escape(outcome.dataset)}'
                    "</span></li>"
                )
    return ['<ul class="tiles">', *tiles, "</ul>"] if tiles else []


def _section(section: Section, plots: Mapping[str, bytes]) -> list[str]:
    lines = [
        f'<section aria-labelledby="{section.anchor}">',
        f'<h2 id="{section.anchor}">{escape(section.title)}</h2>',
        *(f"<p>{escape(reading)}</p>" for reading in section.readings),
    ]
    lines += _metrics(section)
    for outcome in section.outcomes:
        lines += _details(outcome, plots)
    return [*lines, "</section>"]


def _metrics(section: Section) -> list[str]:
    measured = [(o.dataset, o.metrics) for o in section.outcomes if o.metrics]
    if not measured:
        return []
    table = metric_table(f"{section.title}: all numbers", measured)
    lines = _table(table, "")
    if len(measured) == 1 and len(table.rows) > FEW_METRICS and section.outcomes[0].tables:
        return ["<details><summary>All numbers in one table</summary>", *lines, "</details>"]
    return lines


def _details(outcome: Outcome, plots: Mapping[str, bytes]) -> list[str]:
    drawn = [(p, file_stem(outcome, p.name)) for p in outcome.plots]
    drawn = [(plot, stem) for plot, stem in drawn if stem in plots]
    if not drawn and not outcome.tables:
        return []
    lines = [f"<h3>{escape(outcome.dataset)}</h3>"]
    for plot, stem in drawn:
        content = base64.b64encode(plots[stem]).decode()
        width, height = (round(96 * inches) for inches in plot.size)
        label = f"Plot: {plot.name.replace('_', ' ')} of {outcome.dataset}, described below"
        lines += [
            "<figure>",
            f'<img src="data:image/png;base64,{content}" width="{width}" height="{height}" '
            f'alt="{escape(label)}">',
            f"<figcaption>{escape(plot.caption)}</figcaption>",
            "</figure>",
        ]
    for number, table in enumerate(outcome.tables, 1):
        body = _table(table, f"tables/{file_stem(outcome, str(number))}.csv")
        count = f" ({len(table.rows):,} rows)"
        if len(table.rows) > OPEN_ROWS:
            lines += [f"<details><summary>{escape(table.title)}{count}</summary>", *body]
            lines.append("</details>")
        else:
            lines += [f"<p><b>{escape(table.title)}</b></p>", *body]
    return lines


def _class(numeric: bool, cells: Sequence[str]) -> str:
    """Numbers stand to the right; short texts, an interval say, are not broken."""
    if numeric:
        return ' class="n"'
    return ' class="s"' if max(map(len, cells), default=0) <= SHORT else ""


def _table(table: Table, file: str) -> list[str]:
    kinds = columns(table)
    classes = [_class(numeric, cells) for numeric, cells in kinds]
    heads = "".join(
        f'<th scope="col"{kind}>{escape(head)}</th>'
        for head, kind in zip(table.header, classes, strict=True)
    )
    lines = [
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">',
        f"<table><thead><tr>{heads}</tr></thead><tbody>",
    ]
    for index in shown_rows(table):
        cells = ["…"] * len(kinds) if index is None else [cells[index] for _, cells in kinds]
        row = "".join(
            f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(cells, classes, strict=True)
        )
        lines.append(f"<tr>{row}</tr>")
    lines.append("</tbody></table></div>")
    notes = [table.note] if table.note else []
    if left_out(table):
        notes.append(f"{left_out(table):,} rows in the middle are left out; all are in {file}.")
    return [*lines, *(f'<p class="note">{escape(note)}</p>' for note in notes)]
