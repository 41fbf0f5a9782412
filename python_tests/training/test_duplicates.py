"""Pairs that show the same thing are not each other's negatives, on any number of ranks."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cyclip_ext import reference
from cyclip_ext.training.duplicates import group_labels
from cyclip_ext.training.objective import make_loss
from cyclip_ext.training.trainer import Trainer

from .parts import settings, shapes, tiny_trainer, with_loss


def labels_of(rows: list[set[int]], parts: list[int]) -> list[int]:
    """Return the labels of all ranks, for the hashes of each row and the rows of each rank."""
    batches, start = [], 0
    for count in parts:
        own = [(i, h) for i, row in enumerate(rows[start : start + count]) for h in sorted(row)]
        batches.append((np.array(own, dtype=np.int64).reshape(-1, 2), count))
        start += count
    found = [group_labels(batches, rank) for rank in range(len(parts))]
    assert [len(labels) for labels in found] == parts
    assert all(labels.dtype == torch.int64 for labels in found)
    return [int(label) for labels in found for label in labels]


@pytest.mark.parametrize("parts", [[7], [3, 4], [1, 0, 5, 1]])
def test_rows_are_joined_by_hashes_they_share(parts: list[int]) -> None:
    rows = [{9}, {1, 2}, {3}, {2**62, 8}, {3, 4}, {2, 4}, {8}]
    assert labels_of(rows, parts) == [0, 1, 1, 3, 1, 1, 3]


def test_labels_are_connected_components() -> None:
    random = np.random.default_rng(0)
    for _ in range(30):
        rows = [set(random.integers(0, 30, random.integers(1, 4)).tolist()) for _ in range(12)]
        groups = [{i} for i in range(12)]
        for i, j in combinations(range(12), 2):
            if rows[i] & rows[j]:
                joined = groups[i] | groups[j]
                for k in joined:
                    groups[k] = joined
        assert labels_of(rows, [5, 7]) == [min(group) for group in groups]


def captured(trainer: Trainer) -> list[dict[str, Tensor]]:
    """Record the arguments of the loss."""
    loss, calls = trainer.stepper.loss, []

    def recorded(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, **options: Any) -> Any:
        terms = loss(x, y, scale, bias, **options)
        calls.append({"x": x, "y": y, "scale": scale, "labels": options["labels"], **terms})
        return terms

    trainer.stepper.loss = recorded  # type: ignore[assignment]
    return calls


def test_step_masks_pairs_with_a_caption_in_common(tmp_path: Path) -> None:
    config = with_loss(settings(epochs=1), loss="clip", mask_duplicates=True)
    config = replace(config, data=replace(config.data, batch_size=32, accum_freq=2))
    trainer = tiny_trainer(tmp_path, config)
    calls = captured(trainer)
    batch = next(trainer.loader.epoch(0))
    assert batch is not None
    trainer._take_step(batch)
    trainer._settle()
    (call,) = calls
    captions = [set(shapes().train.captions[i]) for i in batch.indices]
    same = call["labels"][:, None] == call["labels"]
    sharing = [[bool(one & other) for other in captions] for one in captions]
    assert same.tolist() == sharing
    assert same.sum() > 64
    expected = reference.contrastive_loss(
        call["x"], call["y"], call["scale"], labels=call["labels"], same_label="mask"
    )
    torch.testing.assert_close(call["contrastive_loss"], expected)


@pytest.mark.parametrize("loss", ["cyclip", "siglip"])
def test_views_are_masked_within_the_towers_as_well(loss: Any) -> None:
    config = replace(settings().loss, loss=loss, two_views=True)
    generator = torch.Generator().manual_seed(0)
    x, x2, y, y2 = (torch.randn(6, 5, dtype=torch.float64, generator=generator) for _ in range(4))
    labels, scale, bias = torch.tensor([0, 1, 0, 3, 3, 5]), torch.tensor(7.0).double(), -1.0
    terms = make_loss(config, 6, statistics=False)(
        torch.cat([x, x2]), torch.cat([y, y2]), scale, bias, output_dict=True, labels=labels
    )
    for name, a, b, weight in (
        ("contrastive_loss", x, y, 0.5),
        ("image_views_loss", x, x2, 0.25),
        ("text_views_loss", y, y2, 0.25),
    ):
        if loss == "siglip":
            expected = reference.sigmoid_loss(a, b, scale, bias, labels=labels)
        else:
            expected = reference.contrastive_loss(a, b, scale, labels=labels)
        torch.testing.assert_close(terms[name], weight * expected)
