"""Random datasets of known content, damaged: a record is used with its own caption, or counted."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cyclip_ext.data import BadRecord, FileDataset, ReadOptions
from cyclip_ext.data.folders import ClassFolderDataset, FolderDataset
from cyclip_ext.data.google_tsv import read_google_tsv
from cyclip_ext.data.tables import read_table
from cyclip_ext.data.tar import TarDataset

from .files import colour, coloured, write_tar

MOST = 40
FILES = {number: coloured(number) for number in range(MOST)}


@pytest.fixture(scope="module")
def images() -> object:
    """Write a folder with an image of each number, beside which tables are written."""
    with tempfile.TemporaryDirectory() as name:
        for number, data in FILES.items():
            (Path(name) / f"{number}.png").write_bytes(data)
        yield Path(name)


def used(dataset: FileDataset) -> tuple[Counter[int], int]:
    """Count the captions used of each number, and the records that cannot be read.

    A caption is "<number>" and text. Fails if one is used with another image.
    """
    found: Counter[int] = Counter()
    bad = 0
    for index in range(len(dataset)):
        try:
            sample = dataset[index]
        except BadRecord:
            bad += 1
            continue
        for caption in sample.captions:
            numbers = re.findall(r"<(\d+)>", caption)
            assert len(numbers) <= 1, f"rows were joined: {caption}"
            for number in map(int, numbers):
                assert sample.image.getpixel((0, 0)) == colour(number)
                found[number] += 1
    return found, bad


def check(dataset: FileDataset, records: Counter[int], exact: bool) -> None:
    """Check that what is not used is counted; exact: and nothing else is."""
    found, bad = used(dataset)
    counted = bad + dataset.skipped.total
    lost = (records - found).total()
    assert not found - records
    assert counted >= lost
    if exact:
        assert counted == lost


# Tables

# Everything that has a meaning in one reading or the other, and what resembles a row.
pieces = st.sampled_from(
    ['"', '""', ",", "\t", ";", "'", " ", "a b", "7.png", "ü", "#1", '",', "\\"]
)
texts = st.lists(pieces, max_size=6).map("".join)
rows_of_text = st.lists(st.tuples(st.integers(0, MOST - 1), texts, texts), min_size=1, max_size=25)


def caption(number: int, before: str, after: str) -> str:
    return f"{before}<{number}>{after}"


ORDERS = (
    ("image", "caption"),
    ("caption", "image"),
    ("id", "caption", "image"),
    ("caption", "image", "id"),
)


def write_table(
    rows: list[tuple[int, str, str]],
    separator: str,
    quoting: int,
    end: str,
    columns: tuple[str, ...] = ORDERS[0],
) -> bytes:
    content = io.StringIO()
    writer = csv.DictWriter(
        content,
        columns,
        delimiter=separator,
        quoting=quoting,  # type: ignore[arg-type]
        lineterminator=end,
        extrasaction="ignore",
    )
    writer.writeheader()
    for row in rows:
        writer.writerow({"image": f"{row[0]}.png", "caption": caption(*row), "id": 7})
    return content.getvalue().encode()


def open_table(folder: Path, content: bytes, quoting: str = "auto") -> FileDataset:
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        (place / "t.csv").write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read_table(place / "t.csv", ReadOptions(images=folder, csv_quoting=quoting))
    finally:
        shutil.rmtree(place)


@settings(max_examples=50)
@given(
    rows=rows_of_text,
    separator=st.sampled_from([",", "\t", ";"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n"]),
    breaks=st.booleans(),
    columns=st.sampled_from(ORDERS),
)
def test_quoted_tables(
    images: Path,
    rows: list[tuple[int, str, str]],
    separator: str,
    quoting: int,
    end: str,
    breaks: bool,
    columns: tuple[str, ...],
) -> None:
    if breaks:  # over several lines
        rows = [(number, before, "\nof two lines" + after) for number, before, after in rows]
    dataset = open_table(images, write_table(rows, separator, quoting, end, columns))
    # A caption that contains lines like rows of the table is counted and not used.
    check(dataset, Counter(row[0] for row in rows), exact=not breaks)


@settings(max_examples=50)
@given(
    rows=rows_of_text,
    separator=st.sampled_from(["\t", "|"]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_tables_without_quoting(
    images: Path, rows: list[tuple[int, str, str]], separator: str, end: str
) -> None:
    lines = ["image" + separator + "caption"]
    lines += [f"{row[0]}.png{separator}{caption(*row).replace(separator, '')}" for row in rows]
    content = end.join([*lines, ""]).encode()
    records = Counter(row[0] for row in rows)
    for reading in ("auto", "none", "quoted"):
        check(open_table(images, content, reading), records, exact=reading != "quoted")


@settings(max_examples=66)
@given(
    rows=rows_of_text,
    separator=st.sampled_from([",", "\t"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, None]),
    damage=st.lists(
        st.tuples(
            st.floats(0, 1), st.sampled_from(['"', '"\n', "\n", ",", "\t", '",', "\0", "\xff"])
        ),
        max_size=4,
    ),
    cut=st.floats(0.3, 1),
)
def test_damaged_tables(
    images: Path,
    rows: list[tuple[int, str, str]],
    separator: str,
    quoting: int | None,
    damage: list[tuple[float, str]],
    cut: float,
) -> None:
    """Inserted quotes, separators and line ends, and a cut end: they may cost their own rows."""
    rows = [(n, b.replace("\t", ""), a.replace("\t", "")) for n, b, a in rows]
    if quoting is None:
        lines = [f"{row[0]}.png{separator}{caption(*row).replace(separator, '')}" for row in rows]
        content = f"image{separator}caption\n".encode() + "\n".join([*lines, ""]).encode()
    else:
        content = write_table(rows, separator, quoting, "\n")
    start = content.index(b"\n") + 1
    for place, inserted in damage:
        at = start + int(place * (len(content) - start))
        # Not inside a number: another one would be no worse a caption, but untrue.
        while content[at - 1 : at].isdigit() or content[at - 1 : at] in b".<\\xc3":
            at -= 1
        content = content[:at] + inserted.encode("latin-1") + content[at:]
    whole = content.count(b">")
    content = content[: start + int(cut * (len(content) - start))]
    dataset = open_table(images, content)
    found, bad = used(dataset)
    records = Counter(map(int, re.findall(rb"<(\d+)>", content)))
    assert content.count(b">") <= whole
    assert bad + dataset.skipped.total >= (records - found).total()


@settings(max_examples=30)
@given(
    count=st.integers(1, 20),
    first=st.integers(0, 1),
    given_first=st.sampled_from([None, 0, 1]),
    lost=st.sets(st.integers(0, 19), max_size=8),
    blank=st.sets(st.integers(0, 19), max_size=4),
    broken=st.sets(st.integers(0, 19), max_size=4),
)
def test_google_tables(
    images: Path,
    count: int,
    first: int,
    given_first: int | None,
    lost: set[int],
    blank: set[int],
    broken: set[int],
) -> None:
    """A row is used, counted or rejected, unless the caller passes a wrong first_row."""
    with tempfile.TemporaryDirectory(dir=images) as name:
        folder = Path(name) / "images"
        folder.mkdir()
        lines = []
        for row in range(count):
            lines += [""] * (row in blank)
            lines.append(f'"<{row}>' if row in broken else f'"<{row}>\thttp://host/{row}')
            if row not in lost:
                (folder / f"{row + first}.png").write_bytes(FILES[row])
        if 0 in broken:
            return  # not recognized
        (Path(name) / "t.tsv").write_text("\n".join([*lines, ""]))
        try:
            dataset = read_google_tsv(Path(name) / "t.tsv", folder, first_row=given_first)
        except ValueError:
            return
        if given_first is not None and given_first != first:
            assert 0 in lost or count - 1 in lost  # nothing shows that the claim is wrong
            return
        check(dataset, Counter(dict.fromkeys(range(count), 1)), exact=False)


# Archives

stems = ("a", "b", "c", "x/a", "v1.0", "v1.1", "x.y/v2.3", "é")
WHOLE = ("both", "text first", "json", "mask")
parts = st.lists(
    st.tuples(st.sampled_from(stems), st.sampled_from([*WHOLE, "image", "text", "two"])),
    min_size=1,
    max_size=14,
)


def numbers_of(samples: list[tuple[str, str]]) -> list[tuple[str, int, str]]:
    """Give each sample a number, the same one to a lone image and a lone caption of one key."""
    return [
        (stem, index if kind in WHOLE else 20 + stems.index(stem), kind)
        for index, (stem, kind) in enumerate(samples)
    ]


def members_of(samples: list[tuple[str, int, str]]) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for stem, number, kind in samples:
        image, text = (f"{stem}.png", FILES[number]), (f"{stem}.txt", f"<{number}>".encode())
        json = (f"{stem}.json", b'{"caption": "<%d>"}' % number)
        other = (f"{stem}.jpg", FILES[(number + 1) % MOST])
        found += {
            "both": [image, text],
            "text first": [text, image],
            "image": [image],
            "text": [text],
            "json": [json, image],
            "mask": [image, text, (f"{stem}.mask.png", FILES[(number + 1) % MOST])],
            "two": [image, other, text],
        }[kind]
    return found


@settings(max_examples=100)
@given(samples=parts)
def test_archives(images: Path, samples: list[tuple[str, str]]) -> None:
    """Keys may occur several times, next to each other or not, in part or whole."""
    by_key: dict[str, Counter[str]] = {}
    for stem, kind in samples:
        by_key.setdefault(stem, Counter())[kind] += 1
    # A lone caption beside a whole sample of its key may as well be that sample's.
    assume(not any(kinds["text"] and kinds.keys() - {"text", "image"} for kinds in by_key.values()))
    with tempfile.TemporaryDirectory(dir=images) as name:
        shard = write_tar(Path(name) / "0.tar", members_of(numbers_of(samples)))
        dataset = TarDataset([shard])
        found, bad = used(dataset)
    assert bad == 0
    counted = dataset.skipped.total
    whole = sum(kind in WHOLE for _, kind in samples)
    assert found.total() + counted >= whole
    assert counted or found.total() >= whole
    if len(by_key) == len(samples):
        assert found.total() == whole
    if len({re.sub(r"\.[^/]*$", "", stem) for stem in by_key}) == len(samples):  # webdataset's keys
        assert counted == sum({"image": 1, "text": 1, "two": 2}.get(kind, 0) for _, kind in samples)


@settings(max_examples=66)
@given(
    count=st.integers(1, 12),
    damage=st.sampled_from(["cut", "zeros", "header"]),
    place=st.floats(0, 1),
    end=st.sampled_from(["marked", "unmarked"]),
)
def test_damaged_archives(images: Path, count: int, damage: str, place: float, end: str) -> None:
    samples = [(f"{i:03d}", i, ("both", "json")[i % 2]) for i in range(count)]
    with tempfile.TemporaryDirectory(dir=images) as name:
        whole = write_tar(Path(name) / "0.tar", members_of(samples))
        content = bytearray(whole.read_bytes())
        data = 4 * 512 * count  # each member fits into a block
        assert not any(content[data:])
        at = int(place * (data - 1))
        if damage == "cut":
            content = content[:at]
        elif damage == "zeros":
            at = at // 512 * 512
            content[at : at + 512] = bytes(512)
        else:
            at = at // 1024 * 1024 + at % 257
            content[at] ^= 0x55
        if end == "unmarked" and damage != "cut":
            content = content[:data]
        (Path(name) / "1.tar").write_bytes(content)
        found, bad = used(TarDataset([Path(name) / "1.tar"]))
        dataset = TarDataset([whole, Path(name) / "1.tar"])
        assert len(dataset) == count + found.total() + bad
        skipped = dataset.skipped.counts
    if found.total() < count:
        assert bad or skipped.total() >= 1
    if found.total() + bad < count and damage != "cut":  # what follows a break is estimated
        assert skipped.total() >= (count - found.total() - bad) // 2


# Folders

trees = st.dictionaries(
    st.tuples(st.sampled_from(["", "s", "s/t", "train"]), st.sampled_from(["a", "b", "v1.0", "é"])),
    st.tuples(
        st.sets(st.sampled_from([".png", ".PNG", ".jpg", ".webp"]), max_size=2),
        st.sets(st.sampled_from([".txt", ".TXT", ".json"]), max_size=2),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=33)
@given(
    tree=trees, damage=st.lists(st.tuples(st.integers(0, 30), st.sampled_from("cdfl")), max_size=3)
)
def test_folders(
    images: Path,
    tree: dict[tuple[str, str], tuple[set[str], set[str]]],
    damage: list[tuple[int, str]],
) -> None:
    """Damage: a file is cut, deleted, becomes a FIFO, or a link to nothing."""
    with tempfile.TemporaryDirectory(dir=images) as name:
        folder = Path(name)
        for number, ((parent, stem), (suffixes, texts)) in enumerate(sorted(tree.items())):
            (folder / parent).mkdir(parents=True, exist_ok=True)
            for suffix in suffixes:
                (folder / parent / (stem + suffix)).write_bytes(FILES[number])
            for suffix in texts:
                text = f"<{number}> and enough words to be cut"
                content = f'{{"caption": "{text}"}}' if suffix == ".json" else text
                (folder / parent / (stem + suffix)).write_text(content)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for which, kind in damage:
            if files and (path := files[which % len(files)]).is_file():
                content = path.read_bytes()
                path.unlink()
                if kind == "c":
                    path.write_bytes(content[: len(content) // 2])
                elif kind == "f":
                    os.mkfifo(path)
                elif kind == "l":
                    path.symlink_to(folder / "nowhere")
        images_of: Counter[str] = Counter()
        texts_of: Counter[str] = Counter()
        for path in folder.rglob("*"):
            if not path.is_dir():
                kinds = texts_of if path.suffix.lower() in {".txt", ".json"} else images_of
                kinds[str(path.with_suffix(""))] += 1
        records = sum(max(images_of[stem], 1) for stem in images_of | texts_of)
        dataset = FolderDataset(folder)
        assert len(dataset) + dataset.skipped.total == records
        found, bad = used(dataset)
        assert found.total() + bad == len(dataset)


@settings(max_examples=30)
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=20),
    cut=st.sets(st.integers(0, 19), max_size=4),
    loose=st.integers(0, 3),
)
def test_class_folders(images: Path, labels: list[int], cut: set[int], loose: int) -> None:
    with tempfile.TemporaryDirectory(dir=images) as name:
        folder = Path(name) / "set"
        for label in range(4):
            (folder / f"c{label}").mkdir(parents=True)
        for number, label in enumerate(labels):
            data = FILES[number]
            data = data[: len(data) // 2] if number in cut else data
            (folder / f"c{label}" / f"{number}.png").write_bytes(data)
        for number in range(loose):
            (folder / f"{number}.png").write_bytes(FILES[number])
        dataset = ClassFolderDataset(folder)
        assert len(dataset) == len(labels)
        assert dataset.skipped.total == loose
        seen = Counter()
        for index in range(len(dataset)):
            try:
                sample = dataset[index]
            except BadRecord:
                seen["bad"] += 1
                continue
            number = int(Path(sample.key).stem)
            assert sample.image.getpixel((0, 0)) == colour(number)
            assert sample.label == labels[number]
            seen["good"] += 1
        assert seen["bad"] == len([number for number in cut if number < len(labels)])
        assert seen.total() == len(labels)
