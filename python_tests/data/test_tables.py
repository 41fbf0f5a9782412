"""Tables: each convention finds its images, never a neighbour's; bad rows are counted."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import pytest

from cyclip_ext.data.google_tsv import read_google_tsv
from cyclip_ext.data.skips import BadRecord
from cyclip_ext.data.tables import read_table

from .files import encode, halves

URLS = [f"http://host/{i}.jpg" for i in range(12)]


def google_table(path: Path) -> Path:
    path.write_text("".join(f'a "quoted caption {i}\t{url}\n' for i, url in enumerate(URLS)))
    return path


def picture(path: Path, width: int = 40) -> None:
    """Write an image whose width identifies its row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(halves(size=(width, 20))))


NAMES = {
    "plain": lambda i: f"{i}.jpg",
    "padded": lambda i: f"{i:08d}.png",
    "nested": lambda i: f"{i // 5:05d}/{i:08d}.jpg",
    "crc32, no suffix": lambda i: f"{i}_{zlib.crc32(URLS[i].encode())}",
    "md5": lambda i: hashlib.md5(URLS[i].encode()).hexdigest() + ".jpg",
    "sha1": lambda i: hashlib.sha1(URLS[i].encode()).hexdigest() + ".jpg",
    "sha256": lambda i: hashlib.sha256(URLS[i].encode()).hexdigest() + ".JPEG",
}


@pytest.mark.parametrize("convention", NAMES)
def test_google_namings(tmp_path: Path, convention: str) -> None:
    for i in range(12):
        if i != 3:
            picture(tmp_path / "images" / NAMES[convention](i), width=20 + i)
    (tmp_path / "images" / "failed.log").write_text("noise")
    pairs = read_google_tsv(google_table(tmp_path / "t.tsv"), tmp_path / "images")
    assert len(pairs) == 11
    assert pairs.skipped.counts == {"not downloaded": 1}
    for index in range(len(pairs)):
        record = pairs[index]
        row = int(record.captions[0].split()[-1])
        assert record.captions[0] == f'a "quoted caption {row}'
        assert record.image.width == 20 + row


def test_google_rows_counted_from_one_are_refused_then_read(tmp_path: Path) -> None:
    for i in range(12):
        picture(tmp_path / "images" / f"{i + 1}.jpg", width=20 + i)
    table = google_table(tmp_path / "t.tsv")
    with pytest.raises(ValueError, match="first_row=1"):
        read_google_tsv(table, tmp_path / "images")
    pairs = read_google_tsv(table, tmp_path / "images", first_row=1)
    assert [pairs[i].image.width for i in range(12)] == [20 + i for i in range(12)]


def test_google_foreign_names_say_what_is_known(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "cat.jpg")
    with pytest.raises(ValueError, match=r"named after a row.*known namings: row number, "):
        read_google_tsv(google_table(tmp_path / "t.tsv"), tmp_path / "images")


def test_google_bad_lines_keep_the_numbering(tmp_path: Path) -> None:
    lines = [b"zero\thttp://h/0", b"no address", b"  \thttp://h/2", b"\xff\thttp://h/3"]
    (tmp_path / "t.tsv").write_bytes(b"\n".join([*lines, b"four\thttp://h/4"]) + b"\n")
    for i in range(5):
        picture(tmp_path / "images" / f"{i}.jpg", width=20 + i)
    pairs = read_google_tsv(tmp_path / "t.tsv", tmp_path / "images")
    assert [(pairs[i].captions[0], pairs[i].image.width) for i in range(2)] == [
        ("zero", 20),
        ("four", 24),
    ]
    assert pairs.skipped.counts == {"not two columns": 1, "empty caption": 1, "bad encoding": 1}


@pytest.mark.parametrize(
    ("name", "header", "separator"),
    [
        ("t.csv", "image,caption", ","),
        ("t.csv", "filepath\ttitle", "\t"),
        ("t.tsv", "id\ttext\tpath", "\t"),
    ],
)
def test_headers(tmp_path: Path, name: str, header: str, separator: str) -> None:
    columns = header.split(separator)
    values = {"image": "sub/a.png", "filepath": "sub/a.png", "path": "sub/a.png", "id": "7"}
    row = separator.join(values.get(column, "a caption") for column in columns)
    (tmp_path / name).write_text(f"{header}\n{row}\n", encoding="utf-8-sig")
    picture(tmp_path / "sub" / "a.png")
    record = read_table(tmp_path / name)[0]
    assert record.captions == ("a caption",)
    assert record.image.size == (40, 20)


def test_quoted_captions_and_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(
        b'image,caption\na.png,"commas, and\nlines"\nb.png, \nc.png\n,no image\nd.png,\xff\n'
        b"gone.png,missing picture\n\n"
    )
    picture(tmp_path / "a.png")
    pairs = read_table(tmp_path / "t.csv")
    assert pairs[0].captions == ("commas, and lines",)
    assert pairs.skipped.counts == {
        "empty caption": 1,
        "too few columns": 1,
        "no image named": 1,
        "bad encoding": 1,
    }
    assert len(pairs) == 2
    with pytest.raises(BadRecord, match="missing"):
        pairs[1]


def test_keys_and_separator_can_be_set(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("bild;text;caption\na.png;hallo;hello\n")
    picture(tmp_path / "a.png")
    pairs = read_table(tmp_path / "t.csv", separator=";", image_key="bild", caption_key="text")
    assert pairs[0].captions == ("hallo",)
    with pytest.raises(
        ValueError, match=r"columns \['bild', 'text', 'caption'\], but image_key .--csv-img-key. is"
    ):
        read_table(tmp_path / "t.csv")
    with pytest.raises(ValueError, match=r"--csv-separator. must be one character, got '::'"):
        read_table(tmp_path / "t.csv", separator="::")
    with pytest.raises(ValueError, match=r"--csv-caption-key. is 'titel'"):
        read_table(tmp_path / "t.csv", separator=";", image_key="bild", caption_key="titel")


def test_rows_of_one_image_are_one_record(tmp_path: Path) -> None:
    """Otherwise retrieval counts four of five right captions as wrong, and the split leaks."""
    rows = [(f"{i}.png", f"caption {i} {k}") for k in range(5) for i in range(20)]
    (tmp_path / "t.csv").write_text("image,caption\n" + "".join(f"{a},{b}\n" for a, b in rows))
    for i in range(20):
        picture(tmp_path / f"{i}.png")
    pairs = read_table(tmp_path / "t.csv")
    assert len(pairs) == 20
    assert [pairs[i].captions for i in range(20)] == [
        tuple(f"caption {i} {k}" for k in range(5)) for i in range(20)
    ]


def test_google_rows_of_one_address_are_one_record(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("".join(f"caption {k}\t{URLS[0]}\n" for k in range(3)))
    picture(tmp_path / "images" / NAMES["md5"](0))
    pairs = read_google_tsv(tmp_path / "t.tsv", tmp_path / "images")
    assert [pairs[i].captions for i in range(len(pairs))] == [
        ("caption 0", "caption 1", "caption 2")
    ]


def test_absolute_paths(tmp_path: Path) -> None:
    picture(tmp_path / "far" / "a.png")
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "t.csv").write_text(f"image,caption\n{tmp_path}/far/a.png,hello\n")
    assert read_table(tmp_path / "near" / "t.csv")[0].captions == ("hello",)


def test_google_numbers_above_the_last_row_are_refused(tmp_path: Path) -> None:
    """img2dataset with 5 samples per shard calls row 5 "10": row 10 would get its picture."""
    table = google_table(tmp_path / "t.tsv")
    for i in range(12):
        picture(tmp_path / "images" / f"{i // 5:05d}" / f"{i // 5:05d}{i % 5}.jpg")
    with pytest.raises(ValueError, match=r"5 file.s. .*above 11, .*a power of ten"):
        read_google_tsv(table, tmp_path / "images")
    # A last row that cannot be used has its number all the same.
    table.write_text(table.read_text() + " \thttp://host/x\n" * 10)
    assert len(read_google_tsv(table, tmp_path / "images")) == 7


def test_one_image_spelt_in_two_ways_is_one_record(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,caption\na.png,one\n./a.png,two\n  ,three\n")
    picture(tmp_path / "a.png")
    pairs = read_table(tmp_path / "t.csv")
    assert [pairs[i].captions for i in range(len(pairs))] == [("one", "two")]
    assert pairs.skipped.counts == {"no image named": 1}
