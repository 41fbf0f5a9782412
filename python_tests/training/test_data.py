"""Datasets of a run: options, fractions, and validation that does not overlap."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from evaluation.tiny import tiny_encoder
from PIL import Image

from cyclip_ext.data import (
    BadRecord,
    ImageDataset,
    InMemoryDataset,
    Sample,
    SkipReport,
    TooManyBadRecords,
)
from cyclip_ext.data.__main__ import main as data_main
from cyclip_ext.evaluation.encode import unambiguous_captions
from cyclip_ext.training.assess import Assessor
from cyclip_ext.training.config import DataConfig
from cyclip_ext.training.data import fraction_of, open_data, require_readable, split_pairs
from cyclip_ext.training.report import comparison_table, mean_and_deviation

from .parts import shapes, write_shards, write_table


def test_validation_pairs_are_not_trained_on() -> None:
    pairs = shapes().train
    train, validation = split_pairs(pairs)
    assert len(train) + len(validation) == len(pairs)
    assert len(validation) == int(0.05 * len(pairs))
    keys = [part[i].image.tobytes() for part in (train, validation) for i in (0, len(part) - 1)]
    assert len(set(keys)) == 4


def test_records_skipped_on_opening_are_not_those_of_the_validation_part(tmp_path: Path) -> None:
    """If they were, a validation part of 5% would exceed max_skipped, and the run would stop."""
    rows = "".join(f"{index}.png,caption {index}\n" for index in range(95)) + ",no image\n" * 5
    (tmp_path / "t.csv").write_text("image,caption\n" + rows)
    for index in range(95):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{index}.png")
    data = open_data(DataConfig(train_data=str(tmp_path / "t.csv"), max_skipped=0.1))
    assert data.validation is not None
    assert (len(data.train), data.train.skipped.total) == (91, 5)
    assert (len(data.validation), data.validation.skipped.total) == (4, 0)


def test_share_of_bad_rows_is_one_of_rows(tmp_path: Path) -> None:
    """Images have five captions; a share of images would be five times as large."""
    captions = ["one", "two", "three", "four", ""]
    rows = "".join(f"{index}.png,{caption}\n" for index in range(20) for caption in captions)
    (tmp_path / "t.csv").write_text("image,caption\n" + rows)
    for index in range(20):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{index}.png")
    config = DataConfig(train_data=str(tmp_path / "t.csv"), max_skipped=0.2)
    data = open_data(config)
    assert len(data.train) == 19
    assert data.name == f"table {tmp_path / 't.csv'}"
    with pytest.raises(TooManyBadRecords, match="20 of 100 records are bad"):
        open_data(replace(config, max_skipped=0.19))
    assert data_main(["verify", str(tmp_path / "t.csv"), "--max-skipped", "0.2"]) == 0
    assert data_main(["verify", str(tmp_path / "t.csv"), "--max-skipped", "0.19"]) == 1


def test_named_sets_reject_flags_for_files() -> None:
    with pytest.raises(ValueError, match='--val-data only applies to files; "shapes" has its own'):
        open_data(DataConfig(train_data="shapes", val_data="x.csv"))


class Broken(ImageDataset):
    """Dataset of four records, of which those from `good` on can be read."""

    name = "broken.csv"

    def __init__(self, good: int) -> None:
        self.good = good
        self.skipped = SkipReport()

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Sample:
        if index < self.good:
            raise BadRecord("truncated", f"{index}.jpg")
        image = Image.new("RGB", (16, 16), (60 * index, 9, 9))
        return Sample(image, str(index), (f"image {index}",))


def test_validation_pairs_that_cannot_be_read_are_counted() -> None:
    lines: list[str] = []
    assessor = Assessor(replace(tiny_encoder(), notify=lines.append))
    require_readable(Broken(2), "")
    assessor.retrieve(Broken(2))
    assert lines == ["  validation data: 2 images used, 2 skipped: 2 truncated (e.g. 0.jpg)"]
    for prefix, flags in (
        ("", "--train-data and --images"),
        ("val_", "--val-data and --val-images"),
    ):
        message = rf"no validation record of broken.csv .*4 truncated.*check {flags}$"
        with pytest.raises(ValueError, match=message):
            require_readable(Broken(4), prefix)
    with pytest.raises(ValueError, match=r"no image of broken.csv can be read: 4 skipped"):
        assessor.retrieve(Broken(4))


def test_options_of_tables_reach_the_reader(tmp_path: Path) -> None:
    rows = "".join(f"{i}.png\tno\tcaption {i}\n" for i in range(3))
    (tmp_path / "t.csv").write_text("bild\tcaption\tname\n" + rows)
    for i in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    path = str(tmp_path / "t.csv")
    with pytest.raises(ValueError, match="--csv-img-key"):
        open_data(DataConfig(train_data=path))
    data = open_data(
        DataConfig(train_data=path, csv_separator=r"\t", csv_img_key="bild", csv_caption_key="name")
    )
    assert data.train[0].captions == ("caption 1",)
    with pytest.raises(ValueError, match=r"--first-row. does not apply"):
        open_data(DataConfig(train_data=path, first_row=1))
    with pytest.raises(
        ValueError, match='--csv-img-key only applies to files; "shapes" has its own'
    ):
        open_data(DataConfig(train_data="shapes", csv_img_key="bild"))


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (0, r"t\.csv has no record that can be used; .*1 empty caption"),
        (1, r"no usable pairs in .*t\.csv: 1 found.*1 empty caption"),
    ],
)
def test_error_for_too_few_pairs_counts_skipped_records(
    tmp_path: Path, count: int, message: str
) -> None:
    (tmp_path / "t.csv").write_text("image,caption\n" + "a.png,a\n" * count + "b.png, \n")
    with pytest.raises(ValueError, match=message):
        open_data(DataConfig(train_data=str(tmp_path / "t.csv")))


def test_fractions_are_nested_and_leave_evaluation_alone() -> None:
    whole = open_data(DataConfig(train_data="shapes"))
    half = open_data(DataConfig(train_data="shapes", train_fraction=0.5))
    assert len(half.train) == round(len(whole.train) / 2)
    assert half.splits is not None
    assert whole.splits is not None
    assert len(half.splits.evaluation["shifted"]) == len(whole.splits.evaluation["shifted"])
    assert f"{len(half.train):,} are used" in half.description
    third, two_thirds = fraction_of(1000, 0.3), fraction_of(1000, 0.6)
    assert third is not None
    assert two_thirds is not None
    assert set(third) < set(two_thirds)
    assert fraction_of(3, 0.01).tolist() != []
    index = int(fraction_of(len(whole.train), 0.5)[7])
    assert half.train[7].captions == whole.train[index].captions
    assert half.train[7].image.tobytes() == whole.train[index].image.tobytes()


def test_captions_of_two_classes_are_excluded_from_retrieval() -> None:
    source = shapes().evaluation["validation"]
    dataset = InMemoryDataset(
        "two",
        source.images[:2],
        (("a cat", "pet"), ("a dog", "pet", "hound")),
        labels=torch.tensor([0, 1]),
        class_names=("a cat", "a dog"),
    )
    texts, labels = unambiguous_captions(dataset)
    assert (texts, labels.tolist()) == (["a cat", "a dog", "hound"], [0, 1, 1])


def test_table_shows_mean_and_sample_deviation() -> None:
    assert mean_and_deviation([1.0, 2.0, 3.0]) == (2.0, 1.0)
    runs = {"CLIP": [{"shifted": {"acc1": 0.24}}, {"shifted": {"acc1": 0.26}}]}
    assert "| CLIP | 2 | 25.0 ± 1.4 |" in comparison_table(runs)


def test_validation_pairs_have_their_own_options(tmp_path: Path) -> None:
    table = write_table(tmp_path / "val", range(6))
    (tmp_path / "val/table.csv").rename(tmp_path / "val/other.csv")
    text = (tmp_path / "val/other.csv").read_text().replace("image,caption", "bild,caption")
    Path(table).write_text(text)
    shards = str(write_shards(tmp_path / "shards", shapes().train, 1))
    data = open_data(DataConfig(train_data=shards, val_data=table, val_csv_img_key="bild"))
    assert data.validation is not None
    assert (len(data.train), len(data.validation)) == (len(shapes().train), 6)
    # The options of training data are not those of validation data, and the message names the flag.
    with pytest.raises(ValueError, match="--val-csv-img-key"):
        open_data(DataConfig(train_data=shards, val_data=table))
    with pytest.raises(ValueError, match=r"--val-first-row. does not apply"):
        open_data(DataConfig(train_data=shards, val_data=table, val_first_row=1))
    with pytest.raises(ValueError, match="--val-images applies to --val-data, which is not given"):
        open_data(DataConfig(train_data=shards, val_images="x"))
    with pytest.raises(ValueError, match="--val-manifest only applies to files"):
        open_data(DataConfig(train_data="shapes", val_manifest="x"))
