"""Numbers as a reader wants them: shares in percent, one number of digits in a column, dashes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from ..outcome import Cell, Table

DASH = "-"

NAMES = {  # where the key says too little
    "mean_per_class_recall": "per-class recall",
    "acc1_all_names": "top-1, all names",
    "acc1_shifted": "top-1, mean of the shifted sets",
    "text_acc": "text score",
    "image_acc": "image score",
    "acc": "group score",
    "uniformity_image": "uniformity of pictures",
    "uniformity_text": "uniformity of texts",
    "uniformity_cross": "uniformity between the two",
    "cyclip_alignment": "CyCLIP's alignment",
    "cyclip_uniformity": "CyCLIP's uniformity",
    "centroid_cosine": "cosine between the two means",
    "cosine_image": "mean cosine of two pictures",
    "cosine_text": "mean cosine of two texts",
    "complete_captions": "captions that name all",
    "complete_images": "pictures whose captions name all",
}
_PATTERNS = (
    (r"acc(\d+)", r"top-\1"),
    (r"(fine|coarse)_acc(\d+)/(.+)", r"\3, \1 top-\2"),
    (r"acc(\d+)/(.+)", r"top-\1, \2"),
    (r"acc1_drop/(.+)", r"drop, \1"),
    (r"effective_robustness/(.+)", r"effective robustness, \1"),
    (r"image_retrieval_recall@(\d+)", r"text to image R@\1"),
    (r"text_retrieval_recall@(\d+)", r"image to text R@\1"),
    (r"image_retrieval_median_rank", "text to image median rank"),
    (r"text_retrieval_median_rank", "image to text median rank"),
    (r"consistency@(\d+)", "consistency, k\u00a0=\u00a0\\1"),
    (r"(lp|knn)_acc(\d+)", r"top-\2"),
    (r"(lp|knn)_mean_per_class_recall", "per-class recall"),
    (r"effective_rank_image", "effective rank of pictures"),
    (r"effective_rank_text", "effective rank of texts"),
    (r"directions_(\d+)_image", r"directions with \1% of the pictures' variance"),
    (r"directions_(\d+)_text", r"directions with \1% of the texts' variance"),
    (r"(cross|in_modal)_gap_rms", r"\1 gap, root mean square"),
    (r"(cross|in_modal)_gap_q(\d+)", r"\1 gap, \2% are below"),
    (r"positive_margin_share@(\d+)", r"positive, batches of \1"),
    (r"margin_mean@(\d+)", r"mean margin, batches of \1"),
)
_SHARES = re.compile(
    r"(.+_)?acc\d*(_drop|_all_names|_shifted)?(/.*)?|effective_robustness/.*|.*_?recall(@\d+)?"
    r"|consistency@\d+|.*_share(@\d+)?|complete_\w+"
)


def name_of(metric: str) -> str:
    """A metric's name in a report, without its unit."""
    if metric in NAMES:
        return NAMES[metric]
    for pattern, name in _PATTERNS:
        if re.fullmatch(pattern, metric):
            return re.sub(pattern, name, metric).replace("in_modal", "in-modal")
    return metric.replace("_", " ")


def is_share(metric: str) -> bool:
    """Whether a metric is between 0 and 1 and shown in percent."""
    return _SHARES.fullmatch(metric) is not None


def shown(metric: str, value: float) -> str:
    """One metric with its unit."""
    if not math.isfinite(value):
        return DASH
    if is_share(metric):
        return f"{100 * value:.1f}%"
    if abs(value) >= 1000 or (value == int(value) and abs(value) >= 10):
        return f"{value:,.1f}".removesuffix(".0")
    return f"{value:.4g}"


def metric_table(title: str, rows: Sequence[tuple[str, dict[str, float]]]) -> Table:
    """Data sets against metrics; of a single set metric and value, one below the other.

    Metrics are in the order in which they first come.
    """
    if len(rows) == 1:
        ((_, own),) = rows
        pairs = tuple((name_of(m), shown(m, value)) for m, value in own.items())
        return Table(title, ("measure", "value"), pairs)
    metrics = list(dict.fromkeys(name for _, own in rows for name in own))
    percent = all(map(is_share, metrics))
    units = [" (%)" if is_share(m) and not percent else "" for m in metrics]
    header = ("data set", *(name_of(m) + unit for m, unit in zip(metrics, units, strict=True)))
    cells: list[tuple[Cell, ...]] = []
    for dataset, own in rows:
        scales = {m: 100.0 if is_share(m) else 1.0 for m in metrics}
        cells.append((dataset, *(scales[m] * own.get(m, math.nan) for m in metrics)))
    return Table(title, header, tuple(cells), "In percent." if percent else "")


def columns(table: Table) -> list[tuple[bool, list[str]]]:
    """Every column of a table: whether it holds numbers, and its cells as text."""
    return [_column([row[index] for row in table.rows]) for index in range(len(table.header))]


def _column(cells: Sequence[Cell]) -> tuple[bool, list[str]]:
    floats = [abs(cell) for cell in cells if isinstance(cell, float) and math.isfinite(cell)]
    digits = _digits(max(floats, default=0.0))
    numeric = not any(isinstance(cell, str) for cell in cells)
    return numeric, [_text(cell, digits) for cell in cells]


def _digits(largest: float) -> int:
    """Decimals that leave the largest number of a column three figures, and none more than four."""
    if largest == 0:
        return 1
    return min(4, max(1, 2 - math.floor(math.log10(largest))))


def _text(cell: Cell, digits: int) -> str:
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return DASH
    if isinstance(cell, float):
        text = f"{cell:,.{digits}f}"
        return text.removeprefix("-") if float(cell) < 0 and not text.strip("-0.,") else text
    return f"{cell:,}" if isinstance(cell, int) else cell
