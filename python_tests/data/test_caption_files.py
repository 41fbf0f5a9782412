"""Captions in JSON and parquet files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cyclip_ext.data import ReadOptions, open_dataset

from .files import coloured, numbered, pairing, write_tar


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def karpathy(tmp_path: Path) -> Path:
    """Karpathy's split of COCO: images in two folders, four splits."""
    images: list[Any] = []
    for i in range(8):
        split = ("train", "restval", "val", "test")[i % 4]
        folder = "val2014" if i % 4 else "train2014"
        numbered(tmp_path / folder / f"{i}.png", i)
        sentences = [{"raw": f"number {i} as {k}", "tokens": []} for k in range(5)]
        entry = {"filepath": folder, "filename": f"{i}.png", "split": split}
        images.append({**entry, "sentences": sentences, "imgid": i})
    images[7]["sentences"][2] = {"raw": " "}
    images[4]["sentences"] = []
    images.append({"split": "train", "filename": 5})
    images.append("broken")
    images.append({**images[0], "split": None})  # of no split: nobody would miss it
    images[1]["split"] = "restval "
    images.append({**images[0], "filepath": "\ud800"})
    return write(tmp_path / "dataset_coco.json", {"images": images, "dataset": "coco"})


@pytest.mark.parametrize(
    ("split", "expected", "counted"),
    [
        (None, {0: 5}, {"no caption": 1, "broken image entry": 4}),  # train
        ("test", {3: 5, 7: 4}, {"empty caption": 1, "broken image entry": 2}),
        ("val+restval", {1: 5, 2: 5, 5: 5, 6: 5}, {"broken image entry": 2}),
    ],
)
def test_karpathy(
    karpathy: Path, split: str | None, expected: dict[int, int], counted: dict[str, int]
) -> None:
    dataset = open_dataset(str(karpathy), ReadOptions(split=split))
    assert pairing(dataset) == expected
    assert dataset.skipped.counts == counted
    assert f"({split or 'train'}, " in dataset.name
    with pytest.raises(ValueError, match=r"no split dev; it has train .4 images., restval .2"):
        open_dataset(str(karpathy), ReadOptions(split="dev"))


# Parquet

parquet = pytest.importorskip("pyarrow.parquet")
arrow = pytest.importorskip("pyarrow")


def write_parquet(path: Path, columns: dict[str, list[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.table(columns), path, row_group_size=4)
    return path


STATUS = ["success"] * 8 + ["failed_to_download", "failed_to_resize"]
CAPTIONS = [f"number {i}" for i in range(8)] + ["number 8", None]


def test_img2dataset_parquet_with_images(tmp_path: Path) -> None:
    data = [coloured(i) for i in range(8)] + [None, None]
    captions = [*CAPTIONS[:6], " ", *CAPTIONS[7:]]
    for shard in range(2):
        write_parquet(
            tmp_path / f"{shard:05d}.parquet",
            {"jpg": data, "key": list("0123456789"), "caption": captions, "status": STATUS},
        )
    for spec in (tmp_path, f"{tmp_path}/{{00000..00001}}.parquet"):
        dataset = open_dataset(str(spec))
        assert pairing(dataset) == {i: 2 for i in range(8) if i != 6}
        assert dataset.skipped.counts == {"not downloaded": 4, "empty caption": 2}
        assert dataset.fingerprint() == open_dataset(str(spec)).fingerprint()


def test_parquet_with_images_in_a_struct(tmp_path: Path) -> None:
    data = [{"bytes": coloured(i), "path": f"{i}.png"} for i in range(3)] + [None, {"bytes": b""}]
    table = write_parquet(
        tmp_path / "t.parquet", {"image": data, "text": [f"number {i}" for i in range(5)]}
    )
    assert pairing(open_dataset(str(table))) == {0: 1, 1: 1, 2: 1, "empty file": 2}


def test_img2dataset_metadata_beside_files(tmp_path: Path) -> None:
    keys = [f"{i:09d}" for i in range(10)]
    table = {"key": keys, "caption": CAPTIONS, "status": STATUS, "url": keys}
    write_parquet(tmp_path / "00000.parquet", table)
    for i in range(7):
        numbered(tmp_path / "00000" / f"{keys[i]}.png", i)
    numbered(tmp_path / "00000" / f"{keys[3]}.jpg", 5)
    dataset = open_dataset(str(tmp_path / "00000.parquet"))
    assert pairing(dataset) == {i: 1 for i in range(7) if i != 3}
    assert dataset.skipped.counts == {"not downloaded": 2, "two images of one key": 1, "missing": 1}
    table["key"] = [*keys[:9], keys[0]]
    table["status"] = ["success"] * 10
    table["caption"] = [f"number {i}" for i in range(10)]
    write_parquet(tmp_path / "00000.parquet", table)
    with pytest.raises(ValueError, match="a key occurs in two rows"):
        open_dataset(str(tmp_path / "00000.parquet"))


def test_parquet_that_is_written_again_is_not_read(tmp_path: Path) -> None:
    """Captions are those of the former file."""
    table = {"jpg": [coloured(i) for i in range(8)], "caption": CAPTIONS[:8]}
    path = write_parquet(tmp_path / "t.parquet", table)
    dataset = open_dataset(str(path))
    write_parquet(path, {"jpg": table["jpg"][::-1], "caption": CAPTIONS[7::-1]})
    os.utime(path, (0, 0))  # clocks of file systems are coarse
    assert pairing(dataset) == {"unreadable (file changed since it was opened)": 8}


def test_other_images_beside_parquet_files_are_counted(tmp_path: Path) -> None:
    numbered(tmp_path / "1.png", 1)
    numbered(tmp_path / "a" / "2.png", 2)
    write_parquet(tmp_path / "0.parquet", {"jpg": [coloured(0)], "caption": ["number 0"]})
    dataset = open_dataset(str(tmp_path))
    assert pairing(dataset) == {0: 1}
    assert dataset.skipped.counts == {"image beside shards": 2}
    write_parquet(tmp_path / "0.parquet", {"key": ["1"], "caption": ["number 1"]})
    dataset = open_dataset(str(tmp_path))
    assert pairing(dataset) == {1: 1}
    assert dataset.skipped.counts == {"image of no row": 1}


def test_parquet_with_names_of_images(tmp_path: Path) -> None:
    names = ["0.png", "1.png", "0.png", None, "2.png"]
    captions = ["number 0", "number 1", "also number 0", "number 3", ""]
    table = write_parquet(tmp_path / "t.parquet", {"filepath": names, "title": captions})
    for i in range(2):
        numbered(tmp_path / f"{i}.png", i)
    dataset = open_dataset(str(table))
    assert pairing(dataset) == {0: 2, 1: 1}
    assert dataset.skipped.counts == {"no image named": 1, "empty caption": 1}
    with pytest.raises(ValueError, match=r"-key is 'text', but .* has the columns \['file"):
        open_dataset(str(table), ReadOptions(csv_caption_key="text"))


def test_broken_parquet_files_are_counted(tmp_path: Path) -> None:
    for shard in range(3):
        write_parquet(
            tmp_path / f"{shard}.parquet",
            {"png": [coloured(i) for i in range(8)], "caption": CAPTIONS[:8]},
        )
    (tmp_path / "2.parquet").write_bytes((tmp_path / "2.parquet").read_bytes()[:-100])
    (tmp_path / "0.empty.parquet").touch()
    os.mkfifo(tmp_path / "0.fifo.parquet")
    write_parquet(tmp_path / "3.parquet", {"jpg": [coloured(0)], "caption": CAPTIONS[:1]})
    dataset = open_dataset(str(tmp_path))
    assert pairing(dataset) == dict.fromkeys(range(8), 2)
    assert dataset.skipped.counts == {"unreadable parquet": 4 * 8}
    with pytest.raises(ValueError, match=r"can be read: .*0\.empty\.parquet: .*; write or copy it"):
        open_dataset(str(tmp_path / "0.empty.parquet"))


def test_shards_beside_parquet_metadata_are_read_as_shards(tmp_path: Path) -> None:
    write_parquet(tmp_path / "00000.parquet", {"key": ["0"], "caption": ["number 0"]})
    write_tar(tmp_path / "00000.tar", [("0.png", coloured(0)), ("0.txt", b"number 0")])
    assert "tar shard" in open_dataset(str(tmp_path)).name
    assert not open_dataset(str(tmp_path)).skipped.total
    (tmp_path / "00000.parquet").rename(tmp_path / "other.parquet")  # of no shard
    assert open_dataset(str(tmp_path)).skipped.counts == {"parquet beside shards": 1}
