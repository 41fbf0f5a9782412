"""The whole report, written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..outcome import Outcome
from .drawing import can_draw, draw
from .markdown import markdown
from .model import About, sections
from .names import file_stem
from .page import page
from .results import as_csv, as_json, record

NO_PLOTS = "No plots: matplotlib is missing (pip install 'cyclip_ext[eval]')."
PARTS = ("plots", "tables", "records")  # folders that belong to the report alone
RESULTS = "results.json"


def write_report(folder: Path, about: About, outcomes: Sequence[Outcome]) -> None:
    """Write results.json, records/, tables/, plots/, report.md and report.html into `folder`.

    results.json is the list of all records, records/ has each by itself as `clip_benchmark build`
    reads them. tables/ has every table whole, as CSV. A former report there is replaced; other
    files stay. Without matplotlib there are no plots, and a line says so.

    Everything is made beside the target first and then moved: an error on the way leaves the former
    report as it was.

    Raises ValueError for no outcomes, or two of one data set and task; OSError where the folder
    cannot be written or as require_writable does.
    """
    require_writable(folder)
    if not outcomes:
        raise ValueError("outcomes is empty: there is nothing to report")
    grouped = sections(outcomes)
    plots: dict[str, bytes] = {}
    if can_draw():
        plots = {file_stem(o, plot.name): draw(plot) for o in outcomes for plot in o.plots}
    note = "" if plots or not any(o.plots for o in outcomes) else NO_PLOTS
    records = {file_stem(o, ""): record(about, o) for o in outcomes}
    files = {
        **{f"plots/{stem}.png": content for stem, content in plots.items()},
        **{
            f"tables/{file_stem(o, str(number))}.csv": as_csv(table)
            for o in outcomes
            for number, table in enumerate(o.tables, 1)
        },
        **{f"records/{stem}.json": as_json(content) for stem, content in records.items()},
        "report.md": markdown(about, grouped, plots, note).encode(),
        "report.html": page(about, grouped, plots, note).encode(),
        RESULTS: as_json(list(records.values())),
    }
    _write(folder, files)


def require_writable(folder: Path) -> None:
    """Before hours of measuring: raises OSError where `folder` cannot take a report.

    That is a file or not writable, or has folders of the report's names without its results.json:
    a report replaces them, and these are somebody's own.
    """
    place = folder
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise OSError(f"no report can be written into {folder}: {place} is no writable folder")
    own = [part for part in PARTS if (folder / part).exists()]
    if own and not (folder / RESULTS).exists():
        raise FileExistsError(
            f"{folder} has {', '.join(own)} but no {RESULTS}: a report would replace what is not "
            "of a report; choose another folder"
        )


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
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
