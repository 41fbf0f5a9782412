"""Batch norm over a group has the results of one process with all rows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from losses.ranks import World
from torch import Tensor, nn

from cyclip_ext.models import GroupBatchNorm, synchronize_batch_norm

ROWS = {1: [5], 2: [1, 6], 3: [4, 2, 5]}  # of each rank
SHAPES = {"1d": (4,), "sequence": (4, 3), "2d": (4, 3, 5)}  # without the rows

MAKE: dict[str, Callable[[], nn.Module]] = {
    "1d": lambda: nn.BatchNorm1d(4),
    "sequence": lambda: nn.BatchNorm1d(4, affine=False, momentum=None),
    "2d": lambda: nn.BatchNorm2d(4, eps=1e-3, momentum=0.3),
}


@pytest.fixture(scope="module")
def worlds() -> Iterator[dict[int, World]]:
    with World(1) as one, World(2) as two, World(3) as three:
        yield {1: one, 2: two, 3: three}


def _norm(kind: str) -> nn.Module:
    torch.manual_seed(0)
    norm = MAKE[kind]().double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(4))
    return norm


def _inputs(kind: str, rows: int, *, offset: float = 3.0) -> tuple[Tensor, Tensor]:
    """Return the input and the gradient of its output."""
    torch.manual_seed(1)
    shape = (rows, *SHAPES[kind])
    x = torch.randn(shape, dtype=torch.float64) + offset
    if kind == "2d":
        x = x.contiguous(memory_format=torch.channels_last)
    return x, torch.randn(shape, dtype=torch.float64)


def _steps(norm: nn.Module, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """Run two steps in training mode, and a third in eval mode, which uses their statistics."""
    outcome = {}
    for step in range(2):
        x = (x * (1 + step)).detach().requires_grad_()
        output = norm(x)
        output.backward(grad)
        outcome |= {f"output{step}": output.detach(), f"grad{step}": x.grad}
    norm.eval()
    outcome["eval"] = norm(x).detach()
    outcome |= {f"{name}.grad": p.grad for name, p in norm.named_parameters()}
    return outcome | dict(norm.state_dict())


def _steps_of_rank(rank: int, kind: str, rows: list[int]) -> dict[str, Tensor]:
    norm = synchronize_batch_norm(_norm(kind), dist.group.WORLD)
    assert type(norm) is GroupBatchNorm
    own = [tensor.split(rows)[rank] for tensor in _inputs(kind, sum(rows))]
    return _steps(norm, *own)


@pytest.mark.parametrize("size", ROWS)
@pytest.mark.parametrize("kind", MAKE)
def test_ranks_equal_one_process_with_all_rows(
    kind: str, size: int, worlds: dict[int, World]
) -> None:
    rows = ROWS[size]
    expected = _steps(_norm(kind), *_inputs(kind, sum(rows)))
    outcomes = worlds[size].results(_steps_of_rank, kind, rows)
    for name, whole in expected.items():
        parts = [outcome[name] for outcome in outcomes]
        if whole.ndim > 1:  # rows
            actual = torch.cat(parts)
        elif name.endswith(".grad"):  # of a parameter: DDP adds them up
            actual = torch.stack(parts).sum(0)
        else:
            actual = parts[0]
            assert all(torch.equal(part, actual) for part in parts), name
        torch.testing.assert_close(actual, whole, rtol=1e-12, atol=1e-12, msg=name)


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3)
        )
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.body(x).mean((2, 3)))


def _net(dtype: torch.dtype = torch.float64) -> _Net:
    torch.manual_seed(0)
    return _Net().to(dtype)


def _images() -> Tensor:
    torch.manual_seed(2)
    return torch.randn(7, 3, 8, 8, dtype=torch.float64)


def _whole_loss(features: Tensor) -> Tensor:
    """Return a loss in which every row depends on every other, as in a contrastive loss."""
    return (features @ features.T).logsumexp(1).mean() + features.pow(3).mean()


def _ddp_gradients(rank: int, rows: list[int]) -> dict[str, Tensor]:
    model = synchronize_batch_norm(_net(), dist.group.WORLD)
    ddp = nn.parallel.DistributedDataParallel(model)
    own = ddp(_images().split(rows)[rank])
    everyone = [torch.empty(n, 5, dtype=own.dtype) for n in rows]
    everyone[rank].copy_(own.detach())
    for source, features in enumerate(everyone):
        dist.broadcast(features, source)
    everyone[rank] = own
    # The gradient of the whole loss for the own features, times the number of ranks.
    (len(rows) * _whole_loss(torch.cat(everyone))).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_gradients_after_averaging(worlds: dict[int, World]) -> None:
    """DDP averages gradients of a whole-batch loss, so a factor could be missing or doubled."""
    net = _net()
    _whole_loss(net(_images())).backward()
    for outcome in worlds[2].results(_ddp_gradients, [2, 5]):
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(
                outcome[name], parameter.grad, rtol=1e-12, atol=1e-12, msg=name
            )


def _narrow(rank: int, rows: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    norm = synchronize_batch_norm(nn.BatchNorm1d(4), dist.group.WORLD)
    x, _ = _inputs("1d", sum(rows), offset=1000.0)
    own = x.float().split(rows)[rank]
    normalized = norm(own)
    net = synchronize_batch_norm(_net(torch.float32), dist.group.WORLD)
    with torch.autocast("cpu", torch.bfloat16):
        features = net(_images().float().split([3, 4])[rank])
    features.float().square().sum().backward()
    return normalized.detach(), norm.running_var, features.detach(), net.body[1].weight.grad


def test_variance_beside_a_large_mean_and_under_autocast(worlds: dict[int, World]) -> None:
    rows = [3, 30]
    outcomes = worlds[2].results(_narrow, rows)
    x, _ = _inputs("1d", sum(rows), offset=1000.0)
    rounded = x.float().double()
    truth = nn.functional.batch_norm(rounded, None, None, training=True)
    own_error = nn.functional.batch_norm(x.float(), None, None, training=True) - truth
    error = torch.cat([normalized for normalized, *_ in outcomes]) - truth
    assert error.abs().max() <= 2 * own_error.abs().max()
    torch.testing.assert_close(
        outcomes[0][1].double(), 0.9 + 0.1 * rounded.var(0), rtol=1e-6, atol=0
    )

    net = _net(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        plain = net(_images().float())
    whole = _net()(_images())
    actual = torch.cat([features for _, _, features, _ in outcomes])
    assert actual.dtype == plain.dtype
    assert (actual - whole).abs().max() <= 2 * (plain - whole).abs().max()
    assert all(gradient.dtype == torch.float32 for *_, gradient in outcomes)


class Own(nn.BatchNorm2d):
    pass


def _errors(rank: int) -> None:
    norm = synchronize_batch_norm(nn.BatchNorm1d(4), dist.group.WORLD)
    with pytest.raises(ValueError, match="more than one value per channel"):
        norm(torch.ones(1, 4))
    with pytest.raises(ValueError, match=r"\[n, C, ...\], got shape \[4\]"):
        norm(torch.ones(4))
    net = _net()
    net.body[1] = Own(4)
    with pytest.raises(TypeError, match=r"body\.1 is a Own"):
        synchronize_batch_norm(net, dist.group.WORLD)


def test_single_values_and_foreign_layers_are_rejected(worlds: dict[int, World]) -> None:
    worlds[1].results(_errors)


def _replaced(rank: int) -> tuple[list[str], list[str], bool]:
    net = _net()
    before = copy.deepcopy(net.state_dict())
    model = synchronize_batch_norm(net, dist.group.WORLD)
    model.load_state_dict(before)
    kinds = [type(model.body[1]).__name__, type(model.norm).__name__]
    untouched = nn.Sequential(nn.BatchNorm1d(4, affine=False, track_running_stats=False))
    synchronize_batch_norm(untouched, dist.group.WORLD)
    kinds.append(type(untouched[0]).__name__)
    return list(before), list(model.state_dict()), set(kinds) == {"GroupBatchNorm"}


def test_replaced_layers_keep_parameters_and_names(worlds: dict[int, World]) -> None:
    """Checkpoints of one process and of several must fit each other."""
    ((before, after, all_replaced),) = worlds[1].results(_replaced)
    assert before == after
    assert all_replaced
