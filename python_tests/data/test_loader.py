"""Batches are a function of (seed, epoch, step), whichever way they are reached."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cyclip_ext.data import Augment, Batch, load_shapes, make_loader, open_pairs
from cyclip_ext.data.loader import FileLoader, choose_caption
from cyclip_ext.data.seeding import epoch_order, uniforms

from .files import encode, halves, jpeg

SHAPES = load_shapes(24)


def same(one: Batch, two: Batch) -> bool:
    return (
        torch.equal(one.images, two.images)
        and one.texts == two.texts
        and torch.equal(one.indices, two.indices)
    )


def crop(image: object) -> Tensor:
    """Stands for torchvision's transforms: draws from torch's global generator."""
    return torch.rand(3, 4, 4)


@pytest.fixture
def table(tmp_path: Path) -> str:
    rows = ["image,caption"]
    for i in range(23):
        (tmp_path / f"{i}.png").write_bytes(encode(halves()) if i % 7 else jpeg()[:300])
        rows.append(f"{i}.png,caption {i}")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    return str(tmp_path / "t.csv")


def test_memory_batches_repeat_and_resume() -> None:
    loader = make_loader(SHAPES.train, 50, 16, seed=3, augment=Augment())
    assert len(loader) == len(SHAPES.train) // 50
    first = list(loader.epoch(2))
    assert len(first) == len(loader)
    again = list(make_loader(SHAPES.train, 50, 16, seed=3, augment=Augment()).epoch(2, start=5))
    assert all(map(same, first[5:], again))
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
    pairs = open_pairs(table)
    torch.manual_seed(0)
    reference = list(FileLoader(pairs, 5, crop, seed=1, workers=0).epoch(4))
    before = torch.random.get_rng_state()
    loader = FileLoader(pairs, 5, crop, seed=1, workers=workers)
    batches = list(loader.epoch(4))
    assert torch.equal(torch.random.get_rng_state(), before)  # a resumed run draws the same dropout
    assert len(batches) == len(loader) == 4
    assert all(map(same, batches, reference))
    assert all(map(same, FileLoader(pairs, 5, crop, 1, workers).epoch(4, start=2), batches[2:]))


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_left_out_and_counted(table: str, workers: int) -> None:
    loader = FileLoader(open_pairs(table), 23, crop, seed=0, workers=workers)
    (batch,) = loader.epoch(0)
    assert sorted(batch.indices.tolist()) == [i for i in range(23) if i % 7]
    assert len(batch.texts) == len(batch.images) == 19
    assert loader.skipped.counts == {"truncated": 4}
    assert "4 truncated (e.g. " in str(loader.skipped)
    single = FileLoader(open_pairs(table), 1, crop, seed=0, workers=workers)
    batches = list(single.epoch(0))
    assert [batch is None for batch in batches].count(True) == 4  # steps of nothing, yet steps
    tail = list(single.epoch(0, start=11))
    assert [batch is None for batch in tail] == [batch is None for batch in batches[11:]]


def test_captions_vary_over_epochs_evenly() -> None:
    captions = ("a", "b", "c")
    drawn = [choose_caption(captions, 0, epoch, 5) for epoch in range(600)]
    assert all(150 < drawn.count(caption) < 250 for caption in captions)


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
    with pytest.raises(ValueError, match=r"batch_size must be between 1 and the 23 records"):
        make_loader(open_pairs(table), 24, 16)
    with pytest.raises(ValueError, match="workers must be 0"):
        make_loader(SHAPES.train, 4, 16, workers=2)
    with pytest.raises(ValueError, match="augment must be None"):
        make_loader(open_pairs(table), 4, 16, augment=Augment())
