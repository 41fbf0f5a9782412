"""The folder of a report: results.json, report.md, report.html, plots and tables.

Nothing is measured here. How a number is shown follows from the Unit of its Metric.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .._plotting import png
from ..data import BadRecord
from ..data.skips import printable
from .embeddings import Embeddings
from .tables import ShownTable, escape, markdown_table, metric_table, show, show_value, table_csv
from .tasks import Example, Item, TaskResult
from .tasks.base import THUMBNAIL

PARTS = ("plots", "tables", "records")  # folders that belong to the report alone
RESULTS = "results.json"

FEW_METRICS = 8  # more, of a single dataset, are folded if tables below break them down
LONGEST_TEXT = 160  # characters of a caption in an example
LONGEST_STEM = 100  # bytes of a dataset's name in names of files


@dataclass(frozen=True)
class About:
    """Description of the evaluated model, for the report.

    model, pretrained: as in CLIP_benchmark's records. title: of the report. facts: further
    names and values for the reader. main: the dataset whose numbers are at the top, if a
    task has it; else each task's first. A fact under the name of a dataset follows its counts.
    """

    model: str
    pretrained: str
    title: str
    facts: Mapping[str, str] = field(default_factory=dict)
    main: str = ""


def write_report(folder: Path, about: About, results: Sequence[TaskResult]) -> None:
    """Write results.json, records/, tables/, plots/, report.md and report.html into `folder`.

    results.json is the list of all records, records/ has each by itself as `clip_benchmark build`
    reads them. tables/ has every table with all rows, as CSV. A former report is replaced; other
    files stay.

    Everything is written beside the target first and then moved, so that an error on the way leaves
    the former report unchanged.

    Raises ValueError without results, or for two of one dataset and task; OSError if the folder
    cannot be written, and as require_writable.
    """
    require_writable(folder)
    if not results:
        raise ValueError("results must have at least one TaskResult, got none")
    plots = {_stem(r, plot.name): png(plot.draw, plot.size) for r in results for plot in r.plots}
    thumbnails = _thumbnails(results)
    records: dict[str, dict[str, Any]] = {}
    for result in results:
        stem = _stem(result)
        if stem in records:
            raise ValueError(
                f"two results are of task {result.task!r} on {result.dataset!r}; give the datasets "
                "different names, or drop one result"
            )
        records[stem] = record(about, result)
    texts = {
        **{
            f"tables/{_stem(result, str(number))}.csv": table_csv(table)
            for result in results
            for number, table in enumerate(result.tables, 1)
        },
        **{f"records/{stem}.json": _json(content) for stem, content in records.items()},
        "report.md": _markdown(about, results, thumbnails),
        "report.html": _page(about, results, plots, thumbnails),
        RESULTS: _json(list(records.values())),
    }
    files = {f"plots/{stem}.png": content for stem, content in plots.items()}
    files |= {f"plots/{each.stem}.jpg": each.content for each in thumbnails.values()}
    _replace(folder, files | {name: text.encode() for name, text in texts.items()})


@dataclass(frozen=True)
class Thumbnail:
    """A small JPEG file, and the stem of its name."""

    stem: str
    content: bytes


def _thumbnails(results: Sequence[TaskResult]) -> dict[Item, Thumbnail]:
    """Load the images of all galleries, except those that no longer exist."""
    found: dict[Item, Thumbnail] = {}
    for result in results:
        shown = (
            item
            for gallery in result.galleries
            for example in gallery.examples
            for item in (example.query, *(item for item, _, _ in example.nearest))
        )
        for item in shown:
            if item.load is None:
                continue
            try:
                image = item.load()
            except (BadRecord, OSError):
                continue
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            file = io.BytesIO()
            image.save(file, "JPEG", quality=85)
            found[item] = Thumbnail(_stem(result, f"example-{len(found)}"), file.getvalue())
    return found


def require_writable(folder: Path) -> None:
    """Raise OSError, before anything is measured, if `folder` cannot take a report.

    That is a file or not writable, or has folders of the report's names without its results.json:
    a report would replace them, and they do not belong to one.
    """
    place = folder
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise OSError(
            f"no report can be written into {folder}: {place} is not a writable folder; choose "
            "another folder"
        )
    own = [part for part in PARTS if (folder / part).exists()]
    if own and not (folder / RESULTS).exists():
        raise FileExistsError(
            f"{folder} has {', '.join(own)} but no {RESULTS}, so they are not part of a report, "
            "which would replace them; choose another folder"
        )


def check_names(names: Iterable[str]) -> None:
    """Raise ValueError, before anything is measured, for datasets whose files would have one name.

    Only letters, digits, points, hyphens and underscores of a name are used, and some file systems
    do not distinguish upper and lower case.
    """
    stems: dict[str, str] = {}
    for name in names:
        stem = _file_name(name).casefold()
        if stem in stems:
            raise ValueError(
                f"the datasets {stems[stem]!r} and {name!r} would have the same file names "
                f"({stem}) in the report; rename one of them, for example by a link to its folder"
            )
        stems[stem] = name


def _replace(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f".report.{os.getpid()}.tmp"
    try:
        for name, content in files.items():
            path = made / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        for name in files:
            if "/" not in name:
                (made / name).replace(folder / name)
        for part in PARTS:
            if (folder / part).exists():
                (folder / part).rename(made / f"former-{part}")
            if (made / part).exists():
                (made / part).rename(folder / part)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _stem(result: TaskResult, name: str = "") -> str:
    """Return the stem of a file of a result: the record, or the plot or table `name`."""
    return "-".join(filter(None, (_file_name(result.dataset), result.task, _file_name(name))))


def _file_name(name: str) -> str:
    """Return a name with letters, digits, points and hyphens only; long ones end in a digest."""
    text = re.sub(r"[^\w.]+", "-", name).strip("-.")
    if len(text.encode()) <= LONGEST_STEM:
        return text
    cut = text.encode()[:LONGEST_STEM].decode(errors="ignore")
    return f"{cut}-{blake2b(text.encode(), digest_size=4).hexdigest()}"


# -------------------------------------------------------------------- numbers for programs


def record(about: About, result: TaskResult) -> dict[str, Any]:
    """Return one result in CLIP_benchmark's form, and the counts of its datasets in `data`.

    A number that is not finite is null: JSON has no NaN, and readers of the file would fail.
    """
    return {
        "dataset": result.dataset,
        "model": about.model,
        "pretrained": about.pretrained,
        "task": result.task,
        "metrics": {
            key: value if math.isfinite(value) else None for key, value in result.values.items()
        },
        "language": "en",
        "data": {
            data.name: {"used": data.used, "total": data.total, "skipped": data.skipped.to_dict()}
            for data in result.data
        },
    }


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


# -------------------------------------------------------------------- numbers for readers


@dataclass(frozen=True)
class Section:
    """All results of one title; the datasets are in the order of their measurement."""

    title: str
    anchor: str
    results: tuple[TaskResult, ...]

    @property
    def explanations(self) -> tuple[str, ...]:
        """How to read the numbers, each sentence once."""
        return tuple(dict.fromkeys(result.explanation for result in self.results))

    def numbers(self) -> ShownTable | None:
        """Tabulate the values of all datasets."""
        measured = [result for result in self.results if result.values]
        return show(metric_table(f"{self.title}: all numbers", measured)) if measured else None

    @property
    def fold_numbers(self) -> bool:
        """Whether the table of values is long and broken down by tables below it."""
        (first, *others) = self.results
        return not others and len(first.values) > FEW_METRICS and bool(first.tables)


def _sections(results: Sequence[TaskResult]) -> list[Section]:
    groups: dict[str, list[TaskResult]] = {}
    for result in results:
        groups.setdefault(result.title, []).append(result)
    return [
        Section(title, f"section-{number}", tuple(own))
        for number, (title, own) in enumerate(groups.items(), 1)
    ]


def _facts(about: About, results: Sequence[TaskResult]) -> dict[str, str]:
    """Return the facts, with the counts of every dataset before a fact under its name."""
    facts = dict(about.facts)
    datasets = {data.name: data for result in results for data in result.data}
    for name, data in datasets.items():
        facts[name] = "; ".join(filter(None, (describe_data(data), about.facts.get(name))))
    return facts


def describe_data(data: Embeddings) -> str:
    """Return the counts of a dataset: "12 images used, 8 skipped: 8 truncated (e.g. x)"."""
    noun = "images" if data.quadruple_tags is None else "quadruples"
    text = f"{data.used:,} {noun}"
    if data.skipped.total:
        text = f"{data.used:,} {noun} used, {data.skipped}"
    elif data.classes:
        text += f", {len(data.classes):,} classes"
    return text


# -------------------------------------------------------------------------------- report.md


def _markdown(
    about: About, results: Sequence[TaskResult], thumbnails: Mapping[Item, Thumbnail]
) -> str:
    lines = [f"# {escape(about.title)}", ""]
    facts = _facts(about, results)
    lines += [f"- {escape(name)}: {escape(value)}" for name, value in facts.items()]
    lines.append("")
    for section in _sections(results):
        lines += [f"## {escape(section.title)}", "", *map(escape, section.explanations), ""]
        numbers = section.numbers()
        if numbers is not None:
            lines += markdown_table(numbers)
        for result in section.results:
            for gallery in result.galleries:
                lines += [f"### {escape(result.dataset)}: {escape(gallery.title)}", ""]
                lines += [_markdown_example(each, thumbnails) for each in gallery.examples]
                lines.append("")
            for plot in result.plots:
                caption = escape(plot.caption)
                lines += [f"![{caption}](plots/{_stem(result, plot.name)}.png)", "", caption, ""]
            for number, table in enumerate(result.tables, 1):
                lines += [f"### {escape(result.dataset)}: {escape(table.title)}", ""]
                lines += markdown_table(show(table, f"tables/{_stem(result, str(number))}.csv"))
    return "\n".join(lines).rstrip() + "\n"


def _cut(text: str) -> str:
    text = printable(text)
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def _markdown_example(example: Example, thumbnails: Mapping[Item, Thumbnail]) -> str:
    def shown(item: Item) -> str:
        text = escape(_cut(item.text))
        known = thumbnails.get(item)
        return text if known is None else f"![{text}](plots/{known.stem}.jpg)"

    found = "; ".join(
        f"{shown(item)} {cosine:.2f}{' ✓' if right else ''}"
        for item, cosine, right in example.nearest
    )
    query = escape(_cut(example.query.text))
    image = "" if example.query.load is None else f"{shown(example.query)} "
    return f"- {image}{query}: {found}"


# ------------------------------------------------------------------------------ report.html


def _page(
    about: About,
    results: Sequence[TaskResult],
    plots: Mapping[str, bytes],
    thumbnails: Mapping[Item, Thumbnail],
) -> str:
    """Return one file that needs neither network nor scripts, readable on phones and desktops."""
    sections = _sections(results)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cut"] = _cut
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    return environment.get_template("report.html.j2").render(
        title=about.title,
        facts=_facts(about, results),
        sections=sections,
        headlines=[tile for section in sections for tile in _headlines(about, section)],
        plots=plots,
        thumbnails=thumbnails,
        show=show,
        stem=_stem,
    )


def _headlines(about: About, section: Section) -> list[tuple[str, str, str]]:
    """Return value, label and origin of a section's metrics that are at the top of the page."""
    own = [result for result in section.results if result.dataset == about.main]
    (result, *_) = own or section.results
    origin = f"{section.title}, {result.dataset}"
    return [
        (show_value(metric, value), metric.label, origin)
        for metric, value in result.measured.items()
        if metric.headline
    ]
