"""Tests of streams, CUDA graphs and devices, which require a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import cyclip_ext
from cyclip_ext import CyCLIPLoss, SigLIPLoss

from .cases import PRECISIONS, Precision, rectangle
from .test_orders import bits

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(
        not cyclip_ext.libraries.backend_status()["cuda"].loaded, reason="no CUDA operators"
    ),
    pytest.mark.parametrize("n", [70, 1601]),
    pytest.mark.parametrize("precision", [p for p in PRECISIONS if not p.allow_tf32], ids=str),
]

LOSSES = {
    "CyCLIPLoss": lambda: CyCLIPLoss(hinge=0.1, backend="native"),
    "SigLIPLoss": lambda: SigLIPLoss(backend="native"),
}


def leaves(n: int, precision: Precision, seed: int, device: str = "cuda") -> list[Tensor]:
    """Return image and text features, logit scale and bias."""
    features = rectangle("random", n, n, 72, precision.dtype, seed)
    scalars = torch.tensor(14.3 + seed), torch.tensor(-5.0)
    return [t.to(device).requires_grad_() for t in (*features, *scalars)]


def step(name: str, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """Return a loss and the gradients of its features and its scale."""
    loss = LOSSES[name]()(*tensors)
    return loss.detach(), *torch.autograd.grad(loss, tensors[:3])


def on_host(outputs: tuple[Tensor, ...]) -> list[bytes]:
    return bits(tuple(out.cpu() for out in outputs))


@pytest.mark.parametrize("name", LOSSES)
def test_another_stream(name: str, n: int, precision: Precision) -> None:
    """Work on the default stream would race with the copies of the features."""
    source = [t.detach() for t in leaves(n, precision, 0)]
    expected = on_host(step(name, leaves(n, precision, 0)))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # the features are not available before it ends
        outputs = step(name, [t.clone().requires_grad_() for t in source])
    stream.synchronize()
    assert on_host(outputs) == expected


@pytest.mark.parametrize("name", LOSSES)
def test_graph_replayed_with_other_features(name: str, n: int, precision: Precision) -> None:
    """A captured call must not depend on values read from the device during capture."""
    static, others = leaves(n, precision, 0), leaves(n, precision, 1)
    expected = on_host(step(name, others))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # torch requires a warm-up on another stream
        step(name, static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step(name, static)
    with torch.no_grad():
        for leaf, value in zip(static, others, strict=True):
            leaf.copy_(value)
    for _ in range(2):
        graph.replay()
        torch.cuda.synchronize()
        assert on_host(outputs) == expected


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", LOSSES)
def test_another_device(name: str, n: int, precision: Precision) -> None:
    """Kernels run on the device of the features, even if another device is current."""
    with torch.cuda.device(0):
        here = step(name, leaves(n, precision, 0, "cuda:0"))
        there = step(name, leaves(n, precision, 0, "cuda:1"))
        assert torch.cuda.current_device() == 0
    assert all(out.device.index == 1 for out in there)
    assert on_host(here) == on_host(there)
