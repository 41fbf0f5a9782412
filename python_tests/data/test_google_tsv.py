"""Google's tables of addresses: each naming of downloads finds its images, never a neighbour's."""

from __future__ import annotations

import hashlib
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from cyclip_ext.data.google_tsv import read_google_tsv

from .files import numbered, pairing

URLS = [f"http://host/{i}.jpg" for i in range(12)]
ALL = dict.fromkeys(range(12), 1)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "t.tsv"
    path.write_text("".join(f'a "quoted number {i}\t{url}\n' for i, url in enumerate(URLS)))
    return path


def download(folder: Path, name: Callable[[int], str], without: tuple[int, ...] = ()) -> Path:
    """Write the images of the rows, except of some."""
    for i in range(12):
        if i not in without:
            numbered(folder / name(i), i)
    return folder


NAMES = {
    "plain": lambda i: f"{i}.jpg",
    "padded": lambda i: f"{i:08d}.png",
    "nested": lambda i: f"{i // 5:05d}/{i:08d}.jpg",
    "crc32, no suffix": lambda i: f"{i}_{zlib.crc32(URLS[i].encode())}",
    "crc32, from 1": lambda i: f"{i + 1}_{zlib.crc32(URLS[i].encode())}.jpg",
    "md5": lambda i: hashlib.md5(URLS[i].encode()).hexdigest() + ".jpg",
    "sha1": lambda i: hashlib.sha1(URLS[i].encode()).hexdigest() + ".jpg",
    "sha256": lambda i: hashlib.sha256(URLS[i].encode()).hexdigest() + ".JPEG",
}


@pytest.mark.parametrize("convention", NAMES)
@pytest.mark.parametrize("address_first", [False, True])  # CC3M, CC12M
def test_namings(tmp_path: Path, table: Path, convention: str, address_first: bool) -> None:
    images = download(tmp_path / "images", NAMES[convention], without=(3,))
    (images / "failed.log").write_text("noise")
    numbered(images / "cover.png", 99)
    if address_first:
        lines = table.read_text().splitlines()
        table.write_text("".join("\t".join(reversed(line.split("\t"))) + "\r\n" for line in lines))
    dataset = read_google_tsv(table, images)
    assert pairing(dataset) == {i: 1 for i in range(12) if i != 3}
    assert dataset[0].captions == ('a "quoted number 0',)
    assert dataset.skipped.counts == {"not downloaded": 1, "image of no row": 1}


@pytest.mark.parametrize(
    ("first", "without", "given", "expected"),
    [
        (0, (), None, ALL),
        (0, (), 0, ALL),
        (0, (), 1, "first_row .--first-row. is 1, but there is .*0.png"),
        (0, (11,), 1, "first_row .--first-row. is 1, but there is .*0.png"),
        (0, (0,), None, "do not decide whether the first row is 0 or 1"),
        (0, (0,), 0, {i: 1 for i in range(12) if i != 0}),
        (1, (), None, r"seem to count from 1 .no 0, but 12.png for 12 rows.*first_row=1"),
        (1, (), 0, r"seem to count from 1"),
        (1, (), 1, ALL),
        (1, (11,), None, "do not decide whether the first row is 0 or 1"),
        (1, (11,), 1, dict.fromkeys(range(11), 1)),
        (2, (), None, "1 file numbered above 12"),
        (2, (), 1, "numbered above 12"),
        (0, (), 2, "must be 0 or 1, got 2"),
    ],
)
def test_the_number_of_the_first_row(
    tmp_path: Path,
    table: Path,
    first: int,
    without: tuple[int, ...],
    given: int | None,
    expected: dict[int | str, int] | str,
) -> None:
    """A shift by one gives every image the caption of its neighbour."""
    images = download(tmp_path / "images", lambda i: f"{i + first}.png", without)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            read_google_tsv(table, images, first_row=given)
    else:
        assert pairing(read_google_tsv(table, images, first_row=given)) == expected


def test_numbers_on_both_sides_are_rejected(tmp_path: Path, table: Path) -> None:
    images = download(tmp_path / "images", lambda i: f"{i}.png")
    numbered(images / "12.png", 11)
    with pytest.raises(ValueError, match=r"1 file numbered above 11.*12\.png"):
        read_google_tsv(table, images)


def test_first_row_does_not_apply_to_other_namings(tmp_path: Path, table: Path) -> None:
    images = download(tmp_path / "md5", NAMES["md5"])
    with pytest.raises(ValueError, match=r"named by md5.url., not by row number: first_row"):
        read_google_tsv(table, images, first_row=1)
    images = download(tmp_path / "crc", NAMES["crc32, from 1"])
    assert pairing(read_google_tsv(table, images, first_row=1)) == ALL
    with pytest.raises(ValueError, match=r"checksums .* show that the first row has the number 1"):
        read_google_tsv(table, images, first_row=0)


@pytest.mark.parametrize("second", ["old/5.png", "00005.png", "5.jpg", "5"])
def test_two_files_of_one_row_are_rejected(tmp_path: Path, table: Path, second: str) -> None:
    """The choice between them would depend on the file system's order."""
    images = download(tmp_path / "images", lambda i: f"{i}.png")
    numbered(images / second, 7)
    with pytest.raises(ValueError, match=r"are both named after row 5 of") as error:
        read_google_tsv(table, images)
    assert second in str(error.value)
    assert "5.png" in str(error.value)


def test_parts_that_are_numbered_separately_are_rejected(tmp_path: Path, table: Path) -> None:
    images = download(tmp_path / "images", lambda i: f"part{i // 6}/{i % 6}.png")
    with pytest.raises(ValueError, match=r"part0/0.png and part1/0.png are both named after row 0"):
        read_google_tsv(table, images)


def test_numbers_of_img2dataset_within_shards_are_rejected(tmp_path: Path, table: Path) -> None:
    """With 5 samples per shard, img2dataset names row 5 "10", which would be used for row 10."""
    images = download(tmp_path / "images", lambda i: f"{i // 5:05d}/{i // 5:05d}{i % 5}.jpg")
    with pytest.raises(ValueError, match=r"5 files numbered above 11, .*a power of ten"):
        read_google_tsv(table, images)
    # A last row that cannot be used has its number all the same.
    table.write_text(table.read_text() + " \thttp://host/x\n" * 10)
    assert len(read_google_tsv(table, images, first_row=0)) == 7
    with pytest.raises(ValueError, match=r"no sample above 4, .* room for 10, .*--first-row 0"):
        read_google_tsv(table, images)


def test_numbers_of_img2dataset_with_a_power_of_ten_are_those_of_rows(tmp_path: Path) -> None:
    rows = [f"number {i}\thttp://h/{i}\n" for i in range(35)]
    (tmp_path / "t.tsv").write_text("".join(rows))
    here = [i for i in range(35) if i % 3]
    for i in here:
        numbered(tmp_path / "images" / f"{i // 10:05d}/{i:06d}.jpg", i)
    numbered(tmp_path / "images" / "cover.png", 99)
    with pytest.raises(ValueError, match="do not decide"):
        read_google_tsv(tmp_path / "t.tsv", tmp_path / "images")
    numbered(tmp_path / "images" / "00000" / "000000.jpg", 0)
    dataset = read_google_tsv(tmp_path / "t.tsv", tmp_path / "images")
    assert pairing(dataset) == dict.fromkeys([0, *here], 1)


def test_bad_lines_have_a_number_and_blank_ones_have_none(tmp_path: Path) -> None:
    lines = [b"number 0\thttp://h/0", b"no address", b"  \thttp://h/2", b"\xff\thttp://h/3", b""]
    lines += [b"number 4\thttp://h/4", b"\t", b"number 5\thttp://h/5"]
    (tmp_path / "t.tsv").write_bytes(b"\n".join(lines) + b"\n\n")
    images = download(tmp_path / "images", lambda i: f"{i}.jpg", without=tuple(range(6, 12)))
    dataset = read_google_tsv(tmp_path / "t.tsv", images)
    assert pairing(dataset) == {0: 1, 4: 1, 5: 1}
    assert dataset.skipped.counts == {"not two columns": 1, "empty caption": 1, "bad encoding": 1}


def test_a_carriage_return_inside_a_caption_shifts_no_row(tmp_path: Path, table: Path) -> None:
    table.write_text(table.read_text().replace("number 3\t", "number 3\rand\rmore\t"))
    images = download(tmp_path / "images", lambda i: f"{i}.png")
    dataset = read_google_tsv(table, images)
    assert len(dataset) == 12
    assert dataset[3].captions == ('a "quoted number 3 and more',)
    assert dataset[4].captions == ('a "quoted number 4',)


def test_foreign_names_say_what_is_known(tmp_path: Path, table: Path) -> None:
    numbered(tmp_path / "images" / "cat.jpg", 0)
    with pytest.raises(ValueError, match=r"named after a row.*known namings: row number, "):
        read_google_tsv(table, tmp_path / "images")
    with pytest.raises(FileNotFoundError, match=r"--images. must name a folder"):
        read_google_tsv(table, tmp_path / "nowhere")


def test_rows_of_one_address_are_one_record(tmp_path: Path, table: Path) -> None:
    table.write_text("".join(f"number 0 as {k}\t{URLS[0]}\n" for k in range(3)))
    numbered(tmp_path / "images" / NAMES["md5"](0), 0)
    dataset = read_google_tsv(table, tmp_path / "images")
    assert [dataset[i].captions for i in range(len(dataset))] == [
        ("number 0 as 0", "number 0 as 1", "number 0 as 2")
    ]


def test_stored_matches_follow_the_folder(
    tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = download(tmp_path / "images", NAMES["nested"], without=(3, 11))
    old = time.time() - 60
    for place in (images, *images.iterdir()):
        os.utime(place, (old, old))
    assert len(read_google_tsv(table, images)) == 10
    with monkeypatch.context() as patch:
        patch.setattr("cyclip_ext.data.google_tsv._files_by_stem", lambda *a: pytest.fail("again"))
        dataset = read_google_tsv(table, images)
        assert dataset.skipped.counts == {"not downloaded": 2}
        assert pairing(dataset) == {i: 1 for i in range(12) if i not in (3, 11)}
    numbered(images / NAMES["nested"](3), 3)  # downloaded later
    assert len(read_google_tsv(table, images)) == 11
    (images / "00002").rename(images / "moved")
    assert pairing(read_google_tsv(table, images)) == dict.fromkeys(range(11), 1)


def test_files_in_a_folder_whose_time_is_restored_are_found(tmp_path: Path, table: Path) -> None:
    images = download(tmp_path / "images", NAMES["plain"], without=(3,))
    old = time.time() - 60
    os.utime(images, (old, old))
    assert len(read_google_tsv(table, images)) == 11
    numbered(images / "3.jpg", 3)
    os.utime(images, (old, old))  # as copying a folder does
    assert pairing(read_google_tsv(table, images)) == ALL
