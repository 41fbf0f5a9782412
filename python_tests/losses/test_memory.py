"""No N x N storage, but for dot products within a budget; counted, and measured as a peak."""

from __future__ import annotations

import functools
import itertools
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import cyclip_ext
from cyclip_ext import functional

from .inputs import FUNCTIONS, make_features, make_leaves

pytestmark = pytest.mark.native
ops = torch.ops.cyclip_ext


def _saved_bytes(loss, n: int, d: int) -> int:
    """Return the bytes of distinct storages that the graph of a loss keeps until its backward."""
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
LOSSES = {name: functools.partial(loss, **RECOMPUTE) for name, loss in FUNCTIONS.items()}
LOSSES["everything"] = cyclip_ext.CyCLIPLoss(margin=0.1, hinge=0.1, statistics=True, **RECOMPUTE)
for same_label, kind, statistics in itertools.product(
    ("mask", "positive"), (cyclip_ext.CLIPLoss, cyclip_ext.SigLIPLoss), (False, True)
):
    loss = kind(same_label=same_label, statistics=statistics, **RECOMPUTE)
    LOSSES[f"{kind.__name__}, {same_label}, {statistics}"] = lambda x, y, s, loss=loss: loss(
        x, y, s, -5.0, labels=torch.arange(len(x)) // 3
    )


@pytest.mark.parametrize("name", LOSSES)
def test_saved_tensors_grow_linearly(name: str) -> None:
    """N x N would be 16 MiB at N = 2048."""
    d = 16
    small, large = (_saved_bytes(LOSSES[name], n, d) for n in (1024, 2048))
    features = 2 * 2048 * d * 4
    assert large <= 6 * features
    assert large <= 2.1 * small + 4096


@pytest.mark.parametrize("n", [33, 512])
def test_direct_cycle_route_saves_the_features_and_the_products_within_the_budget(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    d, products = 2 * n, n * n * 4
    features = 2 * n * d * 4
    assert products <= _saved_bytes(LOSSES["cycle"], n, d) - features <= products + 4096
    monkeypatch.setenv("CYCLIP_MEMORY_BUDGET", str(products - 1))
    assert _saved_bytes(LOSSES["cycle"], n, d) <= features + 4096


class _Operators(TorchDispatchMode):
    """Records the operators of this package that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "cyclip_ext":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("n", "dtype", "route"),
    [
        (63, torch.float32, "cycle_direct"),
        (64, torch.float32, "cycle_grams"),
        (80, torch.bfloat16, "cycle_direct"),
        (81, torch.bfloat16, "cycle_grams"),
    ],
    ids=str,
)
def test_cycle_route_depends_on_shape_and_dtype(n: int, dtype: torch.dtype, route: str) -> None:
    with _Operators() as operators:
        functional.cycle_consistency(*make_features("random", n, 64, dtype=dtype), backend="native")
    assert operators.names == [route]


FAULTS_OF_A_CALL = """
import resource
import torch
from cyclip_ext import CyCLIPLoss

torch.set_num_threads(1)
loss, features = CyCLIPLoss(), torch.randn(2, 256, 512).bfloat16().requires_grad_()

def faults(calls):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(calls):
        loss(*features, 14.3).backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(20)
print(faults(20) / 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about the heap of glibc")
def test_small_batches_keep_their_pages(
    run_program: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its own process, because the heap keeps more once other tests have freed large tensors."""
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    assert float(run_program(FAULTS_OF_A_CALL)) < 100  # 700 if every call faults on its workspace


# ------------------------------------------------- dot products within the budget


def _run(n: int, d: int, dtype: torch.dtype, memory_budget: int | None) -> list[Tensor]:
    inputs = make_leaves(n, d, dtype)
    options = {"backend": "native", "memory_budget": memory_budget}
    loss = cyclip_ext.CyCLIPLoss(margin=0.1, hinge=0.2, **options)(*inputs[:3])
    loss = loss + 3 * functional.sigmoid_loss(*inputs, **options)
    loss.backward()
    return [loss.detach(), *(leaf.grad for leaf in inputs)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (2, 65), (63, 7), (70, 96), (130, 64), (1029, 33)])
def test_stored_dots_change_no_bit(n: int, d: int, dtype: torch.dtype) -> None:
    for kept, recomputed in zip(_run(n, d, dtype, None), _run(n, d, dtype, 0), strict=True):
        assert torch.equal(kept, recomputed)


class _KeptNumbers(TorchDispatchMode):
    """Counts the dot products that pair_statistics keeps."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        if func is ops.pair_statistics.default:
            self.numbers += outputs[-1].numel()
        return outputs


def test_memory_budget_decides_whether_dots_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [t.requires_grad_() for t in make_features("random", 128, 8, dtype=torch.float32)]
    inputs.append(torch.tensor(5.0))
    needed = 128 * 128 * 4

    def kept(budget: int | None) -> int:
        with _KeptNumbers() as mode:
            functional.contrastive_loss(*inputs, backend="native", memory_budget=budget)
        return mode.numbers

    assert kept(needed) == 128 * 128
    assert kept(needed - 1) == 0
    assert kept(0) == 0
    assert kept(None) == 128 * 128  # 256 MiB
    monkeypatch.setenv("CYCLIP_MEMORY_BUDGET", str(needed - 1))
    assert kept(None) == 0
    assert kept(needed) == 128 * 128  # the argument comes first
    monkeypatch.delenv("CYCLIP_MEMORY_BUDGET")
    with torch.no_grad():
        assert kept(None) == 0
    inputs[0].requires_grad_(False), inputs[1].requires_grad_(False)
    assert kept(None) == 0


def test_padding_of_stored_dots_is_zero() -> None:
    """The padding of an output must not contain uninitialized memory."""
    image, text = make_features("random", 33, 5, dtype=torch.float32)
    dots = ops.pair_statistics(image, text, torch.tensor(1.0), 0, False, False, 1 << 20)[-1]
    assert dots.shape == (33, 128)
    assert (dots[:, 33:] == 0).all()
    torch.testing.assert_close(dots[:, :33], image @ text.T)


@pytest.mark.parametrize("stated", ["256MiB", "-1", "1e9", ""])
def test_wrong_memory_budget_raises(stated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="memory_budget must be"):
        cyclip_ext.CLIPLoss(memory_budget=-1)
    for backend in "native", "reference":
        with pytest.raises(ValueError, match="memory_budget must be"):
            functional.contrastive_loss(*make_leaves(4, 3)[:3], backend=backend, memory_budget=-1)
    monkeypatch.setenv("CYCLIP_MEMORY_BUDGET", stated)
    with pytest.raises(ValueError, match="CYCLIP_MEMORY_BUDGET must be"):
        functional.contrastive_loss(*make_leaves(4, 3)[:3], backend="native")


def test_backward_operators_check_the_products() -> None:
    image, text = make_features("random", 5, 3, dtype=torch.float32)
    scale, rows = torch.tensor(1.0), torch.ones(5, dtype=torch.float64)
    for dots in (torch.zeros(5, 64), torch.zeros(5, 128).double()):
        with pytest.raises(RuntimeError, match="dots must be"):
            ops.sigmoid_rows_backward(
                image, text, scale, scale, 0, dots, rows, True, True, False, False
            )
    for products in (torch.zeros(4, 4), torch.zeros(5, 5).double()):
        with pytest.raises(RuntimeError, match="products must be"):
            ops.cycle_direct_backward(image, text, products, rows[0], rows[0])


# ------------------------------------------------- a whole process

PROGRAM = """
import torch
from cyclip_ext import functional, CLIPLoss, CyCLIPLoss, SigLIPLoss

def cyclip(x, y, s, **options):
    CyCLIPLoss(backend="native", **options)(x, y, s).backward()

def labels(x, y, s):
    for kind, meaning in (CLIPLoss, "mask"), (CLIPLoss, "positive"), (SigLIPLoss, "positive"):
        loss = kind(same_label=meaning, statistics=kind is CLIPLoss, backend="native")
        loss(x, y, s, -5.0, labels=torch.arange(len(x)) // 3).backward()

def retrieval(x, y, s):
    labels = torch.arange(len(x))
    functional.retrieval_ranks(x, y, labels, labels, backend="native")
    functional.similarity_top_k(x, y, 10, backend="native")

CALLS = {
    "cyclip": lambda *a: cyclip(*a, margin=0.1, hinge=0.1),
    "bf16": lambda *a: cyclip(*a, precision="bf16"),
    "sigmoid": lambda *a: functional.sigmoid_loss(*a, -5.0, backend="native").backward(),
    "retrieval": retrieval,
    "labels": labels,
}

def step(call, n):
    torch.manual_seed(0)
    x, y = (torch.randn(n, 64, requires_grad=True) for _ in range(2))
    call(x, y, torch.tensor(14.3, requires_grad=True))

def peak():
    # Not ru_maxrss: that of a child starts at its parent's.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) // 1024

for name, call in CALLS.items():
    step(call, 256)  # thread pools and library workspaces
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak counts from here, not from the imports
    before = peak()
    step(call, 16384 if name == "labels" else 12288)
    print(name, peak() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc"
)
def test_peak_of_a_large_batch_is_linear(run_program: Callable[..., str]) -> None:
    """An N x N matrix would be at least 576 MiB, a mask 144 MiB; features and gradients take 12."""
    peaks = dict(line.split() for line in run_program(PROGRAM).splitlines())
    assert len(peaks) == 5
    assert {name: mib for name, mib in peaks.items() if int(mib) >= 128} == {}
