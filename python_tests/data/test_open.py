"""Recognition of a path's format, and the error message for an unknown format."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cyclip_ext.data import ReadOptions, load_builtin, open_dataset
from cyclip_ext.data.open import expand_braces
from cyclip_ext.data.pairs import TableDataset
from cyclip_ext.data.tar import TarDataset

from .files import encode, halves, write_tar

PNG = encode(halves())


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for i in range(3):
        write_tar(tmp_path / f"{i:05d}.tar", [(f"{i}.jpg", PNG), (f"{i}.txt", str(i).encode())])
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "captions"),
    [
        ("", ["0", "1", "2"]),
        ("/*.tar", ["0", "1", "2"]),
        ("/{00000..00001}.tar", ["0", "1"]),
        ("/{00002,00000}.tar", ["2", "0"]),
        ("/0000?.tar", ["0", "1", "2"]),
        ("/00001.tar", ["1"]),
    ],
)
def test_shard_patterns(shards: Path, pattern: str, captions: list[str]) -> None:
    pairs = open_dataset(f"{shards}{pattern}")
    assert isinstance(pairs, TarDataset)
    assert [pairs[i].captions[0] for i in range(len(pairs))] == captions


def test_a_missing_shard_of_a_range_is_an_error(shards: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"00003\.tar"):
        open_dataset(f"{shards}/{{00002..00003}}.tar")


@pytest.mark.parametrize("name", ["a[1]", "{a,b}"])
def test_what_exists_is_no_pattern(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    shard = write_tar(tmp_path / name / f"{name}.tar", [("0.jpg", PNG), ("0.txt", b"hello")])
    for path in (shard, shard.parent):
        assert open_dataset(str(path))[0].captions == ("hello",)


def test_files_beside_shards_are_not_lost(shards: Path) -> None:
    (shards / "images").mkdir()
    for name in ("9.png", "images/10.png"):
        (shards / name).write_bytes(PNG)
    assert open_dataset(str(shards)).skipped.counts == {"image beside shards": 2}
    (shards / "00002.tar").rename(shards / "00005.tar")
    with pytest.warns(UserWarning, match=r"has 3 shards, but 3 between .* missing .e.g. number 2"):
        assert len(open_dataset(str(shards))) == 3
    (shards / "00007.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"00007.tar.gz is a compressed archive"):
        open_dataset(str(shards))


@pytest.mark.parametrize("other", ["gone", "table.csv", "empty"])
def test_each_part_of_a_pattern_has_shards(shards: Path, other: str) -> None:
    (shards / "table.csv").write_text("image,caption\n")
    (shards / "empty").mkdir()
    with pytest.raises(ValueError, match=rf"but also .*{other}, which is not there or has no .tar"):
        open_dataset(f"{shards}/{{00000.tar,{other}}}")


def test_shards_are_found_by_any_case_of_their_suffix(shards: Path) -> None:
    (shards / "00002.tar").rename(shards / "00002.TAR")
    assert len(open_dataset(str(shards))) == 3
    assert len(open_dataset(f"{shards}/00002.TAR")) == 1


def test_gaps_are_found_in_names_with_a_prefix(shards: Path) -> None:
    for number in range(3):
        (shards / f"0000{number}.tar").rename(shards / f"cc3m-train-{2 * number:04}.tar")
    with pytest.warns(UserWarning, match=r"but 2 between .* .e.g. number 1 of cc3m-train-."):
        open_dataset(str(shards))


def test_a_fifo_among_shards_is_counted(shards: Path) -> None:
    os.mkfifo(shards / "00003.tar")
    assert open_dataset(str(shards)).skipped.counts.keys() == {"unreadable tar"}


def test_shards_in_subfolders_are_rejected(shards: Path) -> None:
    (shards / "more" / "a").mkdir(parents=True)
    (shards / "00002.tar").rename(shards / "more" / "a" / "00002.tar")
    with pytest.raises(ValueError, match=r"in subfolders .more/a/00002.tar.: name those"):
        open_dataset(str(shards))
    for number in range(2):
        (shards / f"0000{number}.tar").unlink()
    with pytest.raises(ValueError, match=r"are in subfolders .*: name them by a pattern"):
        open_dataset(str(shards))
    for name, content in (("9.png", PNG), ("9.txt", b"nine")):
        (shards / name).write_bytes(content)
    assert open_dataset(str(shards)).skipped.counts == {"shard among images": 1}
    assert len(open_dataset(f"{shards}/*/*/*.tar")) == 1


def test_a_shard_named_twice_is_rejected(shards: Path) -> None:
    with pytest.raises(ValueError, match="names a shard twice"):
        open_dataset(f"{shards}/0000{{0,1,0}}.tar")


@pytest.mark.parametrize("name", ["a.tar", "a.csv", "a.tsv"])
def test_datasets_without_a_record_are_rejected(tmp_path: Path, name: str) -> None:
    if name == "a.tar":
        write_tar(tmp_path / name, [("no_suffix", PNG), ("text", b"x")])
    else:
        (tmp_path / name).write_text("image,caption\na.png, \n")
    with pytest.raises(ValueError, match="has no record that can be used; "):
        open_dataset(str(tmp_path / name))


def test_tables(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "t.csv").write_text("image,caption\na.png,hello\n")
    assert isinstance(open_dataset(str(tmp_path / "t.csv")), TableDataset)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(PNG)
    (tmp_path / "g.tsv").write_text("hello\thttps://host/a.png\n")
    pairs = open_dataset(str(tmp_path / "g.tsv"), ReadOptions(images=str(tmp_path / "images")))
    assert pairs[0].captions == ("hello",)
    assert "row number" in pairs.name
    with pytest.raises(ValueError, match=r"--images. must name the folder"):
        open_dataset(str(tmp_path / "g.tsv"))
    with pytest.raises(ValueError, match=r"--first-row. does not apply"):
        open_dataset(str(tmp_path / "t.csv"), ReadOptions(first_row=1))
    with pytest.raises(
        ValueError,
        match=r"csv_img_key .--csv-img-key., csv_caption_key .--csv-caption-key. do not apply",
    ):
        open_dataset(str(tmp_path / "g.tsv"), ReadOptions(csv_img_key="a", csv_caption_key="b"))


def test_unknown_things_name_the_path_and_the_formats(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; accepted are[^$]*\.tar"):
        open_dataset("nowhere")
    with pytest.raises(
        ValueError, match=r"folder without \.tar files and without images; accepted are"
    ):
        open_dataset(str(tmp_path))
    (tmp_path / "a.xlsx").write_bytes(b"")
    with pytest.raises(ValueError, match="not of a known format"):
        open_dataset(str(tmp_path / "a.xlsx"))
    with pytest.raises(ValueError, match="known: emoji, shapes, debian"):
        load_builtin("imagenet")


def test_braces() -> None:
    assert expand_braces("a{08..11}b") == ["a08b", "a09b", "a10b", "a11b"]
    assert expand_braces("{1..2}/{a,b}") == ["1/a", "1/b", "2/a", "2/b"]
    assert expand_braces("plain") == ["plain"]
