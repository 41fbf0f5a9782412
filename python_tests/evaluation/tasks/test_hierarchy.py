"""Superclasses from tables, and fine and coarse accuracy against brute force."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from cyclip_ext.data import Superclasses
from cyclip_ext.evaluation import fine_and_coarse, read_superclasses, superclasses_of
from cyclip_ext.evaluation.tasks.hierarchy import plot_superclasses, superclass_table

from .cases import unit

PETS = {"cat": "animal", "bus": "vehicle", "dog": "animal", "oak": "plant"}
# CIFAR-100's own order of coarse labels beside fine labels, as its data files have it.
CIFAR100_COARSE = [
    *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11),
    *(6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5),
    *(5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17),
    *(10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13),
    *(16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13),
]


def superclasses(*of_class: int) -> Superclasses:
    names = tuple(f"s{i}" for i in range(max(of_class) + 1))
    return Superclasses(names, torch.tensor(of_class))


def random_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Superclasses]:
    classes = unit(12, 6)
    labels = torch.randint(12, (200,), generator=torch.Generator().manual_seed(0))
    images = normalize(classes[labels] + unit(200, 6, seed=1), dim=-1)
    return images, classes, labels, superclasses(0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 0, 0)


def table_of(*case: Any) -> Any:
    return superclass_table("group", case[3], case[2], fine_and_coarse(*case))


def test_fine_and_coarse_equal_brute_force() -> None:
    images, classes, labels, hierarchy = random_case()
    ranked = fine_and_coarse(images, classes, labels, hierarchy)
    metrics = ranked.metrics((1, 2, 3))
    of_class = hierarchy.of_class.tolist()
    similarity = (images @ classes.T).tolist()
    for k in (1, 2, 3):
        fine = coarse = 0
        for row, label in zip(similarity, labels.tolist(), strict=True):
            own = [c for c in range(12) if of_class[c] == of_class[label]]
            fine += label in sorted(own, key=lambda c: -row[c])[:k]
            best = {s: max(row[c] for c in range(12) if of_class[c] == s) for s in range(4)}
            coarse += of_class[label] in sorted(best, key=lambda s: -best[s])[:k]
        assert metrics[f"fine_acc{k}"] == pytest.approx(fine / 200)
        assert metrics[f"coarse_acc{k}"] == pytest.approx(coarse / 200)


def test_ties_count_against_the_model() -> None:
    # Collapsed towers score 0 for any order of the classes. A tie within a superclass does not
    # count against the superclass.
    same = torch.ones(4, 2)
    ranked = fine_and_coarse(same, same, torch.arange(4), superclasses(0, 0, 1, 1))
    assert ranked.metrics((1, 2)) == {
        "fine_acc1": 0,
        "fine_acc2": 1,
        "coarse_acc1": 0,
        "coarse_acc2": 1,
    }
    one = fine_and_coarse(same, same, torch.arange(4), superclasses(0, 0, 0, 0))
    assert one.metrics((1,))["coarse_acc1"] == 1


def test_accuracies_are_counted_by_superclass() -> None:
    classes = torch.eye(5)
    hierarchy = Superclasses(("b", "a", "c"), torch.tensor([1, 1, 0, 2, 2]))
    images = torch.stack([classes[0], classes[0], classes[2], classes[2]])
    labels = torch.tensor([0, 1, 1, 2])  # right; wrong in a; in b; right
    a, b, c = table_of(images, classes, labels, hierarchy).rows
    assert a == ("a", 2, 3, pytest.approx(200 / 3), pytest.approx(100 / 3))  # image 2: fine ties
    assert b == ("b", 1, 1, 100, 100)
    assert c == ("c", 2, 0, None, None)


def test_superclasses_average_to_the_whole() -> None:
    rows, metrics = table_of(*random_case()).rows, fine_and_coarse(*random_case()).metrics()
    for column, name in ((3, "coarse_acc1"), (4, "fine_acc1")):
        hits = sum(row[2] * row[column] / 100 for row in rows)
        assert hits / 200 == pytest.approx(metrics[name])


def test_superclasses_are_in_the_order_of_the_classes_in_any_spelling() -> None:
    found = superclasses_of({**PETS, "ash_tree": "plant"}, ["bus", "Ash tree", "dog", "cat"])
    assert found.names == ("vehicle", "plant", "animal")
    assert found.of_class.tolist() == [0, 1, 2, 2]
    with pytest.raises(ValueError, match=r"no superclass for 2 of 3 classes \(elm, fir\)"):
        superclasses_of(PETS, ["elm", "cat", "fir"])


def test_packaged_cifar100_equals_its_own_labels() -> None:
    table = read_superclasses("cifar100")
    assert set(Counter(table.values()).values()) == {5}
    assert len(set(table.values())) == 20
    fine = sorted(table)  # the order of CIFAR-100's fine labels
    coarse = sorted(set(table.values()))
    assert [coarse.index(table[name]) for name in fine] == CIFAR100_COARSE


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("table.json", json.dumps(PETS)),
        (
            "table.json",
            json.dumps({"animal": ["cat", "dog"], "vehicle": ["bus"], "plant": ["oak"]}),
        ),
        ("table.csv", 'class,superclass\ncat, animal\n\n"bus",vehicle\ndog,animal\noak,plant\n'),
    ],
)
def test_files_of_each_form_are_read(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert read_superclasses(tmp_path / name) == PETS


def test_tables_are_utf8_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    for name, content in (("t.json", json.dumps(PETS)), ("t.csv", "class,superclass\ncat,animal")):
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert read_superclasses(path)["cat"] == "animal"
        path.write_bytes(content.replace("cat", "café").encode("latin-1"))
        if path.suffix == ".csv":  # JSON has the letter as ASCII
            with pytest.raises(ValueError, match=r"t\.csv is not UTF-8"):
                read_superclasses(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "cat,animal\n", "line 1: the header must be class,superclass, got cat,animal"),
        (
            "t.csv",
            "class,superclass\ncat\n",
            "line 2: a row is a class and its superclass, got 1 cell",
        ),
        (
            "t.csv",
            "class,superclass\ncat,a\ndog,a\ncat,b\n",
            "line 4: class 'cat' is already in line 2",
        ),
        ("t.csv", "class,superclass\n", "has no classes"),
        ("t.csv", "class,superclass\ncat,\n", "line 2: class and superclass must not be empty"),
        ("t.json", '{"a": ["x"], "b": ["x"]}', "'b': class 'x' is already in entry 'a'"),
        ("t.json", '{"a": ["x"], "y": "b"}', "mixes"),
        ("t.json", '{"a": 3}', "entry 'a': must be"),
        ("t.json", "[]", "must be an object of class -> superclass .*, got list"),
        ("t.json", "{", "is not a JSON file"),
        ("t.txt", "", ".json or .csv file or one of cifar100"),
    ],
)
def test_wrong_tables_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_superclasses(tmp_path / name)


def test_plot_has_a_row_for_each_superclass_with_images(render: Any) -> None:
    table = table_of(*random_case())
    axes = render(plot_superclasses, table).axes[0]
    name, classes, images, coarse, _ = max(table.rows, key=lambda row: row[3])
    assert axes.get_yticklabels()[0].get_text() == f"{name} ({classes}, {images})"
    assert axes.collections[0].get_offsets()[0].tolist() == [coarse, 0]


def test_plot_of_many_superclasses_shows_the_largest(render: Any) -> None:
    classes = unit(30, 8)
    labels = torch.arange(30).repeat_interleave(torch.arange(30))  # class i has i images
    table = table_of(classes[labels], classes, labels, superclasses(*range(30)))
    axes = render(plot_superclasses, table).axes[0]
    assert {label.get_text() for label in axes.get_yticklabels()} == {
        f"s{i} (1, {i})" for i in range(10, 30)
    }
    assert "largest 20 of 29" in axes.get_ylabel()
