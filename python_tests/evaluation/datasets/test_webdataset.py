"""Tar shards in CLIP_benchmark's layout, whole and damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from data.files import encode, write_tar
from PIL import Image

from cyclip_ext.data import MissingData, ReadOptions
from cyclip_ext.evaluation.datasets import open_evaluation_dataset

from .opened import captioned, captions, classified, greys, image, named, write


def shards(folder: Path, split: str = "test") -> Path:
    """Write 11 shards, image k in shard k, because "10" sorts before "2"."""
    (folder / split).mkdir(parents=True)
    for number in range(11):
        write_tar(
            folder / split / f"{number}.tar",
            [(f"s{number}.cls", str(number % 3).encode()), (f"s{number}.png", image(number))],
        )
    write(folder / split / "nshards.txt", "11\n")
    write(folder / "classnames.txt", "ant\nbee\ncat\nunused\n")
    return folder


def test_classification_shards(tmp_path: Path) -> None:
    folder = shards(tmp_path / "wds_set")
    write(folder / "zeroshot_classification_templates.txt", "a photo of a {c}.\nart of the {c}.\n")
    for spec in (folder, f"wds:{folder}"):
        data = classified(spec)
        assert data.name == "wds_set"
        assert data.class_names == ("ant", "bee", "cat", "unused")
        assert data.templates == ("a photo of a {}.", "art of the {}.")
        assert named(data) == {k: ("ant", "bee", "cat")[k % 3] for k in range(11)}
        assert data.skipped.total == 0
    (folder / "test" / "nshards.txt").unlink()
    assert greys(classified(folder)) == list(range(11))
    shards(tmp_path / "train_set", "train")
    assert len(classified(f"wds:{tmp_path / 'train_set'}", split="train")) == 11


def test_damaged_shards(tmp_path: Path) -> None:
    """An incomplete sample must not take the label of the next one."""
    folder = shards(tmp_path / "set")
    write_tar(
        folder / "test" / "0.tar",
        [
            ("a.png", image(100)),  # no label
            ("b.cls", b"1"),  # no image
            ("c.png", image(101)),
            ("c.cls", b"two"),
            ("._d.png", b"macOS"),
            ("d.webp", encode(Image.new("RGB", (8, 8), (102,) * 3), "WEBP", lossless=True)),
            ("d.cls", b" 2\n"),
            ("d.json", b"{}"),
            ("e.jpg", image(103)[:-30]),
            ("e.cls", b"0"),
        ],
    )
    broken = folder / "test" / "1.tar"
    broken.write_bytes(broken.read_bytes()[:1100])  # in the header of the image
    data = classified(folder)
    expected = {102: "cat", "truncated": "ant"} | {
        k: ("ant", "bee", "cat")[k % 3] for k in range(2, 11)
    }
    assert named(data) == expected
    assert data.skipped.counts == {
        "no caption file": 1,
        "no image file": 2,
        "broken label": 1,
        "broken tar": 1,
    }


def test_missing_shards_and_class_names_are_rejected(tmp_path: Path) -> None:
    """With a shard missing, the accuracy would be that of another dataset."""
    folder = shards(tmp_path / "set")
    with pytest.raises(MissingData, match="train"):
        open_evaluation_dataset(f"wds:{folder}", ReadOptions(split="train"))
    (folder / "test" / "7.tar").unlink()
    with pytest.raises(MissingData, match=r"1 of the 11 shards .* 7\.tar"):
        open_evaluation_dataset(f"wds:{folder}")
    write(folder / "test" / "nshards.txt", "7")
    write(folder / "classnames.txt", "ant\nbee\n")
    with pytest.raises(ValueError, match=r"2\.tar.*: label 2, but .* has 2 lines"):
        open_evaluation_dataset(f"wds:{folder}")
    (folder / "classnames.txt").unlink()
    with pytest.raises(MissingData, match=r"classnames\.txt"):
        open_evaluation_dataset(f"wds:{folder}")
    write(folder / "test" / "nshards.txt", "several")
    with pytest.raises(ValueError, match="number of shards"):
        open_evaluation_dataset(f"wds:{folder}")


def test_retrieval_shards(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    write_tar(
        tmp_path / "test" / "0.tar",
        [
            ("0.jpg", image(1)),
            ("0.txt", "one\n two  words\n\nünï\n".encode()),
            ("1.jpg", image(2)),
            ("1.txt", b"\n"),
            ("2.jpg", image(3)),
            ("2.txt", b"\xff"),
            ("3.jpg", image(4)),
            ("3.txt", b"last"),
        ],
    )
    data = captioned(f"wds:{tmp_path}")
    assert captions(data) == [
        ("one", "two words", "ünï"),
        "empty caption",
        "bad encoding",
        ("last",),
    ]
    assert greys(data) == [1, "empty caption", "bad encoding", 4]


def test_kind_of_shards_is_read_from_its_file(tmp_path: Path) -> None:
    """Samples of a retrieval dataset may have a class as well."""
    (tmp_path / "test").mkdir()
    write_tar(
        tmp_path / "test" / "0.tar", [("0.jpg", image(1)), ("0.cls", b"0"), ("0.txt", b"a cat")]
    )
    write(tmp_path / "classnames.txt", "cat")
    assert classified(tmp_path).labels.tolist() == [0]
    kind = write(tmp_path / "dataset_type.txt", "Retrieval\n")
    assert captions(captioned(tmp_path)) == [("a cat",)]
    write(kind, "multilabel")
    with pytest.raises(ValueError, match="must be classification or retrieval, got 'multilabel'"):
        open_evaluation_dataset(str(tmp_path))


@pytest.mark.parametrize("beside", [("0.npy", b"1"), ("0.cls", b"first")])
def test_shards_without_a_usable_sample(tmp_path: Path, beside: tuple[str, bytes]) -> None:
    (tmp_path / "test").mkdir()
    write_tar(tmp_path / "test" / "0.tar", [("0.jpg", image(1)), beside])
    write(tmp_path / "classnames.txt", "cat")
    with pytest.raises(ValueError, match=r"no usable sample for .*: 1 skipped"):
        open_evaluation_dataset(str(tmp_path))


def test_fingerprint_follows_the_shards(tmp_path: Path) -> None:
    folder = shards(tmp_path / "wds")
    dataset = classified(folder)
    before = dataset.fingerprint()
    (folder / "test" / "4.tar").write_bytes(b"")
    assert dataset.fingerprint() != before
