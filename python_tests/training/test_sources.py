"""What is trained on, what is measured on, and that the two do not overlap."""

import pytest
import torch

from cyclip_ext.data import PictureSet
from cyclip_ext.training.assess import unambiguous_captions
from cyclip_ext.training.config import DataConfig
from cyclip_ext.training.report import comparison_table, mean_and_deviation
from cyclip_ext.training.sources import open_data, split_pairs

from .parts import shapes


def test_validation_pairs_are_not_trained_on() -> None:
    pairs = shapes().train
    train, validation = split_pairs(pairs)
    assert len(train) + len(validation) == len(pairs)
    assert len(validation) == int(0.05 * len(pairs))
    keys = [part[i].image.tobytes() for part in (train, validation) for i in (0, len(part) - 1)]
    assert len(set(keys)) == 4


def test_named_sets_refuse_flags_for_files() -> None:
    with pytest.raises(ValueError, match="--val-data is for files, shapes brings its own"):
        open_data(DataConfig(train_data="shapes", val_data="x.csv"))


def test_captions_of_two_classes_are_no_retrieval_queries() -> None:
    source = shapes().evaluation["validation"]
    pictures = PictureSet(
        "two",
        source.images[:2],
        (("a cat", "pet"), ("a dog", "pet", "hound")),
        torch.tensor([0, 1]),
        type(source.classes).build([("a cat", "s", "g"), ("a dog", "s", "g")]),
        torch.tensor([0, 0]),
        ("style",),
    )
    texts, labels = unambiguous_captions(pictures)
    assert (texts, labels.tolist()) == (["a cat", "a dog", "hound"], [0, 1, 1])


def test_table_shows_mean_and_sample_deviation() -> None:
    assert mean_and_deviation([1.0, 2.0, 3.0]) == (2.0, 1.0)
    runs = {"CLIP": [{"shifted": {"acc1": 0.24}}, {"shifted": {"acc1": 0.26}}]}
    assert "| CLIP | 2 | 25.0 ± 1.4 |" in comparison_table(runs)
