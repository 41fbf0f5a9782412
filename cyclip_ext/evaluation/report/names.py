"""Names of files."""

from __future__ import annotations

import re

from ..outcome import Outcome


def file_stem(outcome: Outcome, name: str) -> str:
    """Of a file of an outcome, without suffix: letters, digits, points and hyphens.

    name: of the plot or table; "": of the record.
    """
    parts = [outcome.dataset, outcome.task, *([name] if name else [])]
    return re.sub(r"[^\w.]+", "-", "-".join(parts)).strip("-.")
