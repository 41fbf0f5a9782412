"""Batches are a function of (seed, epoch, step), whichever way they are reached."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cyclip_ext.data import (
    Augment,
    Batch,
    ImageDataset,
    Sample,
    as_input,
    load_shapes,
    make_loader,
    open_dataset,
)
from cyclip_ext.data.seeding import epoch_order, uniforms

from .files import encode, jpeg

SHAPES = load_shapes(24)
CONTEXT = multiprocessing.get_context


def same(one: Batch | None, two: Batch | None) -> bool:
    if one is None or two is None:
        return one is two
    if one.other_images is None or two.other_images is None:
        others = one.other_images is two.other_images
    else:
        others = torch.equal(one.other_images, two.other_images)
    return (
        others
        and torch.equal(one.images, two.images)
        and torch.equal(one.indices, two.indices)
        and (one.texts, one.other_texts) == (two.texts, two.other_texts)
    )


def all_same(ones: Iterable[Batch | None], others: Iterable[Batch | None]) -> bool:
    return all(same(one, other) for one, other in zip(ones, others, strict=True))


def noise(number: int) -> Image.Image:
    """Another picture for each number; nearly square, so that crops of it differ."""
    pixels = np.random.default_rng(number).integers(0, 255, (30, 28, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def table(tmp_path: Path) -> str:
    rows = ["image,caption"]
    for i in range(23):
        (tmp_path / f"{i}.png").write_bytes(encode(noise(i)) if i % 7 else jpeg()[:300])
        rows.append(f"{i}.png,the long caption of picture {i}")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    return str(tmp_path / "t.csv")


def test_memory_batches_repeat_and_resume() -> None:
    loader = make_loader(SHAPES.train, 50, 16, seed=3, augment=Augment())
    assert len(loader) == len(SHAPES.train) // 50
    first = list(loader.epoch(2))
    assert len(first) == len(loader)
    again = list(make_loader(SHAPES.train, 50, 16, seed=3, augment=Augment()).epoch(2, start=5))
    assert all_same(first[5:], again)
    assert len(again) == len(first) - 5
    assert list(loader.epoch(2, start=len(loader))) == []
    indices = torch.cat([batch.indices for batch in first])
    assert len(indices.unique()) == len(indices)


def test_epochs_and_seeds_differ() -> None:
    loader = make_loader(SHAPES.train, 50, 16, seed=3, augment=Augment())
    other = make_loader(SHAPES.train, 50, 16, seed=4, augment=Augment())
    batch = next(iter(loader.epoch(0)))
    assert not torch.equal(batch.indices, next(iter(loader.epoch(1))).indices)
    assert not torch.equal(batch.indices, next(iter(other.epoch(0))).indices)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    small = make_loader(SHAPES.train, 7, 16, seed=1, augment=Augment())
    large = make_loader(SHAPES.train, 64, 16, seed=1, augment=Augment())
    views = {
        i: im for b in small.epoch(0) for i, im in zip(b.indices.tolist(), b.images, strict=True)
    }
    batch = next(iter(large.epoch(0)))
    for index, image in zip(batch.indices.tolist(), batch.images, strict=True):
        assert torch.equal(views[index], image)


@pytest.mark.parametrize("workers", [0, 2])
def test_file_batches_repeat_whatever_the_workers(table: str, workers: int) -> None:
    pairs = open_dataset(table)
    reference = list(make_loader(pairs, 5, 16, seed=1, views=2).epoch(4))
    before = torch.random.get_rng_state()
    loader = make_loader(pairs, 5, 16, seed=1, views=2, workers=workers)
    batches = list(loader.epoch(4))
    assert torch.equal(torch.random.get_rng_state(), before)  # a resumed run draws the same dropout
    assert len(batches) == len(loader) == 4
    assert all_same(batches, reference)
    assert all_same(loader.epoch(4, start=2), batches[2:])
    assert list(loader.epoch(4, start=4)) == []


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_start_by_any_method(
    table: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing, "get_context", partial(CONTEXT, method))
    pairs = open_dataset(table)
    batches = make_loader(pairs, 5, 16, workers=1).epoch(0)
    assert all_same(batches, make_loader(pairs, 5, 16).epoch(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_not_overwritten_by_later_ones(table: str, workers: int) -> None:
    """Workers write into memory used again and again: a batch must not point into it."""
    loader = make_loader(open_dataset(table), 2, 16, seed=1, workers=workers)
    kept, copies = [], []
    for batch in loader.epoch(0):
        if batch is not None:
            kept.append(batch.images)
            copies.append(batch.images.clone())
    assert all(map(torch.equal, kept, copies))


LAYOUTS = [(12, 1), (6, 2), (4, 3), (1, 12)]  # batch size per rank, ranks


def joined(batches: list[Batch | None]) -> Batch:
    whole = [batch for batch in batches if batch is not None]
    return Batch(
        torch.cat([batch.images for batch in whole]),
        [text for batch in whole for text in batch.texts],
        torch.cat([batch.indices for batch in whole]),
        other_images=torch.cat([batch.other_images for batch in whole]),  # type: ignore[misc]
        other_texts=[text for batch in whole for text in batch.other_texts or ()],
    )


@pytest.mark.parametrize("files", [False, True])
def test_ranks_divide_the_same_batch(table: str, files: bool) -> None:
    """A repeat or a loss between ranks, or another order with another layout, shows here."""
    pairs = open_dataset(table) if files else SHAPES.train
    steps: list[list[Batch]] = []
    for batch_size, world_size in LAYOUTS:
        ranks = [
            make_loader(pairs, batch_size, 16, seed=2, rank=rank, world_size=world_size, views=2)
            for rank in range(world_size)
        ]
        assert {len(loader) for loader in ranks} == {len(pairs) // 12}
        epochs = [loader.epoch(1) for loader in ranks]
        steps.append([joined(list(parts)) for parts in zip(*epochs, strict=True)])
    for other in steps[1:]:
        assert all_same(other, steps[0])


def test_a_resumed_epoch_continues_on_each_rank(table: str) -> None:
    loader = make_loader(open_dataset(table), 2, 16, rank=1, world_size=2)
    assert all_same(loader.epoch(0, start=3), list(loader.epoch(0))[3:])


@pytest.mark.parametrize("files", [False, True])
def test_a_second_view_leaves_the_first_alone(table: str, files: bool) -> None:
    pairs, augment = (open_dataset(table), None) if files else (SHAPES.train, Augment())
    one = next(iter(make_loader(pairs, 20, 16, seed=3, augment=augment).epoch(0)))
    two = next(iter(make_loader(pairs, 20, 16, seed=3, augment=augment, views=2).epoch(0)))
    assert one is not None
    assert two is not None
    assert one.other_images is one.other_texts is None
    assert torch.equal(one.images, two.images)
    assert one.texts == two.texts
    assert two.other_images is not None
    assert two.other_images.shape == two.images.shape
    differ = (as_input(two.other_images) - as_input(two.images)).flatten(1).abs().amax(1) > 1e-3
    assert differ.float().mean() > 0.7  # a crop may be drawn twice, of a small picture
    assert two.other_texts is not None
    assert [text != other for text, other in zip(two.texts, two.other_texts, strict=True)].count(
        True
    ) >= 15
    again = next(iter(make_loader(pairs, 20, 16, seed=3, augment=augment, views=2).epoch(1)))
    assert again is not None
    assert again.other_texts != two.other_texts


def test_skipped_is_of_the_epoch_last_asked_for(table: str) -> None:
    loader = make_loader(open_dataset(table), 23, 16)
    list(loader.epoch(0))
    first = loader.skipped
    epoch = loader.epoch(1)
    assert loader.skipped.total == 0  # from the call on, not from the first batch on
    list(epoch)
    assert loader.skipped.counts == first.counts == {"truncated": 4}


def test_late_steps_of_a_large_epoch_come_at_once() -> None:
    """Listing the indices of all remaining steps took seconds and gigabytes at 12 million."""

    class Huge(ImageDataset):
        source = "huge"
        asked = 0

        def __len__(self) -> int:
            return 3_000_000

        def __getitem__(self, index: int) -> Sample:
            self.asked += 1
            return Sample(Image.new("RGB", (16, 16)), ("a",), "k")

    huge = Huge()
    loader = make_loader(huge, 8, 16)
    next(iter(loader.epoch(0, start=len(loader) - 1)))
    assert huge.asked == 8


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_left_out_and_counted(table: str, workers: int) -> None:
    loader = make_loader(open_dataset(table), 23, 16, workers=workers)
    (batch,) = loader.epoch(0)
    assert sorted(batch.indices.tolist()) == [i for i in range(23) if i % 7]
    assert len(batch.texts) == len(batch.images) == 19
    assert loader.skipped.counts == {"truncated": 4}
    assert "4 truncated (e.g. " in str(loader.skipped)
    single = make_loader(open_dataset(table), 1, 16, workers=workers)
    batches = list(single.epoch(0))
    assert [batch is None for batch in batches].count(True) == 4  # steps of nothing, yet steps
    tail = list(single.epoch(0, start=11))
    assert [batch is None for batch in tail] == [batch is None for batch in batches[11:]]


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


def test_wrong_use_is_named(table: str) -> None:
    pairs = open_dataset(table)
    for ranks in ({}, {"rank": 1, "world_size": 2}):
        with pytest.raises(ValueError, match=r"batch_size must be between 1 and the 23 records"):
            make_loader(pairs, 24 // ranks.get("world_size", 1), 16, **ranks)
    with pytest.raises(ValueError, match=r"rank must be in \[0, world_size\), got 2 of 2"):
        make_loader(pairs, 4, 16, rank=2, world_size=2)
    with pytest.raises(ValueError, match="views must be 1 or 2, got 3"):
        make_loader(pairs, 4, 16, views=3)
    with pytest.raises(ValueError, match="workers must be 0"):
        make_loader(SHAPES.train, 4, 16, workers=2)
    with pytest.raises(ValueError, match="augment must be None"):
        make_loader(open_dataset(table), 4, 16, augment=Augment())
