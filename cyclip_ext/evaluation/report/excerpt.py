"""Long tables are shown by their two ends."""

from __future__ import annotations

from collections.abc import Iterator

from ..outcome import Table

LONGEST = 30  # rows shown of a table, half of them from its end


def shown_rows(table: Table) -> Iterator[int | None]:
    """Indices of the rows to show; None where rows are left out."""
    count = len(table.rows)
    if count <= LONGEST:
        yield from range(count)
        return
    yield from range(LONGEST // 2)
    yield None
    yield from range(count - LONGEST // 2, count)


def left_out(table: Table) -> int:
    """How many rows are not shown."""
    return max(0, len(table.rows) - LONGEST)
