"""Numbers and tables as text, Markdown and CSV. A number is shown by the Unit of its Metric."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from .tasks import Cell, Metric, Table, TaskResult, Unit

DASH = "-"
LONGEST = 30  # rows shown of a table, half of them from its end
OPEN_ROWS = 12  # a table of more rows is folded
SHORT = 16  # characters of a text that is not wrapped

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # cells that a spreadsheet would compute


def show_value(metric: Metric, value: float) -> str:
    """Return a number with its unit."""
    if not math.isfinite(value):
        return DASH
    if metric.unit is Unit.SHARE:
        return f"{100 * value:.1f}%"
    if abs(value) >= 1000 or (value == int(value) and abs(value) >= 10):
        return f"{value:,.1f}".removesuffix(".0")
    return f"{value:.4g}"


def metric_table(title: str, results: Sequence[TaskResult]) -> Table:
    """Tabulate datasets against metrics; of a single dataset, metrics against values."""
    if len(results) == 1:
        pairs = tuple((m.label, show_value(m, v)) for m, v in results[0].measured.items())
        return Table(title, ("measure", "value"), pairs)
    metrics = {metric.key: metric for result in results for metric in result.measured}
    percent = all(metric.unit is Unit.SHARE for metric in metrics.values())
    columns: list[tuple[Cell, ...]] = [tuple(result.dataset for result in results)]
    header = ["dataset"]
    for key, metric in metrics.items():
        share = metric.unit is Unit.SHARE
        header.append(f"{metric.label} (%)" if share and not percent else metric.label)
        scale = 100.0 if share else 1.0
        columns.append(tuple(scale * result.values.get(key, math.nan) for result in results))
    rows = tuple(zip(*columns, strict=True))
    return Table(title, tuple(header), rows, "In percent." if percent else "")


@dataclass(frozen=True)
class ShownTable:
    """A table as text.

    kinds: CSS class of each column: n for numbers, s for short texts, which are not wrapped. rows:
    None stands for omitted rows. notes: lines under the table. count: rows of the whole table.
    """

    title: str
    header: tuple[str, ...]
    kinds: tuple[str, ...]
    rows: tuple[tuple[str, ...] | None, ...]
    notes: tuple[str, ...]
    count: int

    @property
    def folded(self) -> bool:
        """Whether the page shows it only on demand."""
        return self.count > OPEN_ROWS


def show(table: Table, file: str = "") -> ShownTable:
    """Convert a table to text; file: has all rows, if some are omitted."""
    columns = [_column([row[i] for row in table.rows]) for i in range(len(table.header))]
    rows: list[tuple[str, ...] | None] = list(zip(*columns, strict=True))
    notes = [table.note] if table.note else []
    if (count := len(rows)) > LONGEST:
        rows[LONGEST // 2 : -(LONGEST // 2)] = [None]
        notes.append(f"{count - LONGEST:,} rows in the middle are omitted; all are in {file}.")
    shown = list(filter(None, rows))
    kinds = []
    for i in range(len(table.header)):
        text = any(isinstance(row[i], str) for row in table.rows)
        short = max((len(row[i]) for row in shown), default=0) <= SHORT
        kinds.append("n" if not text else "s" if short else "")
    return ShownTable(table.title, table.header, tuple(kinds), tuple(rows), tuple(notes), count)


def _column(cells: Sequence[Cell]) -> list[str]:
    """Return the cells of a column as text, its floats with one number of digits."""
    floats = [abs(cell) for cell in cells if isinstance(cell, float) and math.isfinite(cell)]
    largest = max(floats, default=0.0)
    # Decimals that leave the largest number three figures, and none more than four.
    digits = min(4, max(1, 2 - math.floor(math.log10(largest)))) if largest else 1
    return [_cell(cell, digits) for cell in cells]


def _cell(cell: Cell, digits: int) -> str:
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return DASH
    if isinstance(cell, float):
        text = f"{cell:,.{digits}f}"
        return text.removeprefix("-") if float(cell) < 0 and not text.strip("-0.,") else text
    return f"{cell:,}" if isinstance(cell, int) else cell


def markdown_table(table: ShownTable) -> list[str]:
    """Return the lines of a table, without its title."""
    lines = [
        "| " + " | ".join(map(escape, table.header)) + " |",
        "| " + " | ".join("---:" if kind == "n" else "---" for kind in table.kinds) + " |",
    ]
    for row in table.rows:
        cells = ["…"] * len(table.header) if row is None else row
        lines.append("| " + " | ".join(map(escape, cells)) + " |")
    lines.append("")
    for note in table.notes:
        lines += [escape(note), ""]
    return lines


def escape(text: str) -> str:
    """Escape the characters that Markdown interprets."""
    for character in "\\`*_[]<>|#&~$":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def table_csv(table: Table) -> str:
    """Return comma-separated rows, header first, with all digits; missing numbers are empty.

    A text that a spreadsheet would take for a formula is preceded by an apostrophe.
    """

    def cell(value: Cell) -> Cell:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value

    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    for row in (table.header, *table.rows):
        writer.writerow(map(cell, row))
    return file.getvalue()
