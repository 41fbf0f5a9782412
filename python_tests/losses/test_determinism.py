"""The same bits in every run, and for every number of threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cyclip_ext import _pair_terms, _sums
from cyclip_ext._fused import FusedLoss
from cyclip_ext.distributed import Tensors
from cyclip_ext.functional import contrastive_loss
from cyclip_ext.losses import CyCLIPLoss

from .inputs import everything, make_features, make_leaves

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("restore_threads")]

# Odd sizes around what tiles and panels are likely to be, and more rows than fit one task.
SHAPES = [(1, 1), (7, 5), (65, 33), (129, 72), (300, 513), (1030, 40), (1100, 200), (2500, 24)]


def _bits(n: int, d: int, dtype: torch.dtype) -> list[Tensor]:
    """Return losses, statistics and gradients of one new run."""
    inputs = make_leaves(n, d, dtype)
    value = everything(*inputs, "native")
    value.backward()
    ops = torch.ops.cyclip_ext
    with torch.no_grad():
        statistics = [*ops.pair_statistics(*inputs[:3]), *ops.cycle_direct(*inputs[:2])]
    direct = [t.detach().clone().requires_grad_() for t in inputs[:2]]
    sum(ops.cycle_direct(*direct)[:2]).backward()
    return [
        value.detach(),
        *(leaf.grad for leaf in inputs),
        *statistics,
        *(leaf.grad for leaf in direct),
    ]


def _assert_same_bits(first: list[Tensor], second: list[Tensor]) -> None:
    for a, b in zip(first, second, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_bits_do_not_depend_on_the_number_of_threads(n: int, d: int, dtype: torch.dtype) -> None:
    runs = []
    for threads in (1, 2, 2, 3):
        torch.set_num_threads(threads)
        runs.append(_bits(n, d, dtype))
    for other in runs[1:]:
        _assert_same_bits(runs[0], other)


def test_scale_gradient_of_a_large_batch_does_not_depend_on_threads() -> None:
    """It is a sum over the pairs, which torch would divide among the threads."""
    n = 100_001
    positive, *lses = make_features("random", n, 3)[0].T.contiguous()
    features = torch.zeros(n, 1)

    class Block:
        """Stands in for N^2 pairs."""

        labels = None

        def __call__(self, inputs: Tensors) -> Tensors:
            return *lses, positive, positive, positive

        def backward(self, *args: object) -> Tensors:
            return features, features, torch.zeros((), dtype=torch.float64)

    runs = []
    for count in 1, 2, 3:
        torch.set_num_threads(count)
        grads = []
        for value in 1.0, 5.0, 14.3, 100.0:  # a single sum can be equal by luck
            scale = torch.tensor(value, dtype=torch.float64, requires_grad=True)
            loss, *_ = FusedLoss.apply(Block(), "both", None, features, features, scale)
            loss.backward()
            grads.append(scale.grad.item())
        runs.append(grads)
    assert runs[0] == runs[1] == runs[2]


def test_mean_of_a_long_vector_does_not_depend_on_threads() -> None:
    """torch cuts its own mean into as many parts as there are threads."""
    values = make_features("random", 100_001, 1)[0][:, 0]
    means = []
    for count in 1, 2, 3:
        torch.set_num_threads(count)
        means.append(_sums.mean(values))
    assert len({float(m) for m in means}) == 1
    torch.testing.assert_close(means[0], values.mean(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("directions", ["both", "image_to_text", "text_to_image"])
@pytest.mark.parametrize("negatives", [0, 4])
@pytest.mark.parametrize("same_label", ["mask", "positive"])
def test_fused_loss_has_the_bits_of_separate_operations(
    directions: str, negatives: int, same_label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for is_fused in True, False:
        image, text, scale, _ = make_leaves(33, 24, torch.float32)
        further = make_features("random", negatives, 24)[0].float() if negatives else None
        if further is not None:
            further.requires_grad_()
        if not is_fused:
            monkeypatch.setattr(_pair_terms, "is_fused", lambda *_: False)
        loss = contrastive_loss(
            image,
            text,
            scale,
            directions=directions,
            negative_text_features=further,
            labels=torch.arange(33) // 3,
            same_label=same_label,
        )
        (3 * loss).backward()
        leaves = image, text, scale, further
        runs.append([loss, *(leaf.grad for leaf in leaves if leaf is not None)])
    _assert_same_bits(*runs)


def test_fused_loss_passes_the_gradients_of_the_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of three terms may be ordered differently, so their last bits may differ."""
    runs = []
    for is_fused in True, False:
        image, text, scale, _ = make_leaves(33, 24, torch.float64)
        if not is_fused:
            monkeypatch.setattr(_pair_terms, "is_fused", lambda *_: False)
        loss = CyCLIPLoss(margin=0.3, hinge=0.7)(image, text, scale)
        runs.append([loss, *torch.autograd.grad(loss, (image, text, scale))])
    torch.testing.assert_close(*runs, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("weights", [(0.25, 0.25), (0.4, 0.0), (0.5, 0.1)], ids=str)
def test_fused_cycles_have_the_gradients_of_separate_operations(
    weights: tuple[float, float], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fused loss is rounded once, not once for each of its terms."""
    runs = []
    for is_fused in True, False:
        image, text, scale, _ = make_leaves(33, 64, dtype)
        if not is_fused:
            monkeypatch.setattr(_pair_terms, "is_fused", lambda *_: False)
        loss = CyCLIPLoss(*weights)(image, text, scale)
        assert ("FusedLoss" in _names_of_nodes(loss)) == is_fused
        assert ("cycle_direct" in _names_of_nodes(loss)) != is_fused
        (3 * loss).backward()
        runs.append((loss.double(), [image.grad, text.grad, scale.grad]))
    (fused, fused_grads), (separate, separate_grads) = runs
    rounding = 1e-15 if dtype == torch.float64 else 2e-7
    torch.testing.assert_close(fused, separate, rtol=rounding, atol=0)
    _assert_same_bits(fused_grads, separate_grads)


def test_fused_cycles_are_not_differentiated_for_the_scale_alone() -> None:
    image, text, scale, _ = make_leaves(33, 64)
    loss = CyCLIPLoss()(image.detach(), text.detach(), scale)
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    assert counter.get_flop_counts()["Global"].keys() == {
        torch.ops.cyclip_ext.pair_statistics_backward
    }


def test_cycles_of_large_batches_are_not_fused() -> None:
    """They would keep the dot products in memory during the backward pass of the cycle terms."""
    for n, is_fused in (1024, True), (1025, False):
        image, text, scale, _ = make_leaves(n, 1280)
        loss = CyCLIPLoss()(image, text, scale)
        assert ("cycle_direct" in _names_of_nodes(loss)) != is_fused


def _names_of_nodes(loss: Tensor) -> str:
    pending, names = [loss.grad_fn], []
    while pending:
        node = pending.pop()
        if node is not None:
            names.append(node.name())
            pending += [following for following, _ in node.next_functions]
    return " ".join(names)
