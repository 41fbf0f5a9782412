"""The losses over a process group: real processes over gloo, against one process with all rows."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from cyclip_ext import CLIPLoss, CyCLIPLoss, SigLIPLoss

from . import truth
from .inputs import LargestTensor, make_features
from .ranks import Raised, World
from .shares import (
    EXCHANGES,
    LOSSES,
    PAIRWISE,
    Case,
    every_exchange,
    features,
    loss_and_gradients,
    needs_gloo,
    rows_of,
    share,
    share_of_model,
    whole,
    whole_model,
    worlds,
)

pytestmark = needs_gloo

UNEVEN = (5, 3, 1, 2)
pairwise = pytest.mark.parametrize("loss", PAIRWISE)
# Not dense PyTorch's, which takes part in autocast and can be differentiated again.
with_own_backward = pytest.mark.parametrize(
    ("exchange", "backend"),
    [
        ("ring", "reference"),
        *(pytest.param(e, "native", marks=pytest.mark.native) for e in EXCHANGES),
    ],
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """As every rank has: a library that multiplies with two sums in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _options(exchange: str, backend: str) -> dict[str, Any]:
    return {"exchange": exchange, "backend": backend}


def _assert_close(actual: Tensor | None, expected: Tensor | None, rel: float, what: str) -> None:
    """By norm; gradients that vanish are compared with 1."""
    if expected is None or not expected.any():
        assert actual is None or actual.norm() <= rel, what
        return
    assert actual is not None, what
    assert (actual - expected).norm() <= rel * expected.norm(), what


def _check_shares(results: list[Any], case: Case, rel: float = 1e-12) -> None:
    """Whole-batch loss everywhere; gradients W times those of one process, scalars' as a mean."""
    expected_loss, expected = whole(case)
    ranks = len(results)
    for loss, _ in results:
        _assert_close(loss, expected_loss, rel, "loss")
    for name in "image", "text":
        for rank, (_, grads) in enumerate(results):
            own = expected[name]
            own = own if own is None else ranks * own[rows_of(rank, case)]
            if own is None or not own.any():
                _assert_close(grads[name], own, rel, name)
            else:  # rows whose gradient is rounding are measured by the others
                assert (grads[name] - own).norm() <= rel * ranks * expected[name].norm(), name
    for name in "scale", "bias":
        shares = [grads[name] for _, grads in results]
        if expected[name] is None:
            assert shares == [None] * ranks
        else:
            # A sum over pairs of numbers of size 1, which may cancel.
            error = (sum(shares) / ranks - expected[name]).abs()
            assert error <= rel * (1 + expected[name].abs()), name


def _check_model(world: World, case: Case) -> None:
    """Loss and every parameter's gradient, after DistributedDataParallel's averaging."""
    expected_loss, expected = whole_model(case)
    for actual_loss, actual in world.results(share_of_model, case):
        _assert_close(actual_loss, expected_loss, 1e-12, "loss")
        for name, gradient in expected.items():
            _assert_close(actual[name], gradient, 1e-11, name)


# ------------------------------------------------- values and gradients


@every_exchange
@pytest.mark.parametrize("loss", LOSSES)
@worlds(1, 2, 3, 4)
def test_gradients_averaged_by_ddp_are_those_of_the_whole_batch(
    world: World, loss: str, exchange: str, backend: str
) -> None:
    for counts, width in ((4,) * world.size, 3), (UNEVEN[: world.size], 12):
        case = Case(loss, counts, width, options=_options(exchange, backend))
        _check_model(world, case)


@every_exchange
@pairwise
@worlds(2, 3)
def test_frozen_arguments_leave_other_gradients_alone(
    world: World, loss: str, exchange: str, backend: str
) -> None:
    """The test uses an upstream gradient other than 1."""
    names = ("image", "text", "scale", "bias")
    for frozen in ((), ("image",), ("text",), ("scale", "bias"), ("image", "text"), names):
        counts = UNEVEN[: world.size]
        options = _options(exchange, backend)
        case = Case(loss, counts, frozen=frozen, upstream=-2.5, options=options)
        _check_shares(world.results(share, case), case)


@every_exchange
@worlds(2)
def test_frozen_tower_under_ddp(world: World, exchange: str, backend: str) -> None:
    for frozen in ("image",), ("text",), ("log_scale", "bias"):
        case = Case("all", (4, 3), frozen=frozen, options=_options(exchange, backend))
        _check_model(world, case)


@every_exchange
@pytest.mark.parametrize("kind", ["zero_rows", "aligned", "narrow_cone", "modality_gap", "ties"])
@worlds(3)
def test_hard_inputs_match_one_process(
    world: World, kind: str, exchange: str, backend: str
) -> None:
    """Zero rows, ties across ranks (the first counts), sums that under- or overflow."""
    for loss, scale in itertools.product(PAIRWISE, (1.0, 100.0)):
        case = Case(loss, (9, 1, 6), 8, kind, scale=scale, options=_options(exchange, backend))
        # A zero row's gradient is divided by 1e-12, and drowns the others' where norms are taken.
        # At s = 100 dense exponentials of z multiply z's rounding by 100.
        _check_shares(world.results(share, case), case, rel=1e-11)


@every_exchange
@worlds(4)
def test_duplicates_on_other_ranks_are_negatives(world: World, exchange: str, backend: str) -> None:
    for loss in "contrastive", "sigmoid":
        counts = (4, 4, 3, 5)
        case = Case(loss, counts, kind="duplicates", options=_options(exchange, backend))
        _check_shares(world.results(share, case), case)


@every_exchange
@worlds(2)
def test_one_pair_per_rank_has_finite_gradients(world: World, exchange: str, backend: str) -> None:
    """A rank's own column then has no negatives among its own rows."""
    for loss in LOSSES:
        case = Case(loss, (1, 1), options=_options(exchange, backend))
        _check_shares(world.results(share, case), case)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("loss", ["contrastive", "hinge", "sigmoid", "margin"])
@every_exchange
@worlds(1)
def test_group_of_one_rank_has_the_gradients_of_no_group(
    world: World, loss: str, exchange: str, backend: str, dtype: torch.dtype
) -> None:
    """The gradients are equal to the bit, because a group must not change the precision."""
    case = Case(loss, (30,), 24, dtype=dtype, options=_options(exchange, backend))
    ((actual_loss, actual),) = world.results(share, case)
    expected_loss, expected = whole(case)
    torch.testing.assert_close(actual_loss, expected_loss, rtol=1e-6, atol=0)
    for name in "image", "text":
        if exchange == "replicate" and dtype.itemsize == 2:  # dL/dS is not rounded on the way
            _assert_close(actual[name], expected[name], 0.01, name)
        else:
            assert torch.equal(actual[name], expected[name]), name


def _share_watched(rank: int, case: Case) -> Any:
    with torch.autograd.detect_anomaly(check_nan=True):
        return share(rank, case)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@every_exchange
@worlds(1)
def test_single_pair_of_a_group_has_no_loss(world: World, exchange: str, backend: str) -> None:
    for loss in "contrastive", "hinge", "all", "sigmoid":
        case = Case(loss, (1,), options=_options(exchange, backend))
        _check_shares(world.results(_share_watched, case), case)


@pytest.mark.native
@every_exchange
@worlds(3)
def test_tiny_loss_survives_merging_ranks(world: World, exchange: str) -> None:
    options = _options(exchange, "native")
    case = Case("contrastive", (9, 4, 7), 64, "aligned", scale=100.0, options=options)
    image, text = (t.requires_grad_() for t in features(case))
    expected = truth.contrastive_loss(image, text, 100.0)
    expected.backward()
    assert 0 < expected < 1e-12
    for rank, (loss, grads) in enumerate(world.results(share, case)):
        assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
        for name, whole_grad in ("image", image.grad), ("text", text.grad):
            _assert_close(grads[name], 3 * whole_grad[rows_of(rank, case)], 1e-9, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@every_exchange
@worlds(3)
def test_error_does_not_grow_with_ranks(
    world: World, exchange: str, backend: str, dtype: torch.dtype
) -> None:
    """At most twice the error of one process, and a quarter more for 16-bit gradients.

    Those are rounded once, not once per rank.
    """
    for loss, kind in itertools.product(("contrastive", "sigmoid", "cycle"), ("random", "aligned")):
        case = Case(loss, (40, 31, 25), 24, kind, dtype, options=_options(exchange, backend))
        rounded = tuple(t.double().requires_grad_() for t in features(case))
        scalars = [torch.tensor(v).double() for v in (case.scale, case.bias)]
        exact = LOSSES[loss](*rounded, *scalars, backend="reference")
        exact.backward()
        one_loss, one = whole(case)
        results = world.results(share, case)
        floor = torch.finfo(torch.float32).eps
        allowed = 2 * abs(one_loss - exact) + 2 * floor * abs(exact)
        assert all(abs(value - exact) <= allowed for value, _ in results), (loss, kind)
        for name, leaf in zip(("image", "text"), rounded, strict=True):
            actual = torch.cat([grads[name].double() for _, grads in results]) / world.size
            factor = 2 if dtype == torch.float32 else 1.25
            one_error = (one[name].double() - leaf.grad).norm()
            allowed = factor * one_error + 4 * floor * leaf.grad.norm()
            assert (actual - leaf.grad).norm() <= allowed, (loss, kind, name)


@every_exchange
@worlds(2)
def test_bf16_precision_reaches_the_group(world: World, exchange: str, backend: str) -> None:
    for loss in "contrastive", "sigmoid":
        options = {**_options(exchange, backend), "precision": "bf16"}
        case = Case(loss, (20, 13), 16, dtype=torch.float32, options=options)
        _check_shares(world.results(share, case), case, rel=5e-3)
        plain = dataclasses.replace(case, options=_options(exchange, backend))
        as_bf16, as_float32 = (world.results(share, c)[0][0] for c in (case, plain))
        assert as_bf16 != as_float32
        torch.testing.assert_close(as_bf16, whole(case)[0], rtol=1e-5, atol=0)


def _statistics(rank: int, case: Case) -> dict[str, dict[str, Tensor]]:
    image, text = (t[rows_of(rank, case)] for t in features(case))
    return _dictionaries(image, text, case, group=dist.group.WORLD, **case.options)


def _dictionaries(image: Tensor, text: Tensor, case: Case, **options: Any) -> dict[str, Any]:
    return {
        kind.__name__: kind(statistics=True, **options)(
            image, text, case.scale, case.bias, output_dict=True
        )
        for kind in (CLIPLoss, CyCLIPLoss, SigLIPLoss)
    }


@every_exchange
@worlds(3)
def test_statistics_are_those_of_the_whole_batch(world: World, exchange: str, backend: str) -> None:
    case = Case("", UNEVEN[:3], options=_options(exchange, backend))
    expected = _dictionaries(*features(case), case, backend=backend)
    for actual in world.results(_statistics, case):
        torch.testing.assert_close(actual, expected)


@every_exchange
@worlds(4)
def test_subgroup_is_not_the_world(world: World, exchange: str) -> None:
    case = Case("all", (5, 3), options={"exchange": exchange})
    for members in (1, 3), (0, 2), (2, 3):
        results = world.results(share, case, members)
        assert [result is None for result in results] == [r not in members for r in range(4)]
        _check_shares([results[rank] for rank in members], case)


# ------------------------------------------------- bits, memory


def _same_bits(first: Any, second: Any) -> bool:
    (loss, grads), (other_loss, other_grads) = first, second
    return torch.equal(loss, other_loss) and all(
        grad is other_grads[name] is None or torch.equal(grad, other_grads[name])
        for name, grad in grads.items()
    )


def _twice(rank: int, case: Case) -> bool:
    return _same_bits(*(share(rank, case) for _ in range(2)))


@every_exchange
@pairwise
@worlds(4)
def test_bits_do_not_depend_on_the_order_of_messages(
    world: World, loss: str, exchange: str, backend: str
) -> None:
    options = _options(exchange, backend)
    case = Case(loss, (50, 37, 61, 44), 24, dtype=torch.float32, options=options)
    assert all(world.results(_twice, case))
    losses = [loss for loss, _ in world.results(share, case)]
    assert all(torch.equal(loss, losses[0]) for loss in losses)


def _largest(rank: int, case: Case) -> int:
    image, text = (t[rows_of(rank, case)] for t in features(case))
    with LargestTensor() as largest:
        loss_and_gradients(case, image, text, {**case.options, "group": dist.group.WORLD})
    return largest.elements


@pytest.mark.native
@pytest.mark.parametrize("loss", [*PAIRWISE, "CyCLIPLoss"])
@worlds(4)
def test_no_rank_holds_rows_times_all_columns(world: World, loss: str) -> None:
    """A rank holds neither n x N similarities nor, with the ring, all texts."""
    counts, width = (96,) * 4, 16
    rows = sum(counts)
    largest = {}
    for exchange in EXCHANGES:
        options = {**_options(exchange, "native"), "memory_budget": 0}
        case = Case(loss, counts, width, dtype=torch.float32, options=options)
        largest[exchange] = max(world.results(_largest, case))
    assert largest["gather"] == rows * width  # what the mode can see
    assert largest["ring"] <= counts[0] * width


def _with_nan(rank: int, case: Case) -> float:
    x, y = (t[rows_of(rank, case)] for t in features(case))
    if rank == 1:
        y[0, 0] = math.nan
    return LOSSES[case.loss](x, y, 5.0, -1.0, **case.options, group=dist.group.WORLD).item()


@every_exchange
@worlds(2)
def test_nan_on_one_rank_is_nan_on_all(world: World, exchange: str, backend: str) -> None:
    for loss in LOSSES:
        case = Case(loss, (3, 3), options=_options(exchange, backend))
        assert all(map(math.isnan, world.results(_with_nan, case)))


# ------------------------------------------------- torch around it


def _in_autocast(rank: int, case: Case) -> bool:
    plain = share(rank, case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return _same_bits(share(rank, case), plain)


@with_own_backward
@pairwise
@worlds(2)
def test_autocast_does_not_reach_the_loss_of_a_group(
    world: World, loss: str, exchange: str, backend: str
) -> None:
    if loss == "all" and backend == "reference":
        return  # Gram matrices are autograd's, too
    case = Case(loss, (9, 6), dtype=torch.float32, options=_options(exchange, backend))
    assert all(world.results(_in_autocast, case))


def _second_derivative(rank: int, case: Case) -> None:
    image, text = (t[rows_of(rank, case)].requires_grad_() for t in features(case))
    loss = LOSSES[case.loss](image, text, 5.0, -1.0, **case.options, group=dist.group.WORLD)
    (gradient,) = torch.autograd.grad(loss, image, create_graph=True)
    gradient.sum().backward()


@with_own_backward
@worlds(2)
def test_second_derivatives_raise(world: World, exchange: str, backend: str) -> None:
    """A double backward would return zeros, or this rank's part alone."""
    for loss in PAIRWISE:
        case = Case(loss, (3, 2), options=_options(exchange, backend))
        for result in world.run(_second_derivative, case):
            assert isinstance(result, Raised), loss
            assert "twice" in result.message


def _compiled(rank: int, case: Case) -> list[Tensor]:
    x, y = (t[rows_of(rank, case)].requires_grad_() for t in features(case))
    loss = torch.compile(CyCLIPLoss(group=dist.group.WORLD, **case.options), backend="eager")
    value = loss(x, y, torch.tensor(5.0))
    value.backward()
    return [value.detach(), x.grad, y.grad]


@pytest.mark.slow
@every_exchange
@worlds(2)
def test_compiled_loss_of_a_group_matches_eager(world: World, exchange: str) -> None:
    case = Case("CyCLIPLoss", (5, 3), scale=5.0, options={"exchange": exchange})
    expected = world.results(share, case)
    for (loss, grads), actual in zip(expected, world.results(_compiled, case), strict=True):
        torch.testing.assert_close(actual, [loss, grads["image"], grads["text"]])


def _snippet(rank: int, code: str) -> None:
    torch.manual_seed(0)
    image, text = make_features("random", 8, 5, dtype=torch.float32)
    towers = [torch.nn.Linear(5, 3) for _ in range(2)]
    batch = image[4 * rank :][:4], text[4 * rank :][:4]
    scope = {"image_tower": towers[0], "text_tower": towers[1], "batch": batch}
    exec(code, scope)
    averaged = [p.grad.clone() for p in scope["model"].parameters()]
    alone = scope["model"].module
    alone.zero_grad()
    loss = CyCLIPLoss()(*alone(image, text))
    loss.backward()
    torch.testing.assert_close(scope["loss"], loss)
    torch.testing.assert_close(averaged, [p.grad for p in alone.parameters()])


@worlds(2)
def test_documented_usage_runs(world: World) -> None:
    page = Path(__file__).parents[2] / "docs" / "distributed.md"
    world.results(_snippet, page.read_text().split("```python\n")[1].split("```")[0])
