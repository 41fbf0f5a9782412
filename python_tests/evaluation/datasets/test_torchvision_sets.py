"""torchvision's datasets in files that torchvision itself would write."""

from __future__ import annotations

import gzip
import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cyclip_ext.data import MissingData, ReadOptions
from cyclip_ext.evaluation.datasets import open_evaluation_dataset

from .opened import classified, image, named, write


def test_torchvision_sets_of_folders(tmp_path: Path) -> None:
    """Labels are read without opening images, so they could be those of other images."""
    pytest.importorskip("torchvision")
    for place, grey in (("AnnualCrop", 1), ("Forest", 2), ("SeaLake", 3)):
        write(tmp_path / "eurosat" / "2750" / place / "x.png", image(grey))
    write(tmp_path / "eurosat" / "2750" / "SeaLake" / "y.png", image(4)[:-30])
    data = classified("torchvision:eurosat", root=tmp_path)
    assert data.class_names == ("annual crops", "forest", "sea or lake")
    assert named(data) == {
        1: "annual crops",
        2: "forest",
        3: "sea or lake",
        "unreadable (OSError)": "sea or lake",
    }
    for code, grey in (("AD", 5), ("ZW", 6)):
        write(tmp_path / "country211" / "valid" / code / "x.png", image(grey))
    assert named(classified("torchvision:country211", root=tmp_path, split="val")) == {
        5: "AD",
        6: "ZW",
    }
    for mood, grey in (("negative", 7), ("positive", 8)):
        write(tmp_path / "rendered-sst2" / "test" / mood / "x.png", image(grey))
    assert named(classified("torchvision:rendered_sst2", root=tmp_path)) == {
        7: "negative",
        8: "positive",
    }


def test_torchvision_sets_with_lists(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    gtsrb = tmp_path / "gtsrb"
    for name, grey in (("0.ppm", 1), ("1.ppm", 2)):
        write(gtsrb / "GTSRB" / "Final_Test" / "Images" / name, image(grey, "PPM"))
    write(gtsrb / "GT-final_test.csv", "Filename;ClassId\n0.ppm;14\n1.ppm;42\n")
    data = classified("torchvision:gtsrb", root=tmp_path)
    assert len(data.class_names) == 43
    assert named(data) == {1: "stop", 2: "end of no overtaking by lorries"}

    dtd = tmp_path / "dtd" / "dtd"
    write(dtd / "labels" / "test1.txt", "zig_zag/b.jpg\nbanded/a.jpg\n")
    write(dtd / "images" / "zig_zag" / "b.jpg", image(3))
    write(dtd / "images" / "banded" / "a.jpg", image(4))
    assert named(classified("torchvision:dtd", root=tmp_path)) == {3: "zig zag", 4: "banded"}

    food = tmp_path / "food-101"
    write(food / "meta" / "test.json", json.dumps({"apple_pie": ["apple_pie/1"], "sushi": []}))
    write(food / "images" / "apple_pie" / "1.jpg", image(5))
    data = classified("torchvision:food101", root=tmp_path)
    assert data.class_names == ("apple pie", "sushi")
    assert named(data) == {5: "apple pie"}


def test_torchvision_mnist(tmp_path: Path) -> None:
    """torchvision calls the class "3 - three", and its images are grey."""
    pytest.importorskip("torchvision")
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.full((2, 28, 28), 7, dtype=np.uint8)
    pixels[1] = 9
    for prefix in ("train", "t10k"):
        images = struct.pack(">iiii", 2051, 2, 28, 28) + pixels.tobytes()
        labels = struct.pack(">ii", 2049, 2) + bytes([3, 0])
        write(raw / f"{prefix}-images-idx3-ubyte", images)
        write(raw / f"{prefix}-labels-idx1-ubyte", labels)
        for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
            write(raw / f"{prefix}-{kind}-ubyte.gz", gzip.compress(content))
    data = classified("torchvision:mnist", root=tmp_path)
    assert data.labels.dtype == torch.int64
    assert named(data) == {7: "3", 9: "0"}
    assert data.class_names == tuple("0123456789")


def test_torchvision_sets_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing dataset is an error; evaluation downloads nothing."""
    pytest.importorskip("torchvision")
    from cyclip_ext.evaluation.datasets.torchvision_sets import NAMES

    for name in NAMES:
        # ImportError: h5py, which PCAM needs
        with pytest.raises((MissingData, ImportError), match=f"torchvision:{name}") as error:
            open_evaluation_dataset(f"torchvision:{name}", root=tmp_path)
        if error.type is MissingData:
            assert "torchvision expects" in str(error.value)
            assert str(tmp_path) in str(error.value)
    assert not list(tmp_path.rglob("*.*"))
    with pytest.raises(
        ValueError, match="torchvision:cifar11 is unknown; choose one of caltech101"
    ):
        open_evaluation_dataset("torchvision:cifar11")
    with pytest.raises(ValueError, match="split of cifar10 must be one of train, test, got 'val'"):
        open_evaluation_dataset("torchvision:cifar10", ReadOptions(split="val"))
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=r"cyclip_ext\[eval\]"):
        open_evaluation_dataset("torchvision:cifar10", root=tmp_path)
