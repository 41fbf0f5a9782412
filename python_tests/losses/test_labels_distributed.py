"""Labels and additional negatives in batches that are divided into chunks, or among ranks."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from cyclip_ext import CLIPLoss, CyCLIPLoss, SigLIPLoss
from cyclip_ext.grad_cache import cached_backward

from .inputs import gradients, make_features
from .ranks import World

SCALE, BIAS = 7.0, -3.0
SAME_LABEL = ["mask", "positive"]
# Of each world's ranks: pairs, additional texts, additional images.
PARTS = {
    1: ((8,), (6,), (7,)),
    2: ((3, 5), (5, 1), (2, 5)),
    3: ((4, 1, 3), (2, 1, 3), (1, 4, 2)),
    4: ((1, 4, 2, 1), (1, 2, 1, 2), (2, 1, 3, 1)),
}


class _Towers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = torch.nn.Linear(5, 4), torch.nn.Linear(5, 4)
        self.scale = torch.nn.Parameter(torch.tensor(SCALE))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, ...]:
        return self.image(images), self.text(texts), self.scale, torch.tensor(BIAS)


@pytest.mark.parametrize("same_label", SAME_LABEL)
@pytest.mark.parametrize("kind", [CyCLIPLoss, SigLIPLoss])
def test_cached_gradients_with_labels(kind: type[CLIPLoss], same_label: str) -> None:
    """The loss sees the labels of the whole batch, whatever the chunks are."""
    batch = make_features("random", 11, 5, dtype=torch.float32)
    loss = partial(kind(same_label=same_label, statistics=True), labels=torch.arange(11) % 4)
    results = []
    for chunk_size in 11, 3:
        towers = _Towers()
        terms = cached_backward(towers, loss, *batch, chunk_size=chunk_size)
        results.append([*terms.values(), *(p.grad for p in towers.parameters())])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def _labelled_batch() -> tuple[Tensor, ...]:
    x, y = make_features("random", 8, 5)
    v, u = make_features("random", 7, 5, seed=2)
    return x, y, torch.tensor([0, 1, 2, 0, 1, 1, 3, 0]), u[:6], v


def _share(
    rank: int,
    world: int,
    kind: str,
    exchange: str,
    backend: str,
    same_label: str | None,
    further: bool,
) -> tuple[Tensor, list[Tensor]]:
    x, y, labels, u, v = _labelled_batch()
    own = [
        t.split(counts)[rank].clone().requires_grad_()
        for t, counts in zip((x, y, u, v), (PARTS[world][0], *PARTS[world]), strict=True)
    ]
    return _labelled_loss(
        kind, own, labels.split(PARTS[world][0])[rank], same_label, further,
        group=dist.group.WORLD, exchange=exchange, backend=backend,
    )  # fmt: skip


def _labelled_loss(
    kind: str, own: list[Tensor], labels: Tensor, same_label: str | None, further: bool, **o: Any
) -> tuple[Tensor, list[Tensor]]:
    more: dict[str, Any] = {}
    if same_label is not None:
        o["same_label"], more["labels"] = same_label, labels
    if further:
        more |= {"negative_text_features": own[2], "negative_image_features": own[3]}
    loss = SigLIPLoss(**o) if kind == "siglip" else CyCLIPLoss(hinge=0.3, margin=0.1, **o)
    value = loss(own[0], own[1], SCALE, BIAS, **more)
    return value.detach(), gradients(value, own)


@pytest.mark.parametrize("further", [False, True], ids=["pairs", "further"])
@pytest.mark.parametrize("same_label", [None, *SAME_LABEL])
@pytest.mark.parametrize("exchange", ["gather", "ring", "replicate"])
@pytest.mark.parametrize("kind", ["cyclip", "siglip"])
@pytest.mark.parametrize("world", PARTS, indirect=True)
def test_ranks_match_one_process(
    world: World, kind: str, exchange: str, same_label: str | None, further: bool
) -> None:
    x, y, labels, u, v = _labelled_batch()
    leaves = [t.clone().requires_grad_() for t in (x, y, u, v)]
    expected, gradients = _labelled_loss(kind, leaves, labels, same_label, further)
    parts = PARTS[world.size][0], *PARTS[world.size]
    for backend in "auto", "reference":
        options = world.size, kind, exchange, backend, same_label, further
        for rank, (loss, shares) in enumerate(world.results(_share, *options)):
            torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
            for share, whole, counts in zip(shares, gradients, parts, strict=True):
                own = world.size * whole.split(counts)[rank]
                torch.testing.assert_close(share, own, rtol=1e-8, atol=1e-11)


def _cached_backward(
    parts: list[Tensor], chunk_size: int, kind: str, same_label: str, group: str | None
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return the terms, the gradients of the towers, and those of the additional negatives."""
    x, y, labels, *negatives = parts
    u, v = (t[:, :4].clone().requires_grad_() for t in negatives)
    options: dict[str, Any] = {"same_label": same_label, "statistics": True, "group": group}
    loss = SigLIPLoss(**options) if kind == "siglip" else CyCLIPLoss(hinge=0.3, **options)
    given = {"labels": labels, "negative_text_features": u, "negative_image_features": v}
    towers = _Towers().double()
    terms = cached_backward(towers, partial(loss, **given), x, y, chunk_size=chunk_size)
    return [*terms.values()], _gradients_of(towers), [u.grad, v.grad]


def _gradients_of(module: torch.nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in module.parameters()]


def _cached_share(rank: int, world: int, *options: str) -> tuple[list[Tensor], ...]:
    counts = (PARTS[world][0],) * 3 + PARTS[world][1:]
    parts = [t.split(c)[rank] for t, c in zip(_labelled_batch(), counts, strict=True)]
    return _cached_backward(parts, 2, *options, group="world")


@pytest.mark.parametrize("same_label", SAME_LABEL)
@pytest.mark.parametrize("kind", ["cyclip", "siglip"])
@pytest.mark.parametrize("world", [2], indirect=True)
def test_cached_gradients_of_ranks_match_one_process(
    world: World, kind: str, same_label: str
) -> None:
    expected = _cached_backward([*_labelled_batch()], 8, kind, same_label, None)
    shares = world.results(_cached_share, world.size, kind, same_label)
    terms, of_towers, of_negatives = zip(*shares, strict=True)
    for of_rank in terms:
        torch.testing.assert_close(of_rank, expected[0])
    averaged = [sum(ranks) / world.size for ranks in zip(*of_towers, strict=True)]
    torch.testing.assert_close(averaged, expected[1])
    whole = [torch.cat(ranks) / world.size for ranks in zip(*of_negatives, strict=True)]
    torch.testing.assert_close(whole, expected[2])


def _one_rank_without(rank: int, name: str) -> str:
    x, _, labels, u, v = _labelled_batch()
    given = {"labels": labels[:2], "negative_text_features": u, "negative_image_features": v}
    more = {name: given[name]} if rank == 1 else {}
    with pytest.raises(ValueError, match="on all ranks or on none") as error:
        CLIPLoss(group="world")(x[:2], x[:2], SCALE, **more)
    return str(error.value)


@pytest.mark.parametrize("name", ["labels", "negative_text_features", "negative_image_features"])
@pytest.mark.parametrize("world", [2], indirect=True)
def test_argument_of_one_rank_alone_raises(world: World, name: str) -> None:
    for message in world.results(_one_rank_without, name):
        assert message.startswith(f"{name} must be given")
        assert "True on rank 1" in message
