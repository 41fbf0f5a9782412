"""No N x N storage: what autograd saves is counted, and the peak of a whole process is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import cyclip_ext
from cyclip_ext import functional

from .backends import needs_native
from .inputs import make_features
from .programs import run_program

pytestmark = needs_native


def _saved_bytes(loss, n: int, d: int) -> int:
    """Bytes of distinct storages that the graph of one loss keeps until its backward."""
    features = [t.requires_grad_() for t in make_features("random", n, d, dtype=torch.float32)]
    scale = torch.tensor(14.3, requires_grad=True)
    saved: dict[int, int] = {}
    kept = []  # keeps addresses from being reused while counting

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        kept.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss(*features, scale)
    value.backward()
    return sum(saved.values())


RECOMPUTE = {"backend": "native", "memory_budget": 0}

LOSSES = {
    "contrastive": lambda x, y, s: functional.contrastive_loss(x, y, s, **RECOMPUTE),
    "cycle": lambda x, y, s: functional.cycle_consistency(x, y, backend="native"),
    "margin": lambda x, y, s: functional.margin_loss(x, y),
    "hinge": lambda x, y, s: functional.hinge_margin_loss(x, y, **RECOMPUTE),
    "sigmoid": lambda x, y, s: functional.sigmoid_loss(x, y, s, -5.0, **RECOMPUTE),
    "everything": lambda x, y, s: cyclip_ext.CyCLIPLoss(
        margin=0.1, hinge=0.1, statistics=True, **RECOMPUTE
    )(x, y, s),
}


@pytest.mark.parametrize("name", LOSSES)
def test_saved_tensors_grow_linearly(name: str) -> None:
    """Wrong: autograd keeps something of size N x N (N = 2048: 16 MiB) until the backward pass."""
    d = 16
    small, large = (_saved_bytes(LOSSES[name], n, d) for n in (1024, 2048))
    features = 2 * 2048 * d * 4
    assert large <= 6 * features
    assert large <= 2.1 * small + 4096


@pytest.mark.parametrize("n", [33, 512])
def test_saved_tensors_of_the_direct_cycle_route(n: int) -> None:
    """Wrong: the route for few rows keeps more than the features (its workspace is passing)."""
    d = 2 * n
    assert _saved_bytes(LOSSES["cycle"], n, d) <= 2 * 2 * n * d * 4 + 4096


PROGRAM = """
import sys, torch
from cyclip_ext import functional, CyCLIPLoss

LOSSES = {
    "cyclip": lambda x, y, s: CyCLIPLoss(margin=0.1, hinge=0.1, backend="native")(x, y, s),
    "sigmoid": lambda x, y, s: functional.sigmoid_loss(x, y, s, -5.0, backend="native"),
    "bf16": lambda x, y, s: CyCLIPLoss(precision="bf16", backend="native")(x, y, s),
}
loss, n = LOSSES[sys.argv[1]], int(sys.argv[2])

def step(n):
    torch.manual_seed(0)
    x, y = (torch.randn(n, 64, requires_grad=True) for _ in range(2))
    s = torch.tensor(14.3, requires_grad=True)
    loss(x, y, s).backward()

def peak():
    # Not ru_maxrss: that of a child starts at its parent's.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) // 1024

step(256)  # thread pools and library workspaces
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak counts from here, not from the imports
before = peak()
step(n)
print(peak() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc"
)
@pytest.mark.parametrize("name", ["cyclip", "sigmoid", "bf16"])
def test_peak_of_a_large_batch(name: str) -> None:
    """Wrong: forward or backward holds an N x N matrix (1 GiB each; dense code needs several)."""
    peak_mib = int(run_program(PROGRAM, name, "16384"))  # features and gradients take 16
    assert peak_mib < 128
