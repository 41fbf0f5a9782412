"""Folders: images with captions beside them, and folders of classes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cyclip_ext.data.folders import ClassFolderDataset, FolderDataset

from .files import coloured, numbered, pairing


def captioned(path: Path, number: int, suffix: str = ".txt") -> None:
    numbered(path, number)
    text = f"number {number}"
    path.with_suffix(suffix).write_text(
        f'{{"caption": "{text}"}}' if "j" in suffix.lower() else text
    )


def test_captions_belong_to_the_image_of_their_name(tmp_path: Path) -> None:
    captioned(tmp_path / "a.png", 1)
    captioned(tmp_path / "photo v1.0.png", 2, ".TXT")
    captioned(tmp_path / "sub" / "a.PNG", 3, ".json")
    captioned(tmp_path / "sub" / "photo v1.4.png", 4, ".Json")
    (tmp_path / "sub" / "a.txt").write_text("number 3 as text")  # preferred
    dataset = FolderDataset(tmp_path)
    assert pairing(dataset) == {1: 1, 2: 1, 3: 1, 4: 1}
    assert ("number 3 as text",) in [dataset[i].captions for i in range(4)]
    assert dataset.skipped.total == 0


def test_images_that_cannot_be_decoded_are_counted(tmp_path: Path) -> None:
    for number, suffix in enumerate((".heic", ".avif", ".ppm", ".jfif", ".jpe", ".png", "")):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / f"{number}{suffix}").write_bytes(
            b"no image" if number < 3 else coloured(number)
        )
        (tmp_path / "a" / f"{number}.txt").write_text(f"number {number}")
    dataset = FolderDataset(tmp_path)
    assert pairing(dataset) == {3: 1, 4: 1, 5: 1, "not an image": 3}
    assert dataset.skipped.counts == {"no image file": 1, "file without a suffix": 1}
    numbered(tmp_path / "b" / "7.png", 7)
    (tmp_path / "b" / "8").write_bytes(coloured(8))
    classes = ClassFolderDataset(tmp_path)
    assert len(classes) == 7
    assert classes.skipped.counts == {"file without a suffix": 2}


def test_names_of_classes_need_one_order(tmp_path: Path) -> None:
    """c10 comes before c2 by the alphabet, and after it by number."""
    for number in range(12):
        numbered(tmp_path / f"c{number}" / "0.png", number)
    lines = [f"number {number}" for number in range(12)]
    (tmp_path / "classnames.txt").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"class 2 \(from 0\) is 'c10' .* and 'c2' by number"):
        ClassFolderDataset(tmp_path)
    lines = [f"c{number}\t{line}" for number, line in enumerate(lines)]
    (tmp_path / "classnames.txt").write_text("\n".join(lines))
    classes = ClassFolderDataset(tmp_path)
    names = {classes.class_names[label] for label in classes.labels.tolist()}
    assert names == {f"number {number}" for number in range(12)}
    assert classes.class_names[classes.labels[2]] == "number 10"  # of c0, c1, c10


@pytest.mark.parametrize(
    ("name", "content"),
    [("0.txt", b"number 0 again"), ("0.txt", b"number 1"), ("0.txt", None), ("0.png", b"x")],
)
def test_fingerprints_tell_captions_and_images(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    captioned(tmp_path / "0.png", 0)
    dataset = FolderDataset(tmp_path)
    before = dataset.fingerprint()
    assert FolderDataset(tmp_path).fingerprint() == before
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    assert dataset.fingerprint() != before


def test_images_that_share_a_caption_file_are_counted(tmp_path: Path) -> None:
    captioned(tmp_path / "a.png", 1)
    numbered(tmp_path / "a.jpg", 2)
    captioned(tmp_path / "b.png", 3)
    numbered(tmp_path / "c.png", 4)
    (tmp_path / "d.txt").write_text("number 5")
    captioned(tmp_path / "._e.png", 6)  # macOS
    (tmp_path / "00000_stats.json").write_text("{}")
    dataset = FolderDataset(tmp_path)
    assert pairing(dataset) == {3: 1}
    assert dataset.skipped.counts == {
        "two images of one caption file": 2,
        "no caption file": 1,
        "no image file": 1,
    }


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    captioned(tmp_path / "store" / "a.png", 1)
    captioned(tmp_path / "set" / "b.png", 2)
    (tmp_path / "set" / "more").symlink_to(tmp_path / "store", target_is_directory=True)
    (tmp_path / "set" / "circle").symlink_to(tmp_path / "set", target_is_directory=True)
    assert pairing(FolderDataset(tmp_path / "set")) == {1: 1, 2: 1}


def test_folders_that_cannot_be_read_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioned(tmp_path / "a.png", 1)
    (tmp_path / "locked").mkdir()
    scan = os.scandir

    def refused(place: str) -> object:
        if str(place).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", refused)
    assert FolderDataset(tmp_path).skipped.counts == {"unreadable folder (PermissionError)": 1}


def test_classes(tmp_path: Path) -> None:
    for i in range(6):
        numbered(tmp_path / ("red", "blue_ish")[i % 2] / f"{i}.png", i)
    numbered(tmp_path / "loose.png", 7)
    (tmp_path / "__MACOSX").mkdir()
    dataset = ClassFolderDataset(tmp_path)
    assert dataset.class_names == ("blue ish", "red")
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert [dataset[i].label for i in (0, 5)] == [0, 1]
    assert dataset.skipped.counts == {"image in no class folder": 1}


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val"),
        ("Train", "dev", "test"),
        ("train2017", "val2017"),
        ("training",),
        ("training_set", "labels", "test_set"),
    ],
)
def test_splits_are_not_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    """A dataset's root would be two classes, called train and val: 50% for any model."""
    for i, name in enumerate(names):
        for label in ("red", "blue"):
            numbered(tmp_path / name / label / f"{i}.png", i)
    with pytest.raises(ValueError, match=r"are splits of a dataset .*name the split to evaluate"):
        ClassFolderDataset(tmp_path)
    assert ClassFolderDataset(tmp_path / names[0]).class_names == ("blue", "red")


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    for i, name in enumerate(("train", "car", "test_tube")):
        numbered(tmp_path / name / f"{i}.png", i)
    assert ClassFolderDataset(tmp_path).class_names == ("car", "test tube", "train")


def test_a_single_class_is_rejected(tmp_path: Path) -> None:
    """Every answer is right: 100% for any model."""
    for i in range(3):
        numbered(tmp_path / "flat" / f"{i}.png", i)
    with pytest.raises(ValueError, match="must have a subfolder for each class"):
        ClassFolderDataset(tmp_path / "flat")
    with pytest.raises(ValueError, match="has a single subfolder, flat: with one class every"):
        ClassFolderDataset(tmp_path)
    (tmp_path / "classnames.txt").write_text("flat\tplain\nother\tother\n")
    assert ClassFolderDataset(tmp_path).class_names == ("plain", "other")


def test_wordnet_ids_get_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ("n01855672", "n02091244", "n07697537")
    for i, name in enumerate(ids):
        numbered(tmp_path / name / f"{i}.png", i)
    pytest.importorskip("open_clip")
    dataset = ClassFolderDataset(tmp_path)
    assert dataset.class_names == ("goose", "Ibizan Hound", "hot dog")
    assert dataset.class_ids == ids
    monkeypatch.setattr("cyclip_ext.data.folders.wordnet_names", lambda ids: None)
    with pytest.warns(UserWarning, match=r"called by WordNet ids .n01855672.*--class-names"):
        assert ClassFolderDataset(tmp_path).class_names == ids
