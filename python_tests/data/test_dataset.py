"""Datasets: records, splits, fingerprints, and counts of bad records."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from cyclip_ext._files import NotRegularFileError, read_text, regular_size, write_atomic
from cyclip_ext.data import (
    BadRecord,
    InMemoryDataset,
    SkipReport,
    Subset,
    Superclasses,
    load_shapes,
    require_usable,
)
from cyclip_ext.data.dataset import digest
from cyclip_ext.data.skips import TooManyBadRecords

SHAPES = load_shapes(16)
SHIFTED = SHAPES.evaluation["shifted"]


def test_a_sample_of_a_dataset_in_memory_is_rgb_on_white() -> None:
    sample = SHIFTED[5]
    assert sample.image.mode == "RGB"
    assert sample.image.getpixel((0, 0)) == (255, 255, 255)
    assert SHIFTED.labels is not None
    assert SHIFTED.domains is not None
    assert (sample.key, sample.captions) == ("shapes/shifted[5]", SHIFTED.captions[5])
    assert (sample.label, sample.domain) == (SHIFTED.labels[5], SHIFTED.domains[5])
    assert SHIFTED.load(5, min_side=4) == sample


@pytest.mark.parametrize("how", ["view", "in memory"])
def test_a_subset_keeps_what_is_known_of_its_records(how: str) -> None:
    chosen = np.array([7, 2, 90])
    subset = Subset(SHIFTED, chosen) if how == "view" else SHIFTED.subset(chosen)
    assert len(subset) == 3
    assert SHIFTED.labels is not None
    for position, index in enumerate(chosen.tolist()):
        one, two = subset[position], SHIFTED[index]
        assert one.image.tobytes() == two.image.tobytes()
        assert (one.captions, one.label, one.domain) == (two.captions, two.label, two.domain)
        assert subset.load(position).captions == two.captions
    assert subset.labels is not None
    assert subset.domains is not None
    assert subset.labels.tolist() == SHIFTED.labels[chosen].tolist()
    assert subset.class_names == SHIFTED.class_names
    assert subset.domain_names == SHIFTED.domain_names
    assert set(subset.levels) == {"subgroup", "group"}


def test_fingerprints_change_with_records_and_their_order() -> None:
    orders = [[0, 1, 2], [0, 2, 1], [0, 1], [0, 1, 3]]
    views = [Subset(SHIFTED, order).fingerprint() for order in orders]
    copies = [SHIFTED.subset(np.array(order)).fingerprint() for order in orders]
    assert len(set(views)) == len(set(copies)) == 4
    assert Subset(SHIFTED, orders[0]).fingerprint() == views[0]
    assert SHIFTED.subset(np.array(orders[0])).fingerprint() == copies[0]
    renamed = InMemoryDataset("x", SHIFTED.images[:3], tuple((c,) for c in "abc"))
    assert renamed.fingerprint() not in copies
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("\udcff") != digest("x")  # a name that is not UTF-8


def test_class_captions_are_those_of_the_first_image_or_the_name() -> None:
    dataset = InMemoryDataset(
        "x",
        SHIFTED.images[:3],
        (("a cat", "pet"), ("a dog",), ("a cat", "lion")),
        labels=torch.tensor([2, 0, 2]),
        class_names=("a dog", "a fish", "a cat"),
    )
    assert dataset.class_captions() == (("a dog",), ("a fish",), ("a cat", "pet"))


def test_superclasses_are_numbered_in_order_of_appearance() -> None:
    level = Superclasses.build(["pets", "fish", "pets"])
    assert (level.names, level.of_class.tolist()) == (("pets", "fish"), [0, 1, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(1, 3, 8, 8)}, r"uint8 \[n, 4, s, s\], got torch.float32 \[1, 3"),
        ({"captions": ()}, "captions must be one for each of the 1 images, got 0"),
        ({"labels": torch.tensor([0, 1])}, "labels must be one for each of the 1 images, got 2"),
        ({"domains": torch.tensor([0, 1])}, "domains must be one for each of the 1 images, got 2"),
        ({"class_names": ("cat", "dog", "cat")}, r"must be unique, got \['cat'\] more than once"),
    ],
)
def test_records_that_do_not_fit_together_are_rejected(
    change: dict[str, object], message: str
) -> None:
    arguments = {"name": "x", "images": SHIFTED.images[:1], "captions": (("cat",),), **change}
    with pytest.raises(ValueError, match=message):
        InMemoryDataset(**arguments)  # type: ignore[arg-type]


def test_a_bad_record_survives_pickling_and_printing() -> None:
    bad = pickle.loads(pickle.dumps(BadRecord("truncated", "caf\udce9.jpg")))
    assert (bad.reason, str(bad)) == ("truncated", "caf\\udce9.jpg: truncated")


def test_report_counts_and_gives_examples() -> None:
    report = SkipReport()
    assert str(report) == "none skipped"
    for i in range(5):
        report.add("truncated", f"{i}.jpg")
    report.add("missing", "x.jpg")
    assert str(report) == "6 skipped: 5 truncated (e.g. 0.jpg), 1 missing (e.g. x.jpg)"
    assert report.total == 6
    assert json.dumps(report.counts) == '{"truncated": 5, "missing": 1}'


def test_too_many_bad_records_are_an_error_with_examples() -> None:
    skipped = SkipReport()
    for i in range(3):
        skipped.add("truncated", f"{i}.jpg")
    skipped.add("not downloaded", "row 7")  # dead addresses are not damage
    require_usable(100, skipped, 0.03)
    message = r"x: 3 of 99 records are bad \(3\.0%\), more than the 2\.9% allowed.*0\.jpg.*verify"
    with pytest.raises(TooManyBadRecords, match=message):
        require_usable(99, skipped, 0.029, "x")
    require_usable(0, SkipReport(), 0.0)
    with pytest.raises(TooManyBadRecords):
        require_usable(3, skipped, 0.0)
    with pytest.raises(ValueError, match="max_share must be between 0 and 1, got 5"):
        require_usable(99, skipped, 5)


def test_reports_of_ranks_add_up() -> None:
    total = SkipReport()
    for rank in range(3):
        one = SkipReport()
        for i in range(2):
            one.add("truncated", f"{rank}/{i}.jpg")
        total.merge(SkipReport.from_dict(json.loads(json.dumps(one.to_dict()))))
    assert total.counts == {"truncated": 6}
    assert total.examples == {"truncated": ["0/0.jpg", "0/1.jpg", "1/0.jpg"]}


def test_only_regular_files_have_a_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "link").symlink_to("a")
    os.mkfifo(tmp_path / "pipe")
    assert regular_size(tmp_path / "link") == 3
    for path, kind in ((tmp_path, "a folder"), (tmp_path / "pipe", "a FIFO")):
        for read in (regular_size, read_text):  # reading a FIFO would never end
            with pytest.raises(NotRegularFileError, match=f"is not a regular file but {kind}"):
                read(path)
    with pytest.raises(NotRegularFileError, match="a character device"):
        regular_size("/dev/zero")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, "é")
    assert read_text(path) == "é"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"folder"):
        write_atomic(tmp_path / "folder", b"x")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.json", "folder"]
    path.write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"a\.json is not UTF-8 \(byte 3\)"):
        read_text(path)
