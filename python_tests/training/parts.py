"""A run small enough for a test: shapes of 16 pixels, towers of a few thousand parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from data.files import encode, write_tar
from models.tiny import create_tiny

from cyclip_ext.data import DatasetSplits, ImageDataset, load_shapes
from cyclip_ext.training.config import DataConfig, OptimConfig, RunConfig, TrainConfig
from cyclip_ext.training.data import RunData
from cyclip_ext.training.trainer import Trainer


@lru_cache
def shapes() -> DatasetSplits:
    """Return the procedural dataset, made once."""
    return load_shapes(size=16)


def write_shards(folder: Path, pairs: ImageDataset, count: int) -> Path:
    """Write the pairs as `count` img2dataset shards in a folder."""
    folder.mkdir()
    for shard in range(count):
        members = []
        for index in range(shard, len(pairs), count):
            record = pairs[index]
            members.append((f"{index:06d}.png", encode(record.image)))
            members.append((f"{index:06d}.txt", record.captions[0].encode()))
        write_tar(folder / f"{shard:05d}.tar", members)
    return folder


def damage_images(shard: Path, every: int) -> None:
    """Overwrite the pixels of every n-th image of a shard, beginning with the first."""
    data = bytearray(shard.read_bytes())
    at, number = 0, 0
    while (at := data.find(b"IDAT", at + 1)) > 0:
        if (number := number + 1) % every == 1:
            data[at + 8 : at + 40] = b"x" * 32
    shard.write_bytes(data)


def write_table(folder: Path, order: Sequence[int]) -> str:
    """Write images of shapes and table.csv with a row for each, in this order; return its path."""
    folder.mkdir(exist_ok=True)
    rows = ["image,caption"]
    for index in order:
        sample = shapes().train[index]
        sample.image.save(folder / f"{index}.png")
        rows.append(f"{index}.png,{sample.captions[0]}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return str(folder / "table.csv")


def settings(epochs: int = 2, **optim: float) -> TrainConfig:
    """Return the settings of a tiny run."""
    return TrainConfig(
        data=DataConfig(train_data="shapes", batch_size=64),
        optim=OptimConfig(warmup=5, **optim),  # type: ignore[arg-type]
        run=RunConfig(epochs=epochs, precision="fp32", val_frequency=1, device="cpu"),
    )


def tiny_trainer(folder: Path, config: TrainConfig | None = None) -> Trainer:
    """Return a Trainer on shapes, at its first step."""
    config = config or settings()
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.run.seed)
    data = RunData(shapes().train, "shapes", splits=shapes())
    return Trainer(config, data, create_tiny(), folder)


def with_loss(config: TrainConfig, **changes: object) -> TrainConfig:
    """Return the same run with another loss."""
    return replace(config, loss=replace(config.loss, **changes))  # type: ignore[arg-type]
