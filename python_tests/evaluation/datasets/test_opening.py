"""Evaluation datasets in folders, tables and caption files, whole and damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cyclip_ext.data import MissingData, ReadOptions
from cyclip_ext.evaluation.datasets import Quadruples, open_evaluation_dataset

from .opened import captioned, captions, classified, greys, image, named, write

# Folders


def test_folder_of_classes(tmp_path: Path) -> None:
    """An empty class must not shift labels, and hidden and other files are not images."""
    folder = tmp_path / "größe"
    write(folder / "b_cat" / "1.png", image(1))
    write(folder / "b_cat" / "deeper" / "2.JPG", image(2, "JPEG"))
    write(folder / "b_cat" / "notes.txt", "not an image")
    write(folder / "b_cat" / "._3.png", "macOS")
    (folder / "a_empty").mkdir()
    write(folder / "猫" / "4.png", image(4))
    write(folder / "猫" / "5.png", image(5)[:-30])
    write(folder / ".git" / "6.png", image(6))
    for spec in (f"folder:{folder}", folder):
        data = classified(spec)
        assert data.name == "größe"
        assert data.class_names == ("a empty", "b cat", "猫")
        assert greys(data) == [1, 2, 4, "truncated"]
        assert data.labels.tolist() == [1, 1, 2, 2]
        assert data.templates == ("{}",)


def test_numbered_folders_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    for number in (0, 2, 10):
        write(tmp_path / "set" / str(number) / "x.png", image(number))
    assert classified(tmp_path / "set").class_names == ("0", "2", "10")
    write(tmp_path / "set" / "classnames.txt", "\n".join(f"name {i}" for i in range(12)) + "\n\n")
    data = classified(tmp_path / "set")
    assert len(data.class_names) == 12
    assert named(data) == {0: "name 0", 2: "name 2", 10: "name 10"}
    write(tmp_path / "set" / "classnames.txt", "a\nb\nc\n")
    with pytest.raises(ValueError, match=r"names folders 0 \.\. 2, but there is a folder 10"):
        classified(tmp_path / "set")


def test_names_of_folders(tmp_path: Path) -> None:
    for name in ("n01", "n02"):
        write(tmp_path / name / "x.png", image(int(name[1:])))
    names = tmp_path / "classnames.txt"
    write(names, "\ufefftench\r\ngoldfish\r\n")
    assert named(classified(tmp_path)) == {1: "tench", 2: "goldfish"}
    write(names, "n02\tgoldfish\nn09\tabsent\nn01\ttench")
    data = classified(tmp_path)
    assert data.class_names == ("goldfish", "absent", "tench")
    assert named(data) == {1: "tench", 2: "goldfish"}
    for content, message in (
        ("one", "1 lines for 2 subfolders"),
        ("one\n\ntwo", r"classnames.txt:2: a class needs a name"),
        ("", "is empty"),
        ("n01\ta", "no line for the folder"),
        ("n01\ta\nn02\t", "classnames.txt:2: must be folder<TAB>name"),
        ("n01\ta\nn01\tb", "classnames.txt:2: folder 'n01' already"),
    ):
        write(names, content)
        with pytest.raises(ValueError, match=message):
            classified(tmp_path)
    names.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="UTF-8"):
        classified(tmp_path)
    names.unlink()
    names.mkdir()  # not as if there were none
    with pytest.raises(OSError, match="not a regular file but a folder"):
        open_evaluation_dataset(f"folder:{tmp_path}")


def test_folders_of_one_name_are_rejected(tmp_path: Path) -> None:
    """Two classes with one name tie on every image, so that none of theirs is ever right."""
    for name in ("big_cat", "big cat"):
        write(tmp_path / name / "x.png", image(1))
    with pytest.raises(ValueError, match="'big cat' and 'big_cat' are both called 'big cat'"):
        classified(tmp_path)
    write(tmp_path / "classnames.txt", "big_cat\tlion\nbig cat\ttiger\n")
    assert classified(tmp_path).class_names == ("lion", "tiger")


def test_links_in_folders_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "store" / "deeper" / "1.png", image(1))
    folder = tmp_path / "set"
    write(folder / "cat" / "2.png", image(2))
    (folder / "cat" / "more").symlink_to(tmp_path / "store", target_is_directory=True)
    (folder / "cat" / "circle").symlink_to(folder / "cat", target_is_directory=True)
    (folder / "dog").symlink_to(tmp_path / "store", target_is_directory=True)
    data = classified(folder)
    assert sorted(zip(greys(data), data.labels.tolist(), strict=True)) == [(1, 0), (1, 1), (2, 0)]


def test_folders_without_classes_or_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no subfolder"):
        open_evaluation_dataset(f"folder:{tmp_path}")
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="no image in them"):
        open_evaluation_dataset(f"folder:{tmp_path}")


# Tables


def test_table_of_labels(tmp_path: Path) -> None:
    """Skipped rows must not shift the labels of those after them."""
    for grey in (1, 2, 3):
        write(tmp_path / f"ü {grey}.png", image(grey))
    table = write(
        tmp_path / "test.csv",
        "filepath,label,other\r\n"
        'ü 1.png,"cat, big",x\r\n'
        "ü 2.png\r\n"
        "ü 2.png,,x\r\n"
        ",cat,x\r\n"
        "\r\n"
        "ü 3.png,ant,x\r\n"
        "gone.png,ant,x\r\n",
    )
    for spec in (table, f"csv:{table}"):
        data = classified(spec)
        assert data.name == "test"
        assert data.class_names == ("ant", "cat, big")
        assert greys(data) == [1, 3, "missing"]
        assert data.labels.tolist() == [1, 0, 0]
        assert data.skipped.counts == {"too few columns": 1, "empty label": 1, "no image named": 1}


def test_table_of_numbers_with_gaps(tmp_path: Path) -> None:
    table = write(tmp_path / "t.tsv", "label\tfilepath\n10\ta.png\n0\tb.png\n5\tc.png\n")
    data = classified(table)
    assert data.class_names == ("0", "5", "10")
    assert data.labels.tolist() == [2, 0, 1]
    names = write(tmp_path / "classnames.txt", "\n".join("abcdefghijk"))
    data = classified(table)
    assert data.labels.tolist() == [10, 0, 5]
    assert data.class_names == tuple("abcdefghijk")
    write(names, "a\nb")
    with pytest.raises(ValueError, match=r"t.tsv:2: label 10, but .* has 2 lines"):
        classified(table)


def test_table_of_names_with_a_list_of_classes(tmp_path: Path) -> None:
    """Classes without a row are still choices, and -1 is not a class of that name."""
    table = write(tmp_path / "t.csv", "filepath,label\na.png,cat\nb.png,ant\n")
    names = write(tmp_path / "classnames.txt", "dog\ncat\nant\n")
    data = classified(table)
    assert data.class_names == ("dog", "cat", "ant")
    assert data.labels.tolist() == [1, 2]
    write(names, "dog\ncat\n")
    with pytest.raises(ValueError, match=r"t\.csv:3: label ant, but .* none of them is 'ant'"):
        classified(table)
    write(table, "filepath,label\na.png,1\nb.png,-1\n")
    with pytest.raises(ValueError, match=r"t\.csv:2: label 1, but"):
        classified(table)


def test_table_of_captions(tmp_path: Path) -> None:
    table = write(
        tmp_path / "t.csv",
        b"image,caption_0,caption_1\n"
        b'a.png,one,"two\nlines"\n'
        b"b.png,,three\n"
        b"a.png,four,\n"
        b"c.png,\xff\xff,five\n"
        b"d.png,nul\0,five\n",
    )
    for name in "ab":
        write(tmp_path / f"{name}.png", image(1))
    data = captioned(table)
    assert captions(data) == [("one", "two lines", "four"), ("three",)]
    assert data.skipped.counts == {"bad encoding": 2}


def test_unusable_tables_are_rejected(tmp_path: Path) -> None:
    for content, message in (
        ("", r"t\.csv has the columns \[''\]"),
        ("filepath,size\na,1\n", "'size'.*needs one of"),
        ("filepath,label,caption\na,b,c\n", "labels and captions .*--csv-label-key"),
        ("filepath,label\n", "no record that can be used"),
        ("filepath,label\na,b\nc,b\n", "has a single class, b: every answer is right"),
        ("filepath,label\na,b\na,c\n", "several labels"),
    ):
        with pytest.raises(ValueError, match=message):
            open_evaluation_dataset(str(write(tmp_path / "t.csv", content)))


# COCO and Winoground


def test_coco(tmp_path: Path) -> None:
    for grey, name in ((1, "x.png"), (2, "y.png")):
        write(tmp_path / "val2017" / name, image(grey))
    content = {
        "images": [
            {"id": 9, "file_name": "x.png"},
            {"id": 3, "file_name": "y.png"},
            {"id": 5, "file_name": "uncaptioned.png"},
            {"id": 6},
            "broken",
            {"id": 7, "file_name": "gone.png"},
        ],
        "annotations": [
            {"image_id": 3, "caption": "of y"},
            {"image_id": 9, "caption": " of\nx "},
            {"image_id": 3, "caption": "also of y"},
            {"image_id": 7, "caption": "of a file that is gone"},
            {"image_id": 4, "caption": "of nothing"},
            {"image_id": 9, "caption": ""},
            {"image_id": 9},
            7,
        ],
    }
    path = write(tmp_path / "annotations" / "captions_val2017.json", json.dumps(content))
    for spec in (path, f"coco:{path}"):
        data = captioned(spec)
        assert greys(data) == [1, 2, "missing"]
        assert captions(data)[:2] == [("of x",), ("of y", "also of y")]
        assert data.skipped.counts == {
            "broken image entry": 2,
            "caption of no image": 1,
            "empty caption": 3,
            "no caption": 1,
        }
    with pytest.raises(ValueError, match="COCO's and has no splits"):
        captioned(path, split="val")
    (tmp_path / "val2017").rename(tmp_path / "elsewhere")
    with pytest.raises(MissingData, match=r"x\.png.*val2017.*name their folder with images"):
        captioned(path)
    assert greys(captioned(path, images=tmp_path / "elsewhere")) == [1, 2, "missing"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a JSON file"),
        ("[]", "must be an object"),
        ('{"images": []}', r"got \['images'\]"),
        ('{"images": {}, "annotations": []}', '"images" must be a list, got dict'),
        ('{"images": [], "annotations": []}', "no image with a caption"),
        (
            '{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], '
            '"annotations": []}',
            "id 1 already belongs to 'a'",
        ),
    ],
)
def test_json_that_is_not_cocos(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_evaluation_dataset(str(write(tmp_path / "c.json", content)))


@pytest.mark.parametrize("kind", ["", "coco:", "pairs:"])
def test_karpathys_test_split_is_the_default(tmp_path: Path, kind: str) -> None:
    """The captions of the training split would be those that the model knows."""
    entries = [
        {"filename": f"{split}.png", "split": split, "sentences": [{"raw": split}]}
        for split in ("train", "test")
    ]
    path = write(tmp_path / "dataset.json", json.dumps({"images": entries}))
    for grey, name in enumerate(("train.png", "test.png")):
        write(tmp_path / name, image(grey))
    assert captions(captioned(f"{kind}{path}")) == [("test",)]
    assert captions(captioned(f"{kind}{path}", split="train")) == [("train",)]


def test_winoground(tmp_path: Path) -> None:
    for grey in range(4):
        write(tmp_path / "images" / f"ex_{grey}.png", image(grey))
    lines = [
        {"id": 0, "caption_0": "a b", "caption_1": "b a", "image_0": "ex_0", "image_1": "ex_1.png"},
        {"caption_0": "c", "image_0": "ex_0", "image_1": "ex_1"},
        {"caption_0": " ", "caption_1": "d", "image_0": "ex_0", "image_1": "ex_1"},
        {
            "caption_0": "e f",
            "caption_1": "f e",
            "image_0": "ex_3",
            "image_1": "gone",
            "tag": "Object",
        },
    ]
    write(tmp_path / "examples.jsonl", "\n".join([*map(json.dumps, lines), "{", "", "[]"]))
    for spec in (str(tmp_path), f"winoground:{tmp_path}"):
        data = open_evaluation_dataset(spec)
        assert isinstance(data, Quadruples)
        assert data.captions == (("a b", "b a"), ("e f", "f e"))
        assert data.tags == ("", "Object")
        assert greys(data.images) == [0, 1, 3, "missing"]
        assert data.images.skipped.counts == {"broken line": 3, "empty caption": 1}
    lines[3]["image_0"] = "ex_3.png"
    write(tmp_path / "examples.jsonl", "\r".join([*map(json.dumps, lines)]))
    write(tmp_path / "images" / "ex_0.webp", image(4))
    data = open_evaluation_dataset(str(tmp_path))
    assert data.captions == (("e f", "f e"),)
    assert data.images.skipped.counts == {
        "two images of one name": 1,
        "broken line": 1,
        "empty caption": 1,
    }
    write(tmp_path / "examples.jsonl", "{}\n")
    with pytest.raises(ValueError, match="has no usable line"):
        open_evaluation_dataset(str(tmp_path))


# The entry


def test_datasets_of_unknown_kind_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither examples\.jsonl .* nor test/\*\.tar"):
        open_evaluation_dataset(str(tmp_path))
    with pytest.raises(ValueError, match=r"set\.xlsx is not recognized; accepted are"):
        open_evaluation_dataset(str(write(tmp_path / "set.xlsx", "")))
    with pytest.raises(FileNotFoundError, match="did you mean torchvision:cifar10"):
        open_evaluation_dataset("cifar10")
    for spec in ("", "folder:", "torchvision:"):  # not the working directory
        with pytest.raises(ValueError, match=r"is empty|has no path or name"):
            open_evaluation_dataset(spec)
    with pytest.raises(FileNotFoundError, match="imagenet:x does not exist"):
        open_evaluation_dataset("imagenet:x")
    for spec in ("folder:/nowhere", "wds:/nowhere", "winoground:/nowhere"):
        with pytest.raises(FileNotFoundError, match="is not a folder"):
            open_evaluation_dataset(spec)
    for spec in ("csv:/nowhere", "coco:/nowhere", f"winoground:{tmp_path}"):
        with pytest.raises(FileNotFoundError, match="is not a file"):
            open_evaluation_dataset(spec)
    write(tmp_path / "a" / "x.png", image(1))
    for options in (ReadOptions(split="train"), ReadOptions(images=tmp_path)):
        with pytest.raises(ValueError, match=r"of the kind folder: .* does not apply"):
            open_evaluation_dataset(f"folder:{tmp_path}", options)
    with pytest.raises(ValueError, match=r"of the kind builtin: split .* does not apply"):
        open_evaluation_dataset("shapes", ReadOptions(split="train"))


def test_fingerprints_follow_the_files(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / "set" / name / "x.png", image(1))
    before = classified(tmp_path / "set").fingerprint()
    assert before == classified(tmp_path / "set").fingerprint()
    write(tmp_path / "set" / "a" / "y.png", image(1))
    assert classified(tmp_path / "set").fingerprint() != before
