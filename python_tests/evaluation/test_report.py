"""The report: valid JSON, one self-contained HTML page, and an atomic replacement of the folder."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cyclip_ext.data import BadRecord, SkipReport
from cyclip_ext.evaluation.embeddings import Embeddings
from cyclip_ext.evaluation.report import About, check_names, describe_data, write_report
from cyclip_ext.evaluation.tables import markdown_table, show, show_value
from cyclip_ext.evaluation.tasks import (
    Example,
    Gallery,
    Item,
    Metric,
    Plot,
    Table,
    TaskResult,
    Unit,
)

NASTY = '<b>&"pets|'
ABOUT = About("mini", "run.pt", f"Evaluation of {NASTY}", {"weights": NASTY}, "set/b")

ACC1 = Metric("acc1", "top-1", Unit.SHARE, headline=True)
ACC5 = Metric("acc5", "top-5", Unit.SHARE)
GAP = Metric("modality_gap", "modality gap")
MARGIN = Metric("margin_mean@16", "mean margin, batches of 16")


def embeddings(name: str, **options: Any) -> Embeddings:
    return Embeddings(torch.eye(12), name=name, **options)


@pytest.fixture
def results() -> Callable[..., list[TaskResult]]:
    def make(draws: Any = lambda figure: figure.subplots().plot([0, 1], [1, 0])) -> Any:
        table = Table("Classes", ("class", "top-1 (%)"), ((NASTY, 50.0), ("dog", math.nan)), NASTY)
        long = Table("Long", ("n", "square"), tuple((i, float(i * i)) for i in range(100)))
        plot = Plot("confusion", f"Confusions of {NASTY}.", draws)
        skipped = SkipReport()
        skipped.add("truncated", "a<.jpg", 8)
        b = (embeddings("set/b", skipped=skipped),)
        task, title, text = "zeroshot_classification", "Zero-shot", "How to read."
        nan = {ACC1: 0.125, ACC5: math.nan}
        a = embeddings("set/a", class_names=("x", "y"))
        return [
            TaskResult("set/a", task, nan, title, text, data=(a,)),
            TaskResult("set/b", task, {ACC1: 0.75}, title, text, (table,), (plot,), b),
            TaskResult("set/b", "margins", {MARGIN: -0.06}, "Margins", NASTY, (long,)),
        ]

    return make


class Page(HTMLParser):
    """Tags and text of a page, which must be well-formed."""

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


def test_records_have_the_form_of_clip_benchmark(tmp_path: Path, results: Any) -> None:
    write_report(tmp_path, ABOUT, results())

    def strict(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    records = json.loads((tmp_path / "results.json").read_text(), parse_constant=strict)
    assert records[0] == {
        "dataset": "set/a",
        "model": "mini",
        "pretrained": "run.pt",
        "task": "zeroshot_classification",
        "metrics": {"acc1": 0.125, "acc5": None},
        "language": "en",
        "data": {"set/a": {"used": 12, "total": 12, "skipped": {}}},
    }
    single = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "records").iterdir()}
    assert len(single) == 3
    assert [single[f"set-{r['dataset'][-1]}-{r['task']}"] for r in records] == records


def test_every_format_has_the_counts_of_each_dataset(tmp_path: Path, results: Any) -> None:
    write_report(tmp_path, ABOUT, results())
    counts = "12 images used, 8 skipped: 8 truncated (e.g. a<.jpg)"
    assert counts in page(tmp_path).text
    assert counts.replace("<", r"\<") in (tmp_path / "report.md").read_text()
    records = json.loads((tmp_path / "results.json").read_text())
    assert records[1]["data"]["set/b"] == {
        "used": 12,
        "total": 20,
        "skipped": {"truncated": {"count": 8, "examples": ["a<.jpg"]}},
    }
    about = About("m", "p", "t", {"set/a": "a meaning"})
    write_report(tmp_path, about, results())
    assert "12 images, 2 classes; a meaning" in page(tmp_path).text
    quadruples = Embeddings(torch.eye(4), text_features=torch.eye(4), quadruple_tags=("", "x"))
    assert describe_data(quadruples) == "2 quadruples"


def test_page_needs_no_other_file(tmp_path: Path, results: Any) -> None:
    write_report(tmp_path, ABOUT, results())
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    found = page(tmp_path)
    for word in ("http:", "https:", "@import", "url("):
        assert word not in text, word
    assert "//" not in text.split("<style>")[1].split("</style>")[0]
    names = [name for name, _ in found.tags]
    assert not {"script", "link", "iframe", "object", "base"} & set(names)
    assert all(str(each["src"]).startswith("data:image/png;base64,") for each in found.all("img"))
    assert any(each.get("name") == "viewport" for each in found.all("meta"))


def test_galleries_are_in_both_pages_and_in_no_record(tmp_path: Path, results: Any) -> None:
    def missing() -> Image.Image:
        raise BadRecord("truncated", "b.png")

    image = Item(NASTY, lambda: Image.new("RGB", (300, 200), "red"))
    lost = Item("gone", missing)
    gallery = Gallery(
        "Both ways",
        (
            Example(image, ((Item("cat"), 0.5, True), (Item("x" * 200), -0.25, False))),
            Example(Item("a caption \udcff"), ((image, 0.125, False), (lost, 0.1, True))),
        ),
    )
    made = results()
    write_report(tmp_path, ABOUT, made)
    before = (tmp_path / "results.json").read_bytes()
    write_report(tmp_path, ABOUT, [made[0], replace(made[1], galleries=(gallery,)), made[2]])
    assert (tmp_path / "results.json").read_bytes() == before
    found = page(tmp_path)
    shown = [each for each in found.all("img") if "image/jpeg" in str(each["src"])]
    assert [each["alt"] for each in shown] == [NASTY] * 2
    content = base64.b64decode(str(shown[0]["src"]).partition(",")[2])
    assert Image.open(io.BytesIO(content)).size == (112, 75)
    for text in ("0.50 ✓", "-0.25", "no image", "x" * 159 + "…", "a caption \\udcff"):
        assert text in found.text, text
    markdown = (tmp_path / "report.md").read_text()
    (link,) = {*re.findall(r"\]\((plots/[^)]*jpg)\)", markdown)}
    assert (tmp_path / link).read_bytes() == content
    assert "cat 0.50 ✓; " in markdown


def test_page_has_anchors_alternative_texts_and_headlines(tmp_path: Path, results: Any) -> None:
    write_report(tmp_path, ABOUT, results())
    found = page(tmp_path)
    anchors = {each["id"] for each in found.all("h2") if "id" in each}
    assert {f"#{name}" for name in anchors} == {each["href"] for each in found.all("a")}
    assert len(anchors) == 2  # sections, not results
    assert all(each["alt"] for each in found.all("img"))
    scrolled = [each for each in found.all("div") if each.get("class") == "scroll"]
    assert len(scrolled) == len(list(found.all("table"))) == 4
    assert found.text.count("How to read.") == 1
    head = found.text.split("Contents")[0]
    assert "75.0%" in head  # of the main dataset
    assert "12.5%" not in head


def test_names_are_escaped(tmp_path: Path, results: Any) -> None:
    write_report(tmp_path, ABOUT, results())
    found = page(tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<b>&" not in text
    assert found.text.count(NASTY) == 7  # title twice, fact, caption, class, note, explanation
    rows = [line for line in (tmp_path / "report.md").read_text().splitlines() if "pets" in line]
    assert r"| \<b\>\&" + '"pets' + r"\| | 50.0 |" in rows
    (line, *_) = markdown_table(show(Table("t", ("&lt; ~~x~~ $x$",), ())))
    assert line == r"| \&lt; \~\~x\~\~ \$x\$ |"


def test_csv_cells_are_not_formulas(tmp_path: Path) -> None:
    cells = ("=1+2", "+1", "-1", "@x", "a=b", -1.5)
    table = Table("t", ("class",), tuple((cell,) for cell in cells))
    write_report(tmp_path, ABOUT, [TaskResult("a", "t", {}, "T", "", (table,))])
    with (tmp_path / "tables/a-t-1.csv").open(newline="") as file:
        found = [row[0] for row in csv.reader(file)]
    assert found == ["class", "'=1+2", "'+1", "'-1", "'@x", "a=b", "-1.5"]


def test_unit_decides_how_a_number_is_shown() -> None:
    assert show_value(ACC1, 0.12345) == "12.3%"
    assert show_value(ACC1, math.nan) == "-"
    rank = Metric("image_retrieval_median_rank", "median rank")
    assert show_value(rank, 12.0) == "12"
    assert show_value(rank, 12345.5) == "12,345.5"
    assert show_value(GAP, 0.123456) == "0.1235"


def test_metrics_of_one_key_and_rows_of_another_length_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"must have different keys, got \['acc1', 'acc1'\]"):
        TaskResult("a", "t", {ACC1: 0.5, Metric("acc1", "other"): 1.0}, "T", "")
    with pytest.raises(ValueError, match="must have 1 cells, like the header, got 2"):
        Table("t", ("a",), ((1, 2),))


def test_metric_table_aligns_datasets_with_different_metrics(tmp_path: Path) -> None:
    found = [
        TaskResult("a", "t", {ACC1: 0.5}, "T", ""),
        TaskResult("b", "t", {GAP: 2.0, ACC1: 0.25}, "T", ""),
    ]
    write_report(tmp_path, ABOUT, found)
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert lines[-4:] == [
        r"| dataset | top-1 (%) | modality gap |",
        "| --- | ---: | ---: |",
        "| a | 50.0 | - |",
        "| b | 25.0 | 2.00 |",
    ]


def test_small_numbers_keep_their_digits() -> None:
    shown = show(Table("t", ("x",), ((0.0123,), (-0.00001,), (1234567,))))
    assert shown.rows == (("0.0123",), ("0.0000",), ("1,234,567",))
    assert shown.kinds == ("n",)


def test_long_tables_are_abridged_but_complete_in_their_files(tmp_path: Path, results: Any) -> None:
    write_report(tmp_path, ABOUT, results())
    found = page(tmp_path)
    assert "9,801.0" in found.text
    assert "2,500.0" not in found.text
    assert "70 rows in the middle are omitted; all are in tables/set-b-margins-1.csv" in found.text
    with (tmp_path / "tables/set-b-margins-1.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["n", "square"]
    assert rows[51] == ["50", "2500.0"]
    assert len(rows) == 101
    with (tmp_path / "tables/set-b-zeroshot_classification-1.csv").open(newline="") as file:
        assert list(csv.reader(file))[1:] == [[NASTY, "50.0"], ["dog", ""]]


def test_errors_leave_the_former_report(
    tmp_path: Path, results: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(tmp_path, ABOUT, results())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fails(figure: Any) -> None:
        raise RuntimeError("cannot be drawn")

    with pytest.raises(RuntimeError, match="cannot be drawn"):
        write_report(tmp_path, ABOUT, results(fails)[1:])
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name == "report.html":
            raise OSError("disk full")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path, ABOUT, results()[1:])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_error_while_files_are_moved_leaves_the_former_plots(tmp_path: Path, results: Any) -> None:
    write_report(tmp_path, ABOUT, results())
    plots = [path.name for path in (tmp_path / "plots").iterdir()]
    (tmp_path / "report.html").unlink()
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError, match=r"report\.html"):
        write_report(tmp_path, ABOUT, results()[:1])
    assert [path.name for path in (tmp_path / "plots").iterdir()] == plots


def test_only_files_of_the_former_report_are_removed(tmp_path: Path, results: Any) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    write_report(tmp_path, ABOUT, results())
    write_report(tmp_path, ABOUT, results()[:1])
    assert {path.name for path in tmp_path.iterdir()} == {
        *("notes.txt", "records", "report.md", "report.html", "results.json")
    }


def test_folders_of_the_same_names_without_a_report_are_not_replaced(
    tmp_path: Path, results: Any
) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots/mine.png").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"has plots but no results.json"):
        write_report(tmp_path, ABOUT, results())
    assert [path.name for path in tmp_path.rglob("*")] == ["plots", "mine.png"]


def test_a_path_below_a_file_is_rejected(tmp_path: Path, results: Any) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file is not a writable folder"):
        write_report(tmp_path / "file" / "report", ABOUT, results())


@pytest.mark.parametrize("names", [("a/b", "a-b"), ("Set", "set"), ("x y", "x?y"), ("a", "a")])
def test_names_that_collide_as_file_names_are_rejected(names: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="would have the same file names"):
        check_names(names)
    check_names(["a", "b"])


def test_long_names_become_different_file_names(tmp_path: Path) -> None:
    names = [letter + "é" * 300 + letter for letter in "ab"] + ["a" + "é" * 300 + "b"]
    check_names(names)
    write_report(tmp_path, ABOUT, [TaskResult(name, "t", {}, "T", "") for name in names])
    assert len(list((tmp_path / "records").iterdir())) == 3


def test_results_that_collide_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="results must have at least one TaskResult"):
        write_report(tmp_path, ABOUT, [])
    for other in ("a/b", "a-b"):
        pair = [TaskResult(name, "t", {}, "T", "") for name in ("a/b", other)]
        with pytest.raises(ValueError, match=r"two results are of task 't' on 'a.b'"):
            write_report(tmp_path, ABOUT, pair)
    assert not list(tmp_path.iterdir())
