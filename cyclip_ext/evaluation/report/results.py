"""Numbers for programs: records in CLIP_benchmark's form, tables as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

from ..outcome import Outcome, Table
from .model import About


def record(about: About, outcome: Outcome) -> dict[str, Any]:
    """One result as CLIP_benchmark writes it.

    A number that is not finite is null: JSON has no word for it, and readers of the file would fail
    on NaN.
    """
    return {
        "dataset": outcome.dataset,
        "model": about.model,
        "pretrained": about.pretrained,
        "task": outcome.task,
        "metrics": {
            name: value if math.isfinite(value) else None for name, value in outcome.metrics.items()
        },
        "language": "en",
    }


def as_json(content: Any) -> bytes:
    """UTF-8 of valid JSON, indented."""
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def as_csv(table: Table) -> bytes:
    """UTF-8, comma separated, header first, numbers with all their digits, missing ones empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(table.header)
    for row in table.rows:
        writer.writerow([None if isinstance(c, float) and not math.isfinite(c) else c for c in row])
    return file.getvalue().encode()
