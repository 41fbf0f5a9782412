"""Which annotated objects captions do not name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cyclip_ext.evaluation.tasks import completeness
from cyclip_ext.evaluation.tasks.completeness import (
    COCO_WORDS,
    Completeness,
    caption_completeness,
    plot_completeness,
)

from .cases import visible_texts


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_coco(
    folder: Path, objects: Sequence[Sequence[str]], captions: Sequence[Sequence[str]]
) -> tuple[Path, Path]:
    """Write objects and captions of images 0, 1, ... in COCO's form."""
    names = list(dict.fromkeys(name for own in objects for name in own))
    instances = {
        "categories": [{"id": 10 + i, "name": name} for i, name in enumerate(names)],
        "annotations": [
            {"image_id": image, "category_id": 10 + names.index(name)}
            for image, own in enumerate(objects)
            for name in own
        ],
    }
    texts = [
        {"image_id": image, "caption": text} for image, own in enumerate(captions) for text in own
    ]
    return (
        write(folder / "instances.json", instances),
        write(folder / "captions.json", {"annotations": texts}),
    )


def compare(
    folder: Path, objects: Sequence[Sequence[str]], captions: Sequence[Sequence[str]]
) -> Completeness:
    return caption_completeness(*write_coco(folder, objects, captions))


@pytest.mark.parametrize(
    ("objects", "caption", "expected"),
    [
        (["dog", "cat"], "A DOG.", ["cat"]),
        (["dog"], "two dogs", []),
        (["bus"], "red buses", []),
        (["sandwich"], "sandwiches", []),
        (["person"], "three ladies", []),  # y to ies
        (["person"], "men", []),  # irregular, from the table
        (["toothbrush"], "some toothbrushes", []),
        (["cat"], "a catalogue, a bobcat", ["cat"]),  # whole words
        (["traffic light"], "a light, some traffic", ["traffic light"]),
        (["traffic light"], "traffic lights", []),
        (["traffic light"], "a traffic-light", []),
        (["person"], "a man's hat", []),
        (["dog", "hot dog"], "a hot dog", ["dog"]),  # the longest phrase
        (["dog", "hot dog"], "a hot dog for the dog", []),
        (["bear", "teddy bear"], "a teddy bear", ["bear"]),
        (["baseball bat", "sports ball"], "a baseball bat", ["sports ball"]),
        (["tennis racket", "person"], "hitting it with a racquet", ["person"]),
        (["cup", "wine glass"], "a glass", []),  # a word of two categories
        (["cup", "wine glass"], "a wine glass", ["cup"]),
        (["giraffe", "zebra"], "", ["giraffe", "zebra"]),
        (["dog", "dog", "dog"], "nothing", ["dog"]),  # categories, not instances
        (["***"], "three stars", ["***"]),  # a category without words
    ],
)
def test_categories_that_a_caption_does_not_name(
    tmp_path: Path, objects: list[str], caption: str, expected: list[str]
) -> None:
    (found,) = compare(tmp_path, [objects], [[caption]]).captions
    assert list(found.missing) == expected


def test_captions_are_compared_alone_and_together(tmp_path: Path, render: Any) -> None:
    objects = [["dog", "cat", "bus"], ["dog"], [], ["cat"]]
    captions = [["a dog", "a cat", "a dog and a cat"], ["a dog"], ["an empty street"], []]
    paths = write_coco(tmp_path, objects, captions)
    found = caption_completeness(*paths)
    expected = [("cat", "bus"), ("dog", "bus"), ("bus",), ()]
    assert [entry.missing for entry in found.captions] == expected
    assert [entry.missing for entry in found.images] == [("bus",), ()]
    assert found.images[0].text == "a dog / a cat / a dog and a cat"

    result = completeness.run(*paths)
    assert result.values == pytest.approx(
        {
            "objects_per_image": 2,
            "missing_per_caption": 5 / 4,
            "missing_per_image": 1 / 2,
            "complete_captions": 1 / 4,
            "complete_images": 1 / 2,
        }
    )
    (table,) = result.tables
    assert table.rows[:2] == (("a dog", "cat, bus", 3), ("a cat", "dog, bus", 3))
    assert len(table.rows) == 4
    assert table.note == (
        "2 of 3 captioned images are compared; 1 have no annotated object. 1 annotated images have "
        "no caption."
    )
    render(result.plots[0].draw)


def test_default_table_has_all_of_coco() -> None:
    table = json.loads(COCO_WORDS.read_text(encoding="utf-8"))
    assert len(table) == 80
    assert {"person", "hair drier", "tv", "skis", "sports ball", "potted plant"} <= set(table)
    for name, words in table.items():
        assert len(set(words)) == len(words), name
        assert all(word == word.lower().strip() for word in words), name


CATEGORIES = [{"id": 1, "name": "dog"}]
GOOD = {"categories": CATEGORIES, "annotations": [{"image_id": 5, "category_id": 1}]}
TEXTS = {"annotations": [{"image_id": 5, "caption": "a dog"}]}


@pytest.mark.parametrize(
    ("instances", "captions", "message"),
    [
        ({**GOOD, "categories": None}, TEXTS, "i.json: 'categories' must be a list, got NoneType"),
        ({"categories": CATEGORIES}, TEXTS, "i.json: 'annotations' must be a list.*no such key"),
        ({**GOOD, "categories": [{"id": 1}]}, TEXTS, r"i.json: categories\[0\]: 'name'.*no such"),
        ({**GOOD, "annotations": [{"image_id": 5}]}, TEXTS, r"annotations\[0\]: 'category_id'"),
        (
            {**GOOD, "annotations": [{"image_id": 5, "category_id": 7}]},
            TEXTS,
            "i.json.*category_id 7 is not in categories",
        ),
        ({**GOOD, "annotations": [3]}, TEXTS, r"annotations\[0\] must be an object, got 3"),
        ([], TEXTS, "i.json must hold one JSON object, got list"),
        (GOOD, {}, "c.json: 'annotations' must be a list"),
        (GOOD, {"annotations": [{"image_id": 5, "caption": 2}]}, "'caption' must be str, got 2"),
        (GOOD, {"annotations": [{"caption": "x"}]}, "c.json.*'image_id' must be int.*no such key"),
        (GOOD, {"annotations": []}, "no image has both"),
        ({**GOOD, "annotations": []}, TEXTS, "no image has both"),
    ],
)
def test_damaged_files_are_named(
    tmp_path: Path, instances: Any, captions: Any, message: str
) -> None:
    paths = write(tmp_path / "i.json", instances), write(tmp_path / "c.json", captions)
    with pytest.raises(ValueError, match=message):
        caption_completeness(*paths)


def test_files_that_are_not_json_are_named(tmp_path: Path) -> None:
    good = write(tmp_path / "c.json", TEXTS)
    cut = tmp_path / "cut.json"
    cut.write_bytes(json.dumps(GOOD).encode()[:-5])
    with pytest.raises(ValueError, match=r"cut\.json is not a JSON file"):
        caption_completeness(cut, good)
    cut.write_bytes(b"\xff\xfe\x00garbage")
    with pytest.raises(ValueError, match=r"cut\.json is not a JSON file"):
        caption_completeness(cut, good)
    with pytest.raises(FileNotFoundError):
        caption_completeness(tmp_path / "none.json", good)


def test_files_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    instances = tmp_path / "i.json"
    instances.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    found = caption_completeness(instances, write(tmp_path / "c.json", TEXTS))
    assert found.captions[0].missing == ()


def test_plot_shows_both_distributions(tmp_path: Path, render: Any) -> None:
    result = compare(
        tmp_path, [["dog", "cat", "bus"]], [["a dog", "a cat", "a dog, a cat and a bus"]]
    )
    figure = render(plot_completeness, result)
    shown = visible_texts(figure)
    assert "one caption (mean 1.33)" in shown
    assert "all captions of the image (mean 0.00)" in shown
    single, joined = figure.axes[0].containers
    assert [bar.get_height() for bar in single] == pytest.approx([100 / 3, 0, 200 / 3])
    assert [bar.get_height() for bar in joined] == [100]
