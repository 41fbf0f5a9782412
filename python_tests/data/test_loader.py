"""Batches are a function of (seed, epoch, step), however they are reached."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cyclip_ext.data import (
    Augment,
    Batch,
    ImageDataset,
    Loader,
    Sample,
    SkipReport,
    as_input,
    load_shapes,
    open_dataset,
)
from cyclip_ext.data.captions import MAX_WORD
from cyclip_ext.data.seeding import epoch_order, uniforms

from .files import encode, jpeg

SHAPES = load_shapes(24)
CONTEXT = multiprocessing.get_context


def tokenize(texts: list[str]) -> Tensor:
    """Return the lengths of texts and words: enough to recognize a text."""
    return torch.tensor([[len(text), len(text.split())] for text in texts])


def all_same(ones: Iterable[Batch | None], others: Iterable[Batch | None]) -> bool:
    for one, other in zip(ones, others, strict=True):
        if one is None or other is None:
            if one is not other:
                return False
            continue
        tensors = [(one.images, other.images), (one.indices, other.indices)]
        if one.tokens is not None and other.tokens is not None:
            tensors.append((one.tokens, other.tokens))
        if one.texts != other.texts or not all(torch.equal(a, b) for a, b in tensors):
            return False
    return True


def noise(number: int) -> Image.Image:
    """Return another image for each number; nearly square, so that crops of it differ."""
    pixels = np.random.default_rng(number).integers(0, 255, (30, 28, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def table(tmp_path: Path) -> str:
    rows = ["image,caption"]
    for i in range(23):
        (tmp_path / f"{i}.png").write_bytes(encode(noise(i)) if i % 7 else jpeg()[:300])
        rows.append(f"{i}.png,the long caption of image {i}")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    return str(tmp_path / "t.csv")


@pytest.fixture(params=["files", "memory"])
def source(request: pytest.FixtureRequest, table: str) -> tuple[ImageDataset, Augment | None]:
    return (open_dataset(table), None) if request.param == "files" else (SHAPES.train, Augment())


def test_in_memory_batches_repeat_and_resume() -> None:
    loader = Loader(SHAPES.train, 50, 16, seed=3, augment=Augment())
    assert len(loader) == len(SHAPES.train) // 50
    first = list(loader.epoch(2))
    assert len(first) == len(loader)
    again = list(Loader(SHAPES.train, 50, 16, seed=3, augment=Augment()).epoch(2, start=5))
    assert all_same(first[5:], again)
    assert list(loader.epoch(2, start=len(loader))) == []
    indices = torch.cat([batch.indices for batch in first if batch is not None])
    assert len(indices.unique()) == len(indices)


def test_epochs_and_seeds_differ() -> None:
    def first(seed: int, epoch: int) -> Tensor:
        batch = next(Loader(SHAPES.train, 50, 16, seed=seed, augment=Augment()).epoch(epoch))
        assert batch is not None
        return batch.indices

    assert not torch.equal(first(3, 0), first(3, 1))
    assert not torch.equal(first(3, 0), first(4, 0))


def test_a_sample_does_not_depend_on_its_batch() -> None:
    views = {}
    for batch in Loader(SHAPES.train, 7, 16, seed=1, augment=Augment()).epoch(0):
        assert batch is not None
        views |= dict(zip(batch.indices.tolist(), batch.images, strict=True))
    large = next(Loader(SHAPES.train, 64, 16, seed=1, augment=Augment()).epoch(0))
    assert large is not None
    for index, image in zip(large.indices.tolist(), large.images, strict=True):
        assert torch.equal(views[index], image)


@pytest.mark.parametrize("workers", [0, 2])
def test_file_batches_repeat_with_any_number_of_workers(table: str, workers: int) -> None:
    dataset = open_dataset(table)
    reference = list(Loader(dataset, 5, 16, seed=1, views=2, tokenize=tokenize).epoch(4))
    before = torch.random.get_rng_state()
    loader = Loader(dataset, 5, 16, seed=1, views=2, tokenize=tokenize, workers=workers)
    batches = list(loader.epoch(4))
    assert torch.equal(torch.random.get_rng_state(), before)  # a resumed run draws the same dropout
    assert len(batches) == len(loader) == 4
    assert all_same(batches, reference)
    assert all_same(loader.epoch(4, start=2), batches[2:])
    assert list(loader.epoch(4, start=4)) == []
    next(loader.epoch(4))  # an epoch that is abandoned, with batches under way
    assert all_same(loader.epoch(4), reference)


def test_results_of_an_earlier_epoch_end_when_another_begins(table: str) -> None:
    loader = Loader(open_dataset(table), 5, 16, workers=1)
    earlier = loader.epoch(0)
    next(earlier)
    next(loader.epoch(1))
    with pytest.raises(RuntimeError, match="the workers got other items"):
        next(earlier)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_start_by_any_method(
    table: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(table)
    reference = list(Loader(dataset, 5, 16).epoch(0))
    previous = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        assert all_same(Loader(dataset, 5, 16, workers=1).epoch(0), reference)
    finally:
        multiprocessing.set_start_method(previous, force=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_not_overwritten_by_later_ones(table: str, workers: int) -> None:
    images, copies = [], []
    for batch in Loader(open_dataset(table), 2, 16, seed=1, workers=workers).epoch(0):
        if batch is not None:
            images.append(batch.images)
            copies.append(batch.images.clone())
    assert all(map(torch.equal, images, copies))


def test_ranks_divide_the_same_batch(source: tuple[ImageDataset, Augment | None]) -> None:
    dataset, augment = source
    steps = []
    for batch_size, world_size in [(12, 1), (6, 2), (4, 3), (1, 12)]:
        make = partial(Loader, dataset, batch_size, 16, seed=2, augment=augment, views=2)
        ranks = [make(rank=rank, world_size=world_size) for rank in range(world_size)]
        assert {len(loader) for loader in ranks} == {len(dataset) // 12}
        epochs = [loader.epoch(1) for loader in ranks]
        steps.append([joined(parts) for parts in zip(*epochs, strict=True)])
    for other in steps[1:]:
        assert all_same(other, steps[0])


def joined(parts: Iterable[Batch | None]) -> Batch:
    """Return the batches of all ranks, in two views, as that of a single one."""
    batches = [batch for batch in parts if batch is not None]
    views = [batch.images.chunk(2) for batch in batches]
    halves = [(batch.texts[: len(batch)], batch.texts[len(batch) :]) for batch in batches]
    return Batch(
        torch.cat([view[which] for which in (0, 1) for view in views]),
        [text for which in (0, 1) for half in halves for text in half[which]],
        torch.cat([batch.indices for batch in batches]),
    )


def test_a_resumed_epoch_continues_on_each_rank(table: str) -> None:
    loader = Loader(open_dataset(table), 2, 16, rank=1, world_size=2)
    whole = list(loader.epoch(0))
    assert all_same(loader.epoch(0, start=3), whole[3:])


def test_a_second_view_does_not_change_the_first(
    source: tuple[ImageDataset, Augment | None],
) -> None:
    dataset, augment = source
    make = partial(Loader, dataset, 20, 16, seed=3, augment=augment, tokenize=tokenize)
    one, two, later = next(make().epoch(0)), *map(next, map(make(views=2).epoch, (0, 1)))
    assert one is not None
    assert two is not None
    assert later is not None
    count = len(one)
    assert len(two.images) == len(two.texts) == 2 * count == 2 * len(two)
    assert torch.equal(one.images, two.images[:count])
    assert one.texts == two.texts[:count]
    assert torch.equal(one.tokens, two.tokens[:count])  # type: ignore[arg-type,index]
    assert torch.equal(two.tokens, tokenize(two.texts))  # type: ignore[arg-type]
    first, second = as_input(two.images).chunk(2)
    differ = (first - second).flatten(1).abs().amax(1) > 1e-3
    assert differ.float().mean() > 0.7  # a crop of a small image may be drawn twice
    pairs = zip(two.texts[:count], two.texts[count:], strict=True)
    assert sum(text != other for text, other in pairs) >= 15
    assert later.texts[count:] != two.texts[count:]


def groups(batch: Batch) -> list[list[str]]:
    """Return the texts of the rows that share each hash of several rows."""
    assert batch.hashes is not None
    rows = {number: batch.hashes[batch.hashes[:, 1] == number, 0] for number in batch.hashes[:, 1]}
    return sorted([batch.texts[row] for row in found] for found in rows.values() if len(found) > 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_hashes_are_shared_by_equal_images_and_by_equal_captions(
    tmp_path: Path, workers: int
) -> None:
    captions = ["A  dog", "a \ufb01sh", "three", "a d\uff4fg", "A FISH", "six", "seven"]
    for i in range(7):
        data = jpeg()[:300] if i == 6 else encode(noise(2 if i == 5 else i))
        (tmp_path / f"{i}.png").write_bytes(data)
    rows = [f"{i}.png,{caption}" for i, caption in enumerate(captions)]
    (tmp_path / "t.csv").write_text("\n".join(["image,caption", *rows]), encoding="utf-8")
    dataset = open_dataset(str(tmp_path / "t.csv"))
    loader = Loader(dataset, 7, 16, workers=workers, hashes=True)
    batch = next(loader.epoch(0))
    loader.close()
    assert batch is not None
    assert len(batch) == 6
    found = [sorted(texts) for texts in groups(batch)]
    assert sorted(found) == [["A FISH", "a \ufb01sh"], ["A dog", "a d\uff4fg"], ["six", "three"]]
    assert next(Loader(dataset, 7, 16).epoch(0)).hashes is None  # type: ignore[union-attr]


def test_hashes_of_a_dataset_in_memory_are_of_all_its_captions() -> None:
    batch = next(Loader(SHAPES.train, 40, 16, augment=Augment(), hashes=True).epoch(0))
    assert batch is not None
    assert batch.hashes is not None
    shown = [set(SHAPES.train.captions[i]) for i in batch.indices]
    found = [set(batch.hashes[batch.hashes[:, 0] == row, 1].tolist()) for row in range(40)]
    for one, own in zip(shown, found, strict=True):
        assert [bool(one & other) for other in shown] == [bool(own & other) for other in found]
    assert all(len(own) == 1 + len(one) for one, own in zip(shown, found, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_skipped_and_counted(table: str, workers: int) -> None:
    loader = Loader(open_dataset(table), 23, 16, tokenize=tokenize, workers=workers)
    (batch,) = loader.epoch(0)
    assert batch is not None
    assert sorted(batch.indices.tolist()) == [i for i in range(23) if i % 7]
    assert len(batch.texts) == len(batch.images) == len(batch.tokens) == 19  # type: ignore[arg-type]
    assert loader.skipped.counts == {"truncated": 4}
    assert "4 truncated (e.g. " in str(loader.skipped)
    single = Loader(open_dataset(table), 1, 16, tokenize=tokenize, workers=workers)
    batches = list(single.epoch(0))
    assert [batch is None for batch in batches].count(True) == 4  # steps without a record
    tail = list(single.epoch(0, start=11))
    assert [batch is None for batch in tail] == [batch is None for batch in batches[11:]]


def test_images_and_tokens_are_pinned_on_request(
    table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    options = {"seed": 1, "tokenize": tokenize}
    batch = next(Loader(open_dataset(table), 5, 16, **options, pin_memory=True).epoch(0))  # type: ignore[arg-type]
    assert batch is not None
    assert {id(tensor) for tensor in pinned} == {id(batch.images), id(batch.tokens)}
    next(Loader(open_dataset(table), 5, 16, **options).epoch(0))  # type: ignore[arg-type]
    assert len(pinned) == 2


def test_skipped_is_of_the_current_epoch(table: str) -> None:
    loader = Loader(open_dataset(table), 23, 16)
    list(loader.epoch(0))
    first = loader.skipped
    epoch = loader.epoch(1)
    assert loader.skipped.total == 0  # from the call on, not from the first batch on
    list(epoch)
    assert loader.skipped.counts == first.counts == {"truncated": 4}


class Made(ImageDataset):
    """A dataset in memory with given captions."""

    name = "made"

    def __init__(self, captions: dict[int, str], count: int = 8) -> None:
        self.captions = captions
        self.count = count
        self.skipped = SkipReport()
        self.loaded = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        self.loaded += 1
        caption = self.captions.get(index, "a")
        if caption == "out of memory":
            raise MemoryError
        return Sample(Image.new("RGB", (16, 16)), str(index), (caption,) if caption else ())


def test_late_steps_of_a_large_epoch_come_at_once() -> None:
    """Listing the indices of all remaining steps took seconds and gigabytes at 12 million."""
    huge = Made({}, 3_000_000)
    loader = Loader(huge, 8, 16)
    next(loader.epoch(0, start=len(loader) - 1))
    assert huge.loaded == 8


@pytest.mark.parametrize("workers", [0, 1])
def test_records_without_caption_or_too_large_for_the_memory_are_skipped(workers: int) -> None:
    loader = Loader(Made({3: "", 5: "out of memory"}), 8, 16, workers=workers)
    (batch,) = loader.epoch(0)
    assert batch is not None
    assert sorted(batch.indices.tolist()) == [0, 1, 2, 4, 6, 7]
    assert loader.skipped.to_dict() == {
        "no caption": {"count": 1, "examples": ["3"]},
        "out of memory": {"count": 1, "examples": ["made[5]"]},
    }


@pytest.mark.parametrize("workers", [0, 1])
def test_endless_words_are_cut_before_tokenizing_and_counted(workers: int) -> None:
    """One word of 64,000 letters would take minutes in the tokenizer."""
    dataset = Made({1: "x" * 64_000, 5: "many short words " * 20, 6: "a " + "y" * (MAX_WORD + 1)})
    loader = Loader(dataset, 8, 16, tokenize=tokenize, workers=workers)
    with pytest.warns(UserWarning, match="made has captions with extremely long words"):
        (batch,) = loader.epoch(0)
    assert batch is not None
    assert batch.tokens is not None
    lengths = dict(zip(batch.indices.tolist(), batch.tokens[:, 0].tolist(), strict=True))
    assert [lengths[i] for i in (0, 1, 5, 6)] == [1, MAX_WORD, 20 * 17, MAX_WORD + 2]
    assert loader.shortened == 2
    with warnings.catch_warnings():  # once is enough
        warnings.simplefilter("error")
        list(loader.epoch(1))
    assert loader.shortened == 2


def test_draws_are_uniform_and_independent() -> None:
    draws = uniforms(0, 0, torch.arange(20_000), 9)
    assert draws.dtype == torch.float32
    assert draws.min() >= 0
    assert draws.max() < 1
    assert (draws.mean(0) - 0.5).abs().max() < 0.01
    assert (draws.var(0) - 1 / 12).abs().max() < 0.002
    assert (torch.corrcoef(draws.T) - torch.eye(9)).abs().max() < 0.03
    later = uniforms(0, 1, torch.arange(20_000), 9)
    assert torch.corrcoef(torch.stack([draws[:, 0], later[:, 0]]))[0, 1].abs() < 0.03
    assert torch.equal(uniforms(0, 0, torch.tensor([17]), 9)[0], draws[17])


def test_order_is_a_fixed_permutation() -> None:
    assert epoch_order(0, 0, 1000).sort().values.equal(torch.arange(1000))
    assert epoch_order(0, 0, 1000).equal(epoch_order(0, 0, 1000))
    assert not epoch_order(0, 0, 1000).equal(epoch_order(0, 1, 1000))
    assert not epoch_order(0, 1, 1000).equal(epoch_order(1, 0, 1000))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 24}, "batch_size must be between 1 and the 23 records"),
        ({"batch_size": 12, "rank": 1, "world_size": 2}, "batch_size must be between 1 and the 23"),
        ({"rank": 2, "world_size": 2}, r"rank must be in \[0, world_size\), got 2 of 2"),
        ({"views": 3}, "views must be 1 or 2, got 3"),
        ({"workers": -1}, "workers must be 0 or more, got -1"),
        ({"augment": Augment()}, "augment must be None"),
        ({"dataset": SHAPES.train, "workers": 2}, "workers must be 0 for shapes/train"),
    ],
)
def test_wrong_arguments_are_named(table: str, options: dict[str, object], message: str) -> None:
    arguments = {"dataset": open_dataset(table), "batch_size": 4, "image_size": 16, **options}
    with pytest.raises(ValueError, match=message):
        Loader(**arguments)  # type: ignore[arg-type]
