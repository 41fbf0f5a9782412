"""The losses over a process group: real processes over gloo, against one process with all rows."""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
import itertools
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from cyclip_ext import CLIPLoss, CyCLIPLoss, SigLIPLoss, functional, libraries
from cyclip_ext.distributed import groups

from . import truth
from .inputs import LargestTensor, make_features
from .ranks import Raised, World
from .shares import (
    LOSSES,
    PAIRWISE,
    Case,
    TwoTowers,
    features,
    loss_and_gradients,
    rows_of,
    share,
    share_of_model,
    whole,
    whole_model,
)

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo"
)

EXCHANGES = ["gather", "ring", "replicate"]
UNEVEN = (5, 3, 1, 2)
every_exchange = pytest.mark.parametrize("exchange", EXCHANGES)
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


def worlds(*sizes: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("world", sizes, indirect=True)


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


# ------------------------------------------------- what goes wrong


def _features_of(rank: int, case: Case) -> list[Tensor]:
    return [t[rows_of(rank, case)].float() for t in features(case)]


# What rank 1 changes of its arguments.
CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "width": lambda given: given.update({name: given[name][:, :2] for name in ("x", "y")}),
    "dtype": lambda given: given.update({name: given[name].double() for name in ("x", "y")}),
    "empty": lambda given: given.update({name: given[name][:0] for name in ("x", "y")}),
    "shapes": lambda given: given.update(y=given["y"][:2]),
    "scale": lambda given: given.update(s="5"),
    "image_grad": lambda given: given["x"].requires_grad_(),
    "scale_grad": lambda given: given["s"].requires_grad_(),
    "bias": lambda given: given.update(b=None),
    "budget": lambda given: given.update(memory_budget=-1),
    "environment": lambda given: None,
    "kernel": lambda given: given.update(backend="native"),
    "exchange": lambda given: given.update(
        exchange="ring" if given["exchange"] == "gather" else "gather"
    ),
}


def _unfit(rank: int, name: str, exchange: str, what: str) -> float:
    """Compute a loss in which rank 1 differs from the others; then meet them in a collective."""
    x, y = _features_of(rank, Case("", (3, 3, 3)))
    given = {"x": x, "y": y, "s": torch.tensor(5.0), "b": -1.0, "exchange": exchange}
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            CHANGES[what](given)
            if what == "environment":
                patch.setenv("CYCLIP_MEMORY_BUDGET", "1 GiB")
            elif what == "kernel":
                patch.setattr(libraries, "has_operator", lambda name, device: False)
        tensors = [given.pop(argument) for argument in ("x", "y", "s", "b")]
        try:
            LOSSES[name](*tensors, **given, group=dist.group.WORLD)
        finally:  # nobody is left behind in another collective
            patch.undo()
            count = torch.ones(())
            dist.all_reduce(count)
            assert count == 3
    return 0.0


UNFIT = {
    # what rank 1 does: (its exception, words of it, the others' exception, words of theirs)
    "width": (ValueError, ["width", "5 on rank 0", "2 on rank 1"]) * 2,
    "dtype": (ValueError, ["dtype", "float32 on rank 0", "float64 on rank 1"]) * 2,
    "image_grad": (ValueError, ["image_features", "require grad", "True on rank 1"]) * 2,
    "scale_grad": (ValueError, ["logit_scale", "require grad", "True on rank 1"]) * 2,
    "exchange": (ValueError, ["exchange", "on rank 1"]) * 2,
    "empty": (ValueError, ["image_features", "empty"], RuntimeError, ["rank 1", "invalid"]),
    "shapes": (ValueError, ["text_features", "[2, 5]"], RuntimeError, ["rank 1", "invalid"]),
    "scale": (TypeError, ["logit_scale", "str"], RuntimeError, ["rank 1", "invalid"]),
    "bias": (ValueError, ["logit_bias is missing"], RuntimeError, ["rank 1", "invalid"]),
    "budget": (ValueError, ["memory_budget must", "-1"], RuntimeError, ["rank 1", "invalid"]),
    "environment": (ValueError, ["CYCLIP_MEMORY_BUDGET", "GiB"], RuntimeError, ["rank 1"]),
    "kernel": (RuntimeError, ["backend='native'"], RuntimeError, ["rank 1", "invalid"]),
}


@pytest.mark.parametrize("what", UNFIT)
@worlds(3)
def test_arguments_that_differ_between_ranks_raise_on_all_ranks(world: World, what: str) -> None:
    """Otherwise the others wait for the timeout, or compute with wrong bytes."""
    own_kind, own_words, kind, words = UNFIT[what]
    names = {
        "bias": ["SigLIPLoss"],
        "budget": ["hinge", "sigmoid"],
        "environment": ["contrastive", "SigLIPLoss"],
        "exchange": ["hinge", "SigLIPLoss"],
        "kernel": ["all", "cycle", "sigmoid"],
        "scale": ["contrastive", "SigLIPLoss"],
        "scale_grad": ["contrastive", "SigLIPLoss"],
    }.get(what, ["all", "margin", "cycle"])
    if what == "environment" and not libraries.has_operator("pair_statistics", "cpu"):
        pytest.skip("the budget is that of the C++ operators")
    for name, exchange in itertools.product(names, EXCHANGES):
        for rank, result in enumerate(world.run(_unfit, name, exchange, what)):
            assert isinstance(result, Raised), rank
            assert result.kind is (own_kind if rank == 1 else kind), result.where
            for word in own_words if rank == 1 else words:
                assert word in result.message


def _loss_of(rank: int, case: Case, group: Any) -> Tensor:
    image, text = (t[rows_of(rank, case)] for t in features(case))
    return CyCLIPLoss(group=group, **case.options)(image, text, 5.0)


def _every_form_of_group(rank: int, case: Case) -> dict[str, Tensor]:
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data", "other"))
    groups = {
        "WORLD": dist.group.WORLD,
        "world": "world",
        "mesh": mesh["data"],
        "local": "local",
        "None": None,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: _loss_of(rank, case, group) for name, group in groups.items()}


@worlds(2)
def test_group_may_be_a_name_or_a_mesh(world: World) -> None:
    case = Case("", (4, 3))
    alone = [_loss_of(rank, case, None) for rank in range(2)]
    together = CyCLIPLoss()(*features(case), 5.0)
    for rank, losses in enumerate(world.results(_every_form_of_group, case)):
        for name in "WORLD", "world", "mesh":
            torch.testing.assert_close(losses[name], together)
        for name in "local", "None":
            torch.testing.assert_close(losses[name], alone[rank])


def test_world_is_looked_up_at_each_call(tmp_path: Path) -> None:
    """A LightningModule makes its loss before init_process_group."""
    loss, case = CyCLIPLoss(group="world"), Case("", (4,))
    alone = loss(*features(case), 5.0)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with mock.patch.object(dist, "all_gather", wraps=dist.all_gather) as gather:
            torch.testing.assert_close(loss(*features(case), 5.0), alone)
        assert gather.called
    finally:
        dist.destroy_process_group()
    assert torch.equal(loss(*features(case), 5.0), alone)


def _mesh_of_two_dimensions(rank: int) -> str:
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data", "other"))
    with pytest.raises(ValueError, match="one dimension, got one of 2") as error:
        CLIPLoss(group=mesh)
    return str(error.value)


@worlds(2)
def test_mesh_of_two_dimensions_raises(world: World) -> None:
    for message in world.results(_mesh_of_two_dimensions):
        assert "data" in message


def _warnings_of(rank: int, group: Any) -> list[str]:
    groups._warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            _loss_of(rank, Case("", (4, 3)), group)
            functional.margin_loss(torch.ones(2, 3), torch.ones(2, 3), group=group)
    return [str(warning.message) for warning in caught]


@worlds(1, 2)
def test_one_warning_if_no_group_was_chosen(world: World) -> None:
    for messages in world.results(_warnings_of, None):
        assert len(messages) == (world.size > 1)
        assert all('group="world"' in message for message in messages)
    for group in "local", "world":
        assert world.results(_warnings_of, group) == [[]] * world.size


def _copies_agree(rank: int, case: Case) -> bool:
    image, text = (t[rows_of(rank, case)] for t in features(case))
    pair = dist.new_group([0, 1])
    mesh = init_device_mesh("cpu", (2,))
    for group in dist.group.WORLD, pair, mesh, "world", "local":
        loss = nn.ModuleDict({"loss": CyCLIPLoss(group=group)})
        expected = loss["loss"](image, text, 5.0)
        buffer = io.BytesIO()
        torch.save(loss, buffer)
        buffer.seek(0)
        for other in (
            copy.deepcopy(loss),
            pickle.loads(pickle.dumps(loss)),
            torch.load(buffer, weights_only=False),
        ):
            assert torch.equal(other["loss"](image, text, 5.0), expected)
    return True


@worlds(2)
def test_loss_of_a_group_can_be_copied_and_pickled(world: World) -> None:
    assert all(world.results(_copies_agree, Case("", (4, 3))))


def _pickled(rank: int) -> bytes:
    return pickle.dumps(CLIPLoss(group=dist.new_group([0, 1])))


@worlds(2)
def test_pickled_group_that_is_not_here_raises(world: World) -> None:
    loss = pickle.loads(world.results(_pickled)[0])
    assert "SavedGroup" in repr(loss)
    with pytest.raises(RuntimeError, match=r"group.*ranks \[0, 1\].*construct the loss again"):
        loss(torch.ones(2, 3), torch.ones(2, 3), 1.0)


def _two_steps(rank: int, case: Case) -> float:
    """Train without a word about the bias, for whose gradient DDP waits in the second step."""
    image, text = (t[rows_of(rank, case)] for t in features(case))
    model = DistributedDataParallel(TwoTowers(case))
    for _ in range(2):
        LOSSES[case.loss](*model(image, text), group="world").backward()
    return model.module.bias.grad.item()


@pytest.mark.parametrize("loss", ["CyCLIPLoss", "CLIPLoss"])
@worlds(2)
def test_softmax_loss_of_a_model_with_a_bias_trains_under_ddp(world: World, loss: str) -> None:
    assert world.results(_two_steps, Case(loss, (4, 3))) == [0.0, 0.0]


def _not_a_member(rank: int) -> list[tuple[str, str]]:
    group = dist.new_group([0])
    if rank == 0:
        return []
    x, y = _features_of(0, Case("", (3,)))
    said = []
    for call in (
        lambda: functional.contrastive_loss(x, y, 5.0, group=group),
        lambda: functional.margin_loss(x, y, group=group),
        lambda: CyCLIPLoss(group=group),
    ):
        try:
            call()
        except Exception as error:
            said.append((type(error).__name__, str(error)))
    return said


@worlds(2)
def test_group_without_this_process_raises(world: World) -> None:
    said = world.results(_not_a_member)[1]
    assert len(said) == 3
    assert all(kind == "ValueError" and "NON_GROUP_MEMBER" in text for kind, text in said)


@pytest.mark.parametrize("group", ["worlds", 1, True], ids=str)
def test_invalid_group_raises(group: Any) -> None:
    x = torch.randn(4, 3)
    calls = [functools.partial(kind, group=group) for kind in (CLIPLoss, CyCLIPLoss, SigLIPLoss)]
    calls += [functools.partial(loss, x, x, 5.0, -1.0, group=group) for loss in LOSSES.values()]
    for call in calls:
        with pytest.raises(TypeError, match='group must be "world", "local"') as error:
            call()
        assert f"{group!r} ({type(group).__name__})" in str(error.value)


def test_unknown_exchange_raises() -> None:
    x = torch.randn(4, 3)
    for name in *PAIRWISE, "CLIPLoss", "SigLIPLoss":
        with pytest.raises(ValueError, match=r"exchange must be 'gather', 'ring' or 'replicate'"):
            LOSSES[name](x, x, 5.0, -1.0, exchange="rings")
    with pytest.raises(ValueError, match="exchange must be"):
        CLIPLoss(exchange="rings")


def test_package_works_without_torch_distributed(run_program: Callable[..., str]) -> None:
    run_program(
        "import torch, torch.distributed as dist\n"
        "for name in set(vars(dist)) - {'is_available'}:\n"
        "    if not name.startswith('_'):\n"
        "        delattr(dist, name)\n"
        "dist.is_available = lambda: False\n"
        "import cyclip_ext\n"
        "x, y = torch.randn(2, 4, 3).requires_grad_()\n"
        "cyclip_ext.CyCLIPLoss(margin=0.1, hinge=0.1)(x, y, 10.0).backward()\n"
        "try:\n"
        "    cyclip_ext.CLIPLoss(group=object())\n"
        "except RuntimeError as error:\n"
        "    assert 'torch.distributed' in str(error)\n"
        "else:\n"
        "    raise AssertionError\n"
    )


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
