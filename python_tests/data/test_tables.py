"""Tables: each row is used with its own image and caption, or counted."""

from __future__ import annotations

import os
import pickle
import shutil
import time
from pathlib import Path

import pytest

from cyclip_ext.data import BadRecord, ReadOptions, open_dataset
from cyclip_ext.data.tables import read_table

from .files import encode, halves, numbered, pairing

COUNT = 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a folder with numbered images."""
    (tmp_path / "images").mkdir()
    for i in range(COUNT):
        numbered(tmp_path / "images" / f"{i:04d}.png", i)
    return tmp_path


def name(i: int) -> str:
    return f"images/{i:04d}.png"


def write(path: Path, rows: list[list[str]], separator: str = ",", end: str = "\n") -> Path:
    path.write_bytes("".join(separator.join(row) + end for row in rows).encode())
    return path


def rows_of(count: int = COUNT) -> list[list[str]]:
    return [[name(i), f"number {i}"] for i in range(count)]


@pytest.mark.parametrize("separator", [",", "\t", ";", "|", ", ", " | "])
@pytest.mark.parametrize(
    "header", [("image", "caption"), ("FilePath", " Title "), ("path", "text")]
)
def test_separators_and_headers(folder: Path, separator: str, header: tuple[str, str]) -> None:
    table = write(folder / "t.csv", [[*header], *rows_of()], separator)
    dataset = read_table(table)
    assert pairing(dataset) == dict.fromkeys(range(COUNT), 1)
    assert dataset.skipped.total == 0


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_marks(folder: Path, end: str, mark: bytes) -> None:
    table = write(folder / "t.csv", [["image", "caption"], *rows_of()], end=end)
    table.write_bytes(mark + table.read_bytes())
    assert pairing(read_table(table)) == dict.fromkeys(range(COUNT), 1)


def test_appended_files(folder: Path) -> None:
    """Files from other systems have other line ends or a byte order mark in the middle."""
    lines = [f"{n},{c}".encode() for n, c in rows_of()]
    lines[3] += b" with \r inside"
    for content in (
        b"\r".join([b"image,caption", *lines[4:], *lines[:3]])
        + b"\n"
        + lines[3].replace(b"\r", b""),
        b"image,caption\n" + b"\n".join(lines[:5]) + b"\n" + b"\r".join(lines[5:]) + b"\n",
        b"image,caption\n" + b"\r\n".join(lines[:5]) + b"\n\xef\xbb\xbf" + b"\n".join(lines[5:]),
    ):
        (folder / "t.csv").write_bytes(content)
        dataset = read_table(folder / "t.csv")
        assert pairing(dataset) == dict.fromkeys(range(COUNT), 1)
        assert dataset.skipped.total == 0


def test_one_bad_row_does_not_cost_the_appended_file(folder: Path) -> None:
    lines = [f"{n},{c}" for n, c in rows_of()]
    lines[6] += ", more"
    lines[7] = '"{}","{}, quoted"'.format(*lines[7].split(","))
    content = "\n".join(["image,caption", *lines[:5]]) + "\n" + "\r".join(lines[5:])
    (folder / "t.csv").write_bytes(content.encode())
    dataset = read_table(folder / "t.csv")
    assert pairing(dataset) == {i: 1 for i in range(COUNT) if i != 6}
    assert dataset.skipped.counts == {"too many columns": 1}


@pytest.mark.parametrize("separator", ["\t", ","])
@pytest.mark.parametrize("quoting", ["auto", "quoted", "none"])
def test_stray_quotes_never_swallow_rows(folder: Path, separator: str, quoting: str) -> None:
    rows = rows_of()
    rows[3][1] = '"number 3" on paper'  # closes inside
    rows[5][1] = '"number 5 of the day'  # opens here, and closes 11 rows below
    rows[16][1] = 'number 16 that says "sale"'
    table = write(folder / "t.csv", [["filepath", "title"], *rows], separator)
    options = ReadOptions(csv_quoting=quoting)
    if quoting == "none":
        dataset = open_dataset(str(table), options)
    else:
        with pytest.warns(UserWarning, match=r"t\.csv: in 2 row.* \(lines 5, 7\)"):
            dataset = open_dataset(str(table), options)
    bad = {3, 5} if quoting == "quoted" else set()
    assert pairing(dataset) == {i: 1 for i in range(COUNT) if i not in bad}
    assert dataset.skipped.counts == ({"misplaced quote": 2} if bad else {})


@pytest.mark.parametrize(
    ("header", "caption", "bad", "warning", "count"),
    [
        ("image,caption", '"{}, quoted"', '"number 3, open', r"in 1 row.*lines 5\); these rows", 1),
        ("caption,image", '"{}, of\ntwo, lines"', '"number 3', "lines 8", 1),
        ("caption,image", '"{},\nof two"', '"number 3\nof" two', "lines 8", 2),
        ("caption,image", '"{},\nof two"', '"number 3' + "\nline" * 101 + '"', "lines 8", 2),
    ],
)
def test_misplaced_quotes_cost_their_own_row(
    folder: Path, header: str, caption: str, bad: str, warning: str, count: int
) -> None:
    """The rest of the row is not a caption, and the fields of other rows are not split."""
    columns = header.split(",")
    cells = [{"image": n, "caption": caption.format(c)} for n, c in rows_of()]
    cells[3]["caption"] = bad
    rows = [[row[column] for column in columns] for row in cells]
    table = write(folder / "t.csv", [columns, *rows])
    with pytest.warns(UserWarning, match=warning):
        dataset = read_table(table)
    assert pairing(dataset) == {i: 1 for i in range(COUNT) if i != 3}
    assert dataset.skipped.counts["misplaced quote"] == count
    with pytest.warns(UserWarning, match="line"):  # as loud when it is opened again
        assert read_table(table).skipped.to_dict() == dataset.skipped.to_dict()


def test_quoted_fields(folder: Path) -> None:
    captions = [
        '"number 0, and a comma"',
        '"number 1 says ""hello"""',
        '"number 2\nof two lines"',
        ' "number 3, after a blank" ',
        '"number 4\n\n\nwith blank lines, and\na, comma"',
        'number 5 with a "quote" inside',
    ]
    rows = [[name(i), caption] for i, caption in enumerate(captions)]
    dataset = read_table(write(folder / "t.csv", [["image", '"caption"'], *rows]))
    assert [dataset[i].captions[0] for i in range(6)] == [
        "number 0, and a comma",
        'number 1 says "hello"',
        "number 2 of two lines",
        "number 3, after a blank",
        "number 4 with blank lines, and a, comma",
        'number 5 with a "quote" inside',
    ]
    assert pairing(dataset) == dict.fromkeys(range(6), 1)


@pytest.mark.parametrize("separator", [",", "\t"])
@pytest.mark.parametrize(
    "end", ["", " lines", ", of lines", "\n\nof lines", "\nof, three\nof, four"]
)
@pytest.mark.parametrize("header", ["image,caption", "caption,image", "id,caption,image"])
def test_captions_of_many_lines(folder: Path, separator: str, end: str, header: str) -> None:
    """If the image comes last, the last line of a caption has it where rows have theirs."""
    columns = header.split(",")
    cells = {n: {"id": "7", "image": n, "caption": f'"{c}, two\nof{end}"'} for n, c in rows_of()}
    rows = [[cells[n][column] for column in columns] for n in cells]
    dataset = read_table(write(folder / "t.csv", [columns, *rows], separator))
    assert pairing(dataset) == dict.fromkeys(range(COUNT), 1)
    assert dataset[0].captions == (" ".join(f"number 0, two\nof{end}".split()),)
    assert dataset.skipped.total == 0


def test_captions_of_many_lines_on_both_sides_of_the_image(folder: Path) -> None:
    rows = [[f'"{c},\ntwo"', n, f'"{c}\nb, c\nd, e"'] for n, c in rows_of()]
    columns = ["caption_0", "image", "caption_1"]
    dataset = read_table(write(folder / "t.csv", [columns, *rows]))
    assert pairing(dataset) == dict.fromkeys(range(COUNT), 2)
    assert dataset[3].captions == ("number 3, two", "number 3 b, c d, e")


@pytest.mark.parametrize("suffix", [".png", ""])
def test_stray_quotes_before_the_image_swallow_no_rows(tmp_path: Path, suffix: str) -> None:
    rows = [[f"number {i}", f"images/{i}{suffix}"] for i in range(COUNT)]
    rows[3][0] = '"number 3 of the day'
    rows[9][0] = 'number 9"'  # closes the quote of row 3
    with pytest.warns(UserWarning, match="lines 5"):
        dataset = read_table(write(tmp_path / "t.csv", [["caption", "image"], *rows]))
    names = [f"images/{i}{suffix}" for i in range(COUNT)]
    assert [dataset.image_name(i) for i in range(len(dataset))] == names


def test_every_field_quoted(folder: Path) -> None:
    """With one stray quote: reading the others without quoting would put quotes into names."""
    rows = [[f'"{field}"' for field in row] for row in [["image", "caption"], *rows_of()]]
    rows[7][1] = '"number 6'
    with pytest.warns(UserWarning, match="lines 8"):
        dataset = read_table(write(folder / "t.csv", rows))
    assert pairing(dataset) == {i: 1 for i in range(COUNT) if i != 6}


def test_long_captions(folder: Path) -> None:
    rows = rows_of()
    rows[3][1] = "number 3" + " long" * 40_000  # beyond the csv module's limit
    rows[4][1] = '"number 4' + ", longer" * 200_000 + '"'
    dataset = read_table(write(folder / "t.csv", [["image", "caption"], *rows]))
    assert len(dataset[3].captions[0]) == 200_008
    assert pairing(dataset) == dict.fromkeys(range(COUNT), 1)


def test_bad_rows_are_counted(folder: Path) -> None:
    table = folder / "t.csv"
    table.write_bytes(
        b'image,caption\nimages/0000.png,"number 0, and\nmore"\nimages/0001.png, \n'
        b"images/0002.png\n,number 3\nimages/0004.png,\xff\nimages/0005.png,number 5, or not\n"
        b"images/0006.png,number 6,,\n\n , \ngone.png,number 7\nimages/0008.png,nul\0\n"
    )
    dataset = read_table(table)
    assert pairing(dataset) == {0: 1, 6: 1, "missing": 1}
    assert dataset.skipped.counts == {
        "empty caption": 1,
        "too few columns": 1,
        "no image named": 1,
        "bad encoding": 2,
        "too many columns": 1,
    }
    assert dataset.skipped.examples["too many columns"] == [f"{table}:8"]


def test_a_name_that_no_file_can_have_is_one_bad_record(folder: Path) -> None:
    rows = [[name(i), f"number {i}"] for i in range(1, COUNT)]
    table = write(folder / "t.csv", [["image", "caption"], ["x" * 300 + ".png", "number 0"], *rows])
    dataset = read_table(table)
    assert len(dataset) == COUNT
    with pytest.raises(BadRecord, match="unreadable"):
        dataset[0]
    assert dataset[1].captions == ("number 1",)


def test_rows_of_one_image_are_one_record(folder: Path) -> None:
    """Otherwise retrieval counts four of five right captions as wrong, and the split leaks."""
    rows = [
        [f"{'./' * (k % 2)}{name(i)}", f"number {i} as {k}"] for k in range(5) for i in range(COUNT)
    ]
    dataset = read_table(write(folder / "t.csv", [["image", "caption"], *rows]))
    assert len(dataset) == COUNT
    assert [dataset[i].captions for i in range(COUNT)] == [
        tuple(f"number {i} as {k}" for k in range(5)) for i in range(COUNT)
    ]
    assert pairing(dataset) == dict.fromkeys(range(COUNT), 5)


def test_flickr30k(folder: Path) -> None:
    """Kaggle's results.csv and the original token file, images in a folder beside them."""
    kaggle = [["image_name", " comment_number", " comment"]]
    kaggle += [
        [f"{i:04d}.png", f" {k}", f" number {i} as {k}"] for i in range(20) for k in range(5)
    ]
    kaggle.insert(40, ["0001.png", " 4   number 1 without a bar"])  # there is such a row
    token = [[f"{i:04d}.png#{k}", f'"number {i}" as {k}'] for i in range(20) for k in range(5)]
    for table, bad in (
        (write(folder / "results.csv", kaggle, "|"), {"too few columns": 1}),
        (write(folder / "results_20130124.token", token, "\t"), {}),
    ):
        dataset = open_dataset(str(table))
        assert pairing(dataset) == dict.fromkeys(range(20), 5)
        assert dataset.skipped.counts == bad


def test_captions_in_several_columns(folder: Path) -> None:
    """A column whose name only begins with "caption" is not a caption column."""
    header = ["image", "caption_0", "caption_1", "caption_source"]
    rows = [header, [name(0), "number 0", "also number 0", "x"], [name(1), "", "number 1", "x"]]
    dataset = read_table(write(folder / "t.csv", rows))
    assert [dataset[i].captions for i in range(2)] == [("number 0", "also number 0"), ("number 1",)]


def test_keys_and_separator_can_be_set(folder: Path) -> None:
    rows = [["bild", "text", "caption"], [name(0), "number 0", "hello"]]
    table = write(folder / "t.csv", rows, ";")
    options = ReadOptions(csv_separator=";", csv_img_key="bild", csv_caption_key="text")
    assert pairing(read_table(table, options)) == {0: 1}
    image = {"csv_img_key": "bild"}
    for wrong, message in (
        (
            {},
            r"columns \['bild', 'text', 'caption'\], but none of image, .*image_key .--csv-img-key",
        ),
        ({"csv_separator": "::"}, r"--csv-separator. must be one character, got '::'"),
        (image | {"csv_caption_key": "titel"}, r"--csv-caption-key. is 'titel'"),
        (
            image | {"csv_quoting": "maybe"},
            r"--csv-quoting. must be one of auto, quoted, none, got 'maybe'",
        ),
        (image | {"csv_separator": r"\t"}, r"has the columns \['bild;text;caption'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            read_table(table, ReadOptions(**wrong))  # type: ignore[arg-type]
    write(table, [["image", "image", "caption"], ["a", "b", "c"]])
    with pytest.raises(ValueError, match="several columns called 'image'"):
        read_table(table)


def test_files_that_are_not_text(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    for content, message in (
        ("image,caption\n".encode("utf-16"), "is UTF-16: save it as UTF-8"),
        ("image,caption\n".encode("utf-16-le"), "NUL bytes in its first line"),
        (b"x" * 2**21, "first line is longer than 1 MiB"),
    ):
        table.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_table(table)
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (tmp_path / "pipe.csv", tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            read_table(path)


def test_images_are_looked_for_near_the_table(folder: Path) -> None:
    rows = [["image", "caption"], *([f"{i:04d}.png", f"number {i}"] for i in range(3))]
    table = write(folder / "t.csv", rows)
    expected = {0: 1, 1: 1, 2: 1}
    assert pairing(read_table(table)) == expected
    (folder / "other").mkdir()
    numbered(folder / "other" / "0000.png", 7)
    with pytest.raises(ValueError, match=r"images and .*other both have .*\(--images\)"):
        read_table(table)
    assert pairing(read_table(table, ReadOptions(images=folder / "images"))) == expected
    numbered(folder / "0001.png", 1)  # beside the table: no other folder counts
    assert pairing(read_table(table)) == {1: 1, "missing": 2}


def test_absolute_paths(tmp_path: Path) -> None:
    numbered(tmp_path / "far.png", 3)
    (tmp_path / "near").mkdir()
    table = write(
        tmp_path / "near" / "t.csv", [["image", "caption"], [f"{tmp_path}/far.png", "number 3"]]
    )
    assert pairing(read_table(table)) == {3: 1}


# The stored columns


def test_columns_are_stored_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of()
    rows[2][1] = ""
    table = write(folder / "t.csv", [["image", "caption"], *rows])
    first = read_table(table)
    with monkeypatch.context() as patch:
        patch.setattr("cyclip_ext.data.tables._columns", lambda *a: pytest.fail("read again"))
        again = read_table(table)
        copy = pickle.loads(pickle.dumps(again))
    assert len(pickle.dumps(again)) < 10_000  # workers map the file, they do not copy it
    for dataset in (again, copy):
        assert pairing(dataset) == {i: 1 for i in range(COUNT) if i != 2}
        assert dataset.skipped.to_dict() == first.skipped.to_dict()
        assert dataset.fingerprint() == first.fingerprint()
    assert len(list(folder.glob(".cyclip_ext-*.index"))) == 1


@pytest.mark.parametrize("change", ["content", "options", "same time"])
def test_stored_columns_follow_the_table(folder: Path, change: str) -> None:
    table = write(
        folder / "t.csv", [["image", "caption", "other"], *([*r, "x"] for r in rows_of())]
    )
    before = read_table(table).fingerprint()
    status = table.stat()
    options = ReadOptions(csv_caption_key="other" if change == "options" else None)
    if change == "content":
        write(table, [["image", "caption", "other"], *([*r, "x"] for r in rows_of(7))])
    elif change == "same time":
        text = table.read_text().replace("number 3", "number 4")
        time.sleep(0.02)  # some clocks of file systems tick every 10 ms
        table.write_text(text)
        os.utime(table, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = read_table(table, options)
    assert after.fingerprint() != before
    assert len(after) == (7 if change == "content" else COUNT)


def test_fingerprints_tell_the_order(folder: Path) -> None:
    rows = rows_of()
    one = read_table(write(folder / "a.csv", [["image", "caption"], *rows])).fingerprint()
    same = read_table(write(folder / "b.tsv", [["path", "text"], *rows], "\t")).fingerprint()
    other = read_table(
        write(folder / "c.csv", [["image", "caption"], *reversed(rows)])
    ).fingerprint()
    assert one == same
    assert one != other


def test_fingerprints_tell_other_images_of_the_same_names(folder: Path) -> None:
    table = write(folder / "t.csv", [["image", "caption"], *rows_of()])
    shutil.copytree(folder / "images", folder / "copy" / "images")
    copy = ReadOptions(images=folder / "copy")
    before = read_table(table).fingerprint()
    assert read_table(table, copy).fingerprint() == before
    (folder / "copy" / name(3)).write_bytes(encode(halves()))
    assert read_table(table, copy).fingerprint() != before


def test_colliding_hashes_do_not_mix_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cyclip_ext.data.pairs._hash", lambda name, salt=0: salt)
    rows = [*rows_of(), *([name(i), f"also number {i}"] for i in range(0, COUNT, 3))]
    dataset = read_table(write(folder / "t.csv", [["image", "caption"], *rows]))
    assert pairing(dataset) == {i: 2 - bool(i % 3) for i in range(COUNT)}
