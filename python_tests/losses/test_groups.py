"""Groups of processes: every form in which a loss takes one, and arguments that do not fit."""

from __future__ import annotations

import copy
import functools
import io
import itertools
import os
import pickle
import time
import warnings
from collections.abc import Callable
from functools import partial
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

from .ranks import Raised, World
from .shares import (
    EXCHANGES,
    LOSSES,
    PAIRWISE,
    Case,
    TwoTowers,
    features,
    needs_gloo,
    rows_of,
    worlds,
)

pytestmark = needs_gloo


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
    "transform": lambda given: None,
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
        call = partial(LOSSES[name], **given, group=dist.group.WORLD)
        if what == "transform" and rank == 1:
            call = torch.func.grad(call)
        try:
            call(*tensors)
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
    "transform": (RuntimeError, ["torch.func", "3 ranks"], RuntimeError, ["rank 1", "invalid"]),
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
        assert copy.deepcopy(loss)["loss"].options is loss["loss"].options
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


def _variable(rank: int) -> str:
    return os.environ["RANK_OF_TEST"]


def _hang(rank: int) -> None:
    time.sleep(2)


def test_tests_after_a_hanging_rank_have_new_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank that hangs would fail every later test of a session."""
    with World(1, {"RANK_OF_TEST": "{rank}"}) as ranks:
        assert ranks.results(_variable) == ["0"]
        with monkeypatch.context() as patch:
            patch.setattr("losses.ranks.PATIENCE", 0.1)
            with pytest.raises(TimeoutError, match="rank 0 of 1 hangs in _hang"):
                ranks.results(_hang)
        assert ranks.results(_variable) == ["0"]
