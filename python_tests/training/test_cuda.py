"""Losses, GradCache and training on GPUs: what the tests of the other folders check on the CPU."""

from __future__ import annotations

import functools
import math
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from losses.test_grad_cache import RELATIONS, N, _batch, _gradients, _plain_backward, _towers
from torch import Tensor

from cyclip_ext import CLIPLoss, CyCLIPLoss
from cyclip_ext.grad_cache import cached_backward
from cyclip_ext.training.ranks import join_ranks

from .parts import tiny_trainer
from .test_step import changed, take_steps

DEVICE = "cuda"
# The last one, while the first one is current.
LAST = f"{DEVICE}:{torch.cuda.device_count() - 1}"

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("name", RELATIONS)
def test_loss_on_the_gpu_is_that_on_the_cpu(name: str) -> None:
    """In float64, with labels and additional negatives."""
    kind, keywords = RELATIONS[name]
    found = []
    for device in ("cpu", LAST):
        leaves = [t.to(device) for t in (*_features(N, 0), *_features(3, 1))]
        image, text, *negatives = [leaf.requires_grad_() for leaf in leaves]
        bound = {
            "labels": torch.arange(N, device=device) // 2,
            "negative_text_features": negatives[0],
            "negative_image_features": negatives[1],
        }
        given = {key: bound[key] for key in keywords}
        scale = torch.tensor(14.3, device=device, dtype=torch.float64, requires_grad=True)
        loss = kind(image, text, scale, torch.tensor(-5.0, device=device), **given)
        used = [image, text, scale, *(t for t in given.values() if t.requires_grad)]
        found.append([loss, *torch.autograd.grad(loss, used)])
    for on_cpu, on_gpu in zip(*found, strict=True):
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-9, atol=1e-11)


def _features(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, n, 5, dtype=torch.float64, generator=generator)
    return image, text


def test_chunks_draw_the_same_dropout_twice() -> None:
    """The states of the GPU's generator are replayed."""
    plain, cached = (_towers(dropout=0.5).to(LAST) for _ in range(2))
    batch = [t.to(LAST) for t in _batch()]
    for towers, backward in ((plain, _plain_backward), (cached, cached_backward)):
        torch.manual_seed(1)
        backward(towers, CLIPLoss(), *batch, chunk_size=5)  # type: ignore[operator]
    torch.testing.assert_close(_gradients(cached), _gradients(plain), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("precision", ["fp32", "amp_bf16", "amp_fp16"])
def test_training_learns(precision: str, tmp_path: Path) -> None:
    config = changed("data", batch_size=32, accum_freq=2)
    config = changed("run", config, device=LAST, precision=precision)
    config = changed("optim", config, lr=3e-3, ema_decay=0.9, skip_nonfinite=True)
    trainer = tiny_trainer(tmp_path, config)
    losses = [step["contrastive_loss"] for step in take_steps(trainer, 12)]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0] - 0.1


def test_training_validates_and_saves(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, changed("run", device=LAST))
    assert trainer.fit()
    assert (tmp_path / "checkpoints" / "last.pt").exists()


def _share_of_rank(rank: int, world: int, port: int, exchange: str, folder: Path) -> None:
    """Save the loss of all ranks' pairs, and this rank's gradients."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    device = torch.device(DEVICE, rank)
    with join_ranks(device):
        image, text = (
            t.tensor_split(world)[rank].to(device).requires_grad_() for t in _features(N, 0)
        )
        labels = (torch.arange(N, device=device) // 2).tensor_split(world)[rank]
        loss = CyCLIPLoss(hinge=0.1, group="world", exchange=exchange)  # type: ignore[arg-type]
        value = loss(image, text, torch.tensor(14.3, device=device), labels=labels)
        value.backward()
        torch.save([value.detach().cpu(), image.grad.cpu(), text.grad.cpu()], folder / f"{rank}.pt")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("exchange", ["gather", "ring", "replicate"])
def test_ranks_over_nccl_have_the_gradients_of_one_process(exchange: str, tmp_path: Path) -> None:
    world = min(torch.cuda.device_count(), 4)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_share_of_rank, (world, port, exchange, tmp_path), nprocs=world)
    leaves = [t.requires_grad_() for t in _features(N, 0)]
    loss = CyCLIPLoss(hinge=0.1)(*leaves, torch.tensor(14.3), labels=torch.arange(N) // 2)
    loss.backward()
    shares = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-11)
    for value, *_ in shares:
        close(value, loss.detach())
    for leaf, parts in zip(leaves, list(zip(*shares, strict=True))[1:], strict=True):
        close(torch.cat(parts) / world, leaf.grad)
