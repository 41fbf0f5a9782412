"""The report: valid JSON, one HTML file that needs nothing, and nothing half written."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from cyclip_ext.evaluation.confusion import plot_confusion
from cyclip_ext.evaluation.outcome import Outcome, Plot, Table
from cyclip_ext.evaluation.report.drawing import draw
from cyclip_ext.evaluation.report.markdown import table_lines
from cyclip_ext.evaluation.report.numbers import columns, is_share, metric_table, name_of, shown

from cyclip_ext.evaluation.report import About, write_report

NASTY = '<b>&"pets|'
ABOUT = About("mini", "run.pt", f"Evaluation of {NASTY}", {"weights": NASTY}, "set/b")


def draws(figure: Any) -> None:
    figure.subplots().plot([0, 1], [1, 0])


def outcomes(draw: Any = draws) -> list[Outcome]:
    table = Table("Classes", ("class", "top-1 (%)"), ((NASTY, 50.0), ("dog", math.nan)), NASTY)
    long = Table("Long", ("n", "square"), tuple((i, float(i * i)) for i in range(100)))
    plot = Plot("confusion", f"What {NASTY} is taken for.", draw)
    classes = "zeroshot_classification"
    return [
        Outcome("set/a", classes, {"acc1": 0.125, "acc5": math.nan}, "Zero-shot", "How to read."),
        Outcome("set/b", classes, {"acc1": 0.75}, "Zero-shot", "How to read.", (table,), (plot,)),
        Outcome("set/b", "margins", {"margin_mean@16": -0.0625}, "Margins", NASTY, (long,)),
    ]


class Page(HTMLParser):
    """What a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.tags if name == tag)


def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_records_are_clip_benchmark_s(tmp_path: Path) -> None:
    """Wrong: its `build` and other readers of such files find no or other keys, or fail on NaN."""
    write_report(tmp_path, ABOUT, outcomes())

    def strict(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    records = json.loads((tmp_path / "results.json").read_text(), parse_constant=strict)
    assert records[0] == {
        "dataset": "set/a",
        "model": "mini",
        "pretrained": "run.pt",
        "task": "zeroshot_classification",
        "metrics": {"acc1": 0.125, "acc5": None},
        "language": "en",
    }
    single = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "records").iterdir()}
    assert list(single) != []
    assert [single[f"set-{r['dataset'][-1]}-{r['task']}"] for r in records] == records


def test_page_is_one_file_that_needs_nothing(tmp_path: Path) -> None:
    """Wrong: it is empty on a train, or asks a server who reads it."""
    write_report(tmp_path, ABOUT, outcomes())
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    found = page(tmp_path)
    for word in ("http:", "https:", "//", "@import", "url("):
        assert word not in text.replace("base64,", "").split("<style>")[1].split("</style>")[0]
        if word != "//":  # which base64 has
            assert word not in text, word
    names = [name for name, _ in found.tags]
    assert not {"script", "link", "iframe", "object", "base"} & set(names)
    assert all(str(each["src"]).startswith("data:image/png;base64,") for each in found.all("img"))
    assert any(each.get("name") == "viewport" for each in found.all("meta"))


def test_page_leads_a_reader(tmp_path: Path) -> None:
    """Wrong: a link to nowhere, a picture without words, a table that widens the whole page."""
    write_report(tmp_path, ABOUT, outcomes())
    found = page(tmp_path)
    anchors = {each["id"] for each in found.all("h2") if "id" in each}
    assert {f"#{name}" for name in anchors} == {each["href"] for each in found.all("a")}
    assert len(anchors) == 2  # sections, not outcomes
    assert all(each["alt"] for each in found.all("img"))
    scrolled = [each for each in found.all("div") if each.get("class") == "scroll"]
    assert len(scrolled) == len(list(found.all("table"))) == 4
    assert found.text.count("How to read.") == 1
    head = found.text.split("Contents")[0]
    assert "75.0%" in head  # of the main data set
    assert "12.5%" not in head


def test_names_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    """Wrong: a class called "<b>&" changes the page, or a "|" the table of report.md."""
    write_report(tmp_path, ABOUT, outcomes())
    found = page(tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<b>&" not in text
    assert found.text.count(NASTY) == 7  # title twice, fact, caption, class, note, reading
    rows = [line for line in (tmp_path / "report.md").read_text().splitlines() if "pets" in line]
    assert r"| \<b\>\&" + '"pets' + r"\| | 50.0 |" in rows
    (line, *_) = table_lines(Table("t", ("&lt; ~~x~~ $x$",), ()), "")
    assert line == r"| \&lt; \~\~x\~\~ \$x\$ |"


def test_names_are_no_formulas() -> None:
    """Wrong: a class called "$_$" stops the report, for matplotlib cannot parse it."""
    counts = torch.ones(2, 2, dtype=torch.int64)
    drawing = partial(plot_confusion, counts=counts, names=("$_$", "US$"))
    assert draw(Plot("confusion", "", drawing)).startswith(b"\x89PNG")


def test_numbers_have_their_units() -> None:
    assert shown("acc1", 0.12345) == "12.3%"
    assert shown("image_retrieval_median_rank", 12.0) == "12"
    assert shown("modality_gap", 0.123456) == "0.1235"
    assert shown("text_retrieval_median_rank", 12345.5) == "12,345.5"
    assert shown("acc1", math.nan) == "-"
    shares = "acc1 acc5/x consistency@3 image_retrieval_recall@5 mean_per_class_recall text_acc"
    assert all(map(is_share, [*shares.split(), "lp_acc1", "coarse_acc1/group", "acc1_drop/x"]))
    others = (
        "modality_gap uniformity_image image_retrieval_median_rank margin_mean@16 cross_gap_q50"
    )
    assert not any(map(is_share, others.split()))
    assert name_of("text_retrieval_recall@5") == "image to text R@5"


def test_table_of_sets_has_what_each_has() -> None:
    """Wrong: a set without a metric shifts the numbers of its row."""
    table = metric_table("t", [("a", {"acc1": 0.5}), ("b", {"gap": 2.0, "acc1": 0.25})])
    assert table.header == ("data set", "top-1 (%)", "gap")
    assert [cells for _, cells in columns(table)] == [["a", "b"], ["50.0", "25.0"], ["-", "2.00"]]
    assert [numeric for numeric, _ in columns(table)] == [False, True, True]


def test_small_numbers_keep_their_digits() -> None:
    """Wrong: a column of margins reads 0.0, or minus nothing."""
    table = Table("t", ("x",), ((0.0123,), (-0.00001,), (1234567,)))
    assert columns(table) == [(True, ["0.0123", "0.0000", "1,234,567"])]


def test_long_tables_are_whole_in_their_files(tmp_path: Path) -> None:
    """Wrong: the page has a hundred rows of no interest, or they are nowhere."""
    write_report(tmp_path, ABOUT, outcomes())
    found = page(tmp_path)
    assert "9,801.0" in found.text
    assert "2,500.0" not in found.text
    assert "70 rows in the middle are left out; all are in tables/set-b-margins-1.csv" in found.text
    with (tmp_path / "tables/set-b-margins-1.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["n", "square"]
    assert rows[51] == ["50", "2500.0"]
    assert len(rows) == 101
    with (tmp_path / "tables/set-b-zeroshot_classification-1.csv").open(newline="") as file:
        assert list(csv.reader(file))[1:] == [[NASTY, "50.0"], ["dog", ""]]


def test_without_matplotlib_there_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong: no report at all, or one whose plots are missing without a word."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_report(tmp_path, ABOUT, outcomes())
    for name in ("report.html", "report.md"):
        assert "No plots: matplotlib is missing" in (tmp_path / name).read_text()
    assert not list(page(tmp_path).all("img"))
    assert not (tmp_path / "plots").exists()


def test_error_leaves_the_former_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong: half of the new numbers stand beside half of the old ones."""
    write_report(tmp_path, ABOUT, outcomes())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fails(figure: Any) -> None:
        raise RuntimeError("cannot be drawn")

    with pytest.raises(RuntimeError, match="cannot be drawn"):
        write_report(tmp_path, ABOUT, outcomes(fails)[1:])
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name == "report.html":
            raise OSError("disk full")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path, ABOUT, outcomes()[1:])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_former_plots_and_tables_go(tmp_path: Path) -> None:
    """Wrong: a picture of other weights lies in the folder; or files of others are deleted."""
    (tmp_path / "notes.txt").write_text("mine")
    write_report(tmp_path, ABOUT, outcomes())
    write_report(tmp_path, ABOUT, outcomes()[:1])
    assert {path.name for path in tmp_path.iterdir()} == {
        *("notes.txt", "records", "report.md", "report.html", "results.json")
    }


def test_folders_that_are_not_a_report_s_stay(tmp_path: Path) -> None:
    """Wrong: `--output .` deletes the plots of somebody's own."""
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots/mine.png").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"has plots but no results.json"):
        write_report(tmp_path, ABOUT, outcomes())
    assert [path.name for path in tmp_path.rglob("*")] == ["plots", "mine.png"]


def test_error_while_files_are_moved_keeps_the_former_plots(tmp_path: Path) -> None:
    """Wrong: the former plots are deleted, and no new ones are there."""
    write_report(tmp_path, ABOUT, outcomes())
    plots = [path.name for path in (tmp_path / "plots").iterdir()]
    (tmp_path / "report.html").unlink()
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError, match=r"report\.html"):
        write_report(tmp_path, ABOUT, outcomes()[:1])
    assert [path.name for path in (tmp_path / "plots").iterdir()] == plots


def test_outcomes_whose_files_collide_are_refused(tmp_path: Path) -> None:
    """Wrong: of two sets called alike the report has the record of one."""
    with pytest.raises(ValueError, match="outcomes is empty"):
        write_report(tmp_path, ABOUT, [])
    one = Outcome("a/b", "t", {}, "T", "")
    for other in ("a/b", "a-b"):
        with pytest.raises(ValueError, match=r"task 't' on 'a.b'"):
            write_report(tmp_path, ABOUT, [one, Outcome(other, "t", {}, "U", "")])
    assert not list(tmp_path.iterdir())
