"""The folder an evaluation leaves: results.json, report.md, report.html, plots, tables.

    model      what was evaluated, and how outcomes are grouped into sections
    numbers    names of metrics for a reader, digits, dashes
    names      of files
    excerpt    which rows of a long table are shown
    drawing    plots as PNG
    results    CLIP_benchmark's JSON, tables as CSV
    markdown   report.md
    page       report.html, one file; style.py is its CSS
    folder     everything at once, whole or not at all

Nothing here measures anything.
"""

from .folder import require_writable, write_report
from .model import About

__all__ = ["About", "require_writable", "write_report"]
