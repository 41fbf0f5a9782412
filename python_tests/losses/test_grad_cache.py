"""GradCache: the gradient of the whole batch, from chunks."""

from __future__ import annotations

import copy
import functools
import weakref
from collections import UserDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from cyclip_ext import CLIPLoss, CyCLIPLoss, MatryoshkaLoss, SigLIPLoss
from cyclip_ext.grad_cache import cached_backward
from cyclip_ext.models import GroupBatchNorm

from .ranks import World

N = 13
LOSSES: dict[str, Callable[[], nn.Module]] = {
    "clip": CLIPLoss,
    "cyclip": lambda: CyCLIPLoss(margin=0.1, hinge=0.3, statistics=True),
    "siglip": SigLIPLoss,
}


class Towers(nn.Module):
    """Small towers with every kind of layer that GradCache treats differently."""

    def __init__(
        self,
        *,
        norm: nn.Module | None = None,
        dropout: float = 0.0,
        checkpointed: bool = False,
        width: int = 8,
    ) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Linear(6, width), norm or nn.LayerNorm(width), nn.Tanh(), nn.Dropout(dropout)
        )
        self.image_projection = nn.Linear(width, 5)
        self.text = nn.Sequential(nn.EmbeddingBag(11, width), nn.Tanh(), nn.Linear(width, 5))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.logit_bias = nn.Parameter(torch.tensor(-1.0))
        self.checkpointed = checkpointed

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        if self.checkpointed:
            hidden = checkpoint(self.image, images, use_reentrant=False)
        else:
            hidden = self.image(images)
        image_features = self.image_projection(hidden)
        return image_features, self.text(tokens), self.logit_scale.exp(), self.logit_bias


def _towers(dtype: torch.dtype = torch.float64, **options: Any) -> Towers:
    torch.manual_seed(0)
    return Towers(**options).to(dtype)


def _batch(n: int = N, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n, 6, dtype=dtype, generator=generator)
    return images, torch.randint(0, 11, (n, 4), generator=generator)


def _plain_backward(
    towers: Callable[..., Any],
    loss: nn.Module,
    images: Tensor,
    tokens: Tensor,
    *,
    chunk_size: int = N,
    autocast: Callable[[], Any] | None = None,
    scale: Callable[[Tensor], Tensor] = lambda total: total,
) -> dict[str, Tensor]:
    """Run one backward pass through the graph of all chunks at once."""
    outputs = []
    for chunk in zip(images.split(chunk_size), tokens.split(chunk_size), strict=True):
        if autocast is None:
            outputs.append(towers(*chunk))
        else:
            with autocast():
                outputs.append(towers(*chunk))
    x, y = (torch.cat([output[side] for output in outputs]) for side in (0, 1))
    if x.dtype == torch.bfloat16:
        x, y = x.float(), y.float()
    terms = loss(x, y, *outputs[-1][2:], output_dict=True)
    total = torch.stack([value for name, value in terms.items() if name.endswith("_loss")]).sum()
    scale(total).backward()
    return terms


def _gradients(towers: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in towers.named_parameters()}


def _assert_same(actual: nn.Module, expected: nn.Module, **tolerance: float) -> None:
    tolerance = tolerance or {"rtol": 1e-12, "atol": 1e-13}
    assert any(gradient is not None for gradient in _gradients(expected).values())
    torch.testing.assert_close(_gradients(actual), _gradients(expected), **tolerance)


@pytest.mark.parametrize("chunk_size", [1, 5, 12, 13, 40])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_whole_batch(name: str, chunk_size: int) -> None:
    loss = LOSSES[name]()
    plain, cached = _towers(), _towers()
    # Twice: gradients add up.
    for _ in range(2):
        expected = _plain_backward(plain, loss, *_batch())
        terms = cached_backward(cached, loss, *_batch(), chunk_size=chunk_size)
    _assert_same(cached, plain)
    assert terms.keys() == expected.keys()
    for key, term in terms.items():
        assert not term.requires_grad
        torch.testing.assert_close(term, expected[key].detach(), rtol=1e-12, atol=1e-13)


class _OfDictionaries(nn.Module):
    """Towers that are called as the models of transformers are."""

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, images: tuple[Tensor, None], tokens: UserDict[str, Any]) -> Any:
        assert images[1] is None
        lengths, (more,) = tokens["lengths"], tokens["more"]
        assert len(images[0]) == len(tokens["input_ids"]) == len(lengths) == len(more) <= 5
        return self.towers(images[0], tokens["input_ids"])


def test_dictionaries_of_tensors_are_split_along_their_rows() -> None:
    plain, cached = _towers(), _towers()
    images, tokens = _batch()
    _plain_backward(plain, CLIPLoss(), images, tokens)
    encoding = UserDict(input_ids=tokens, lengths=torch.arange(N), more=[torch.zeros(N, 2, 3)])
    model = _OfDictionaries(cached)
    cached_backward(model, CLIPLoss(), (images, None), encoding, chunk_size=5)
    _assert_same(cached, plain)


RELATIONS: dict[str, tuple[nn.Module, tuple[str, ...]]] = {
    "labels": (CyCLIPLoss(hinge=0.1), ("labels",)),
    "negatives": (CyCLIPLoss(), ("negative_text_features", "negative_image_features")),
    "everything": (
        CyCLIPLoss(hinge=0.1, same_label="positive", statistics=True),
        ("labels", "negative_text_features", "negative_image_features"),
    ),
    "sigmoid": (SigLIPLoss(), ("labels", "negative_text_features")),
    "widths": (MatryoshkaLoss(CLIPLoss(), (2, 5)), ("negative_image_features", "labels")),
}


@pytest.mark.parametrize("name", RELATIONS)
def test_tensors_bound_to_the_loss_get_their_gradients(name: str) -> None:
    kind, keywords = RELATIONS[name]
    results = []
    for backward, chunk_size in ((_plain_backward, N), (cached_backward, 5)):
        towers = _towers()
        bound = {
            "labels": torch.arange(N) // 2,
            "negative_text_features": _batch(3)[0][:, :5].requires_grad_(),
            "negative_image_features": _batch(4)[0][:, 1:].requires_grad_(),
        }
        loss = functools.partial(kind, **{key: bound[key] for key in keywords})
        terms = backward(towers, loss, *_batch(), chunk_size=chunk_size)
        negatives = [bound[key].grad for key in keywords if key != "labels"]
        assert all(gradient is not None for gradient in negatives)
        detached = {key: value.detach() for key, value in terms.items()}
        results.append((detached, negatives, _gradients(towers)))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-13)


class _WithHardTexts(nn.Module):
    """Towers whose text features are those of a caption and of a hard negative, side by side."""

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, images: Tensor, tokens: dict[str, Tensor]) -> tuple[Tensor, ...]:
        image_features, text_features, *temperature = self.towers(images, tokens["own"])
        hard = self.towers.text(tokens["hard"])
        return image_features, torch.cat([text_features, hard], dim=1), *temperature


def test_hard_negatives_are_encoded_in_chunks() -> None:
    def loss(x: Tensor, both: Tensor, *temperature: Tensor, output_dict: bool) -> dict[str, Tensor]:
        own, hard = both.chunk(2, dim=1)
        more = {"output_dict": output_dict, "negative_text_features": hard}
        terms: dict[str, Tensor] = CLIPLoss()(x, own, *temperature, **more)
        return terms

    images, tokens = _batch()
    tokens = {"own": tokens, "hard": tokens.flip(0)}
    plain, cached = _WithHardTexts(_towers()), _WithHardTexts(_towers())
    loss(*plain(images, tokens), output_dict=True)["contrastive_loss"].backward()
    cached_backward(cached, loss, images, tokens, chunk_size=5)
    _assert_same(cached, plain)


def test_every_gradient_is_complete_only_in_the_last_chunk() -> None:
    """Hooks on gradients, such as DDP's, must see the temperature's once."""
    towers = _towers()
    touched: list[str] = []
    for name, parameter in towers.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: touched.append(name))
    cached_backward(towers, SigLIPLoss(), *_batch(), chunk_size=5)
    assert touched.count("logit_scale") == touched.count("logit_bias") == 1
    names = {name for name, _ in towers.named_parameters()}
    assert set(touched[-len(names) :]) == names


FROZEN = ["image", "text", "logit_scale", "logit_bias", "image|image_projection|text|logit_bias"]


@pytest.mark.parametrize("chunk_size", [5, N])
@pytest.mark.parametrize("frozen", FROZEN)
def test_frozen_parts_get_no_gradient(frozen: str, chunk_size: int) -> None:
    needed = []

    class Recorded(SigLIPLoss):
        def forward(self, *outputs: Any, **options: Any) -> Any:
            needed.append([output.requires_grad for output in outputs])
            return super().forward(*outputs, **options)

    plain, cached = _towers(), _towers()
    for towers in plain, cached:
        for name, parameter in towers.named_parameters():
            if name.split(".")[0] in frozen.split("|"):
                parameter.requires_grad_(False)
    _plain_backward(plain, Recorded(), *_batch())
    cached_backward(cached, Recorded(), *_batch(), chunk_size=chunk_size)
    _assert_same(cached, plain)
    assert needed[0] == needed[1]  # the loss computes no other gradients


class _ImagesOnly(nn.Module):
    def forward(self, x: Tensor, y: Tensor, *_: Tensor, output_dict: bool) -> dict[str, Tensor]:
        return {"some_loss": (x - x.mean(0)).square().sum(), "other": x.sum()}


def test_unused_outputs_get_no_gradient() -> None:
    """Entries of the dictionary that are not losses do not count either."""
    plain, cached = _towers(), _towers()
    _plain_backward(plain, _ImagesOnly(), *_batch())
    cached_backward(cached, _ImagesOnly(), *_batch(), chunk_size=5)
    _assert_same(cached, plain)
    assert cached.logit_scale.grad is None


class _Drawing(CyCLIPLoss):
    def forward(self, x: Tensor, *others: Tensor, output_dict: bool) -> dict[str, Tensor]:
        noise = 0.01 * torch.randn_like(x)
        return super().forward(x + noise, *others, output_dict=output_dict)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_dropout_is_replayed(checkpointed: bool) -> None:
    """Otherwise the gradient belongs to features that the loss has not seen."""
    plain, cached = _towers(dropout=0.5), _towers(dropout=0.5, checkpointed=checkpointed)
    seen = []
    cached.register_forward_hook(lambda *call: seen.append(call[-1][0].detach()))
    torch.manual_seed(2)
    _plain_backward(plain, _Drawing(), *_batch(), chunk_size=5)
    after = torch.get_rng_state()
    torch.manual_seed(2)
    cached_backward(cached, _Drawing(), *_batch(), chunk_size=5)
    assert len(seen) == 6
    for first, second in zip(seen[:3], seen[3:], strict=True):
        assert torch.equal(first, second)
    _assert_same(cached, plain)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_towers_run_under_autocast_and_the_loss_does_not(checkpointed: bool) -> None:
    plain = _towers(torch.float32)
    cached = _towers(torch.float32, checkpointed=checkpointed)
    batch = _batch(dtype=torch.float32)
    autocast = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
    # Of two chunks, whose gradients add up to the same bits in either order.
    expected = _plain_backward(plain, CLIPLoss(), *batch, chunk_size=7, autocast=autocast)
    terms = cached_backward(cached, CLIPLoss(), *batch, chunk_size=7, autocast=autocast)
    _assert_same(cached, plain, rtol=0, atol=0)
    assert torch.equal(terms["contrastive_loss"], expected["contrastive_loss"])
    float32 = _plain_backward(_towers(torch.float32), CLIPLoss(), *batch)
    assert terms["contrastive_loss"] != float32["contrastive_loss"]


def test_autocast_of_the_caller_keeps_gradients() -> None:
    """Weights that were cast in the pass without a graph would have none."""
    batch = _batch(dtype=torch.float32)
    plain, cached = _towers(torch.float32), _towers(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        _plain_backward(plain, CLIPLoss(), *batch, chunk_size=7)
        cached_backward(cached, CLIPLoss(), *batch, chunk_size=7)
    _assert_same(cached, plain, rtol=1e-2, atol=1e-4)


def test_scale_applies_once_to_all_gradients() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for scale, factor in (scaler.scale, 2.0**10), (lambda total: total / 4, 0.25):
        for chunk_size in 5, N:
            plain, cached = _towers(), _towers()
            _plain_backward(plain, CyCLIPLoss(), *_batch(), scale=lambda t, f=factor: t * f)
            terms = cached_backward(
                cached, CyCLIPLoss(), *_batch(), chunk_size=chunk_size, scale=scale
            )
            _assert_same(cached, plain, rtol=1e-12, atol=1e-10)
            unscaled = cached_backward(_towers(), CyCLIPLoss(), *_batch(), chunk_size=5)
            torch.testing.assert_close(terms, unscaled, rtol=1e-12, atol=0)


@pytest.mark.parametrize("chunk_size", [5, N])
def test_check_comes_before_any_gradient(chunk_size: int) -> None:
    images, tokens = _batch()
    images[3] = torch.nan
    towers = _towers()
    seen = []

    def check(terms: dict[str, Tensor]) -> None:
        seen.append(terms)
        if not all(term.isfinite() for term in terms.values()):
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        cached_backward(towers, CLIPLoss(), images, tokens, chunk_size=chunk_size, check=check)
    assert set(seen[0]) == {"contrastive_loss"}
    assert all(gradient is None for gradient in _gradients(towers).values())
    cached_backward(towers, CLIPLoss(), *_batch(), chunk_size=chunk_size, check=check)
    assert towers.logit_scale.grad.isfinite()


NORMS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm1d": lambda: nn.BatchNorm1d(8),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(8),
    "GroupBatchNorm": lambda: GroupBatchNorm(nn.BatchNorm1d(8), None),
    "InstanceNorm1d": lambda: nn.InstanceNorm1d(8, track_running_stats=True),
}


@pytest.mark.parametrize("kind", NORMS)
def test_batch_norm_raises(kind: str) -> None:
    """Each chunk would be normalized by itself: the gradient of another model."""
    towers = _towers(norm=NORMS[kind]())
    with pytest.raises(ValueError, match=rf"image\.1 \({kind}\) would see chunks of 5 of the 13"):
        cached_backward(towers, CLIPLoss(), *_batch(), chunk_size=5)
    assert towers.image[1].num_batches_tracked == 0


def test_norms_that_do_not_learn_from_the_batch_are_accepted() -> None:
    for norm in nn.BatchNorm1d(8), nn.GroupNorm(2, 8):
        plain, cached = _towers(norm=norm).eval(), _towers().eval()
        cached.image[1] = copy.deepcopy(norm)
        _plain_backward(plain, CLIPLoss(), *_batch())
        cached_backward(cached, CLIPLoss(), *_batch(), chunk_size=5)
        _assert_same(cached, plain)
    towers = _towers(norm=nn.BatchNorm1d(8, track_running_stats=False)).eval()
    with pytest.raises(ValueError, match=r"image\.1"):
        cached_backward(towers, CLIPLoss(), *_batch(), chunk_size=5)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_per_chunk_statistics_move_once(checkpointed: bool, momentum: float | None) -> None:
    plain = _towers(norm=nn.BatchNorm1d(8, momentum=momentum))
    cached = _towers(norm=nn.BatchNorm1d(8, momentum=momentum), checkpointed=checkpointed)
    _plain_backward(plain, CLIPLoss(), *_batch(), chunk_size=5)
    cached_backward(cached, CLIPLoss(), *_batch(), chunk_size=5, per_chunk_statistics=True)
    _assert_same(cached, plain)
    assert plain.image[1].num_batches_tracked == 3
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(cached.get_buffer(name), buffer, rtol=1e-12, atol=0)


def test_batch_norm_is_accepted_for_a_single_chunk() -> None:
    plain, cached = (_towers(norm=nn.BatchNorm1d(8)) for _ in range(2))
    _plain_backward(plain, CLIPLoss(), *_batch())
    cached_backward(cached, CLIPLoss(), *_batch(), chunk_size=N)
    _assert_same(cached, plain)
    assert torch.equal(cached.image[1].running_var, plain.image[1].running_var)


def _most_saved_bytes(work: Callable[[], object]) -> int:
    """Return the most that autograd keeps at any time for the backward pass."""
    alive = most = 0

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor.detach()  # an output that is saved would keep its own graph

    def freed(count: int) -> None:
        nonlocal alive
        alive -= count

    def pack(tensor: Tensor) -> Kept:
        nonlocal alive, most
        alive += tensor.nbytes
        most = max(most, alive)
        kept = Kept(tensor)
        weakref.finalize(kept, freed, tensor.nbytes)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        work()
    assert alive == 0
    return most


@pytest.mark.parametrize("frozen", [None, "text"])
def test_activations_of_one_chunk_at_a_time(frozen: str | None) -> None:
    batch = _batch(512)

    def saved(rows: int, chunk_size: int) -> int:
        towers = _towers(width=64)
        if frozen:
            getattr(towers, frozen).requires_grad_(False)
        part = [tensor[:rows] for tensor in batch]
        return _most_saved_bytes(
            lambda: cached_backward(towers, _ImagesOnly(), *part, chunk_size=chunk_size)
        )

    one_chunk, plain, cached = saved(64, 64), saved(512, 512), saved(512, 64)
    features = 512 * 5 * 8
    assert cached <= one_chunk + 2 * features
    assert cached < plain / 4


def test_bad_arguments_raise() -> None:
    towers, (images, tokens) = _towers(), _batch()
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        cached_backward(towers, CLIPLoss(), images, tokens, chunk_size=0)
    with pytest.raises(ValueError, match="13 in images, 12 in tokens"):
        cached_backward(towers, CLIPLoss(), images, tokens[:-1], chunk_size=5)
    uneven = {"a": tokens, "b": tokens[:4]}
    with pytest.raises(ValueError, match=r"13 in images, 13 in tokens\['a'\], 4 in tokens\['b'\]"):
        cached_backward(towers, CLIPLoss(), images, uneven, chunk_size=5)
    for unsplittable in "text", torch.tensor(3.0), ["a caption"] * N:
        with pytest.raises(TypeError, match=r"tokens.*must be a tensor"):
            cached_backward(towers, CLIPLoss(), images, unsplittable, chunk_size=5)
    with pytest.raises(TypeError, match=r"must be an nn\.Module, got function"):
        cached_backward(lambda *batch: towers(*batch), CLIPLoss(), images, tokens, chunk_size=5)


def _on_rank(
    rank: int, name: str, rows: list[int], norm: bool
) -> tuple[dict[str, Tensor], int, int]:
    """Return the gradients, and how many values DDP has averaged, of how many parameters."""
    towers = _towers(norm=nn.BatchNorm1d(8) if norm else None)
    ddp = DistributedDataParallel(towers)
    averaged = 0

    def average(_, bucket):  # DDP compares annotations, and cannot read those that are strings
        nonlocal averaged
        averaged += bucket.buffer().numel()
        bucket.buffer().div_(len(rows))
        future = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
        return future.then(lambda done: done.value()[0])

    ddp.register_comm_hook(None, average)
    own = [tensor.split(rows)[rank] for tensor in _batch()]
    loss = GROUP_LOSSES[name](dist.group.WORLD)
    for _ in range(2):
        towers.zero_grad()
        cached_backward(ddp, loss, *own, chunk_size=3, per_chunk_statistics=norm)
    parameters = sum(p.numel() for p in towers.parameters() if p.grad is not None)
    return _gradients(towers), averaged, parameters


GROUP_LOSSES: dict[str, Callable[[Any], nn.Module]] = {
    "siglip": lambda group: SigLIPLoss(group=group),
    "cyclip": lambda group: CyCLIPLoss(margin=0.1, hinge=0.3, group=group),
    "ring": lambda group: SigLIPLoss(group=group, exchange="ring"),
}


two_ranks = pytest.mark.parametrize("world", [2], indirect=True)


@two_ranks
@pytest.mark.parametrize("rows", [[6, 7], [4, 9], [8, 5]])
@pytest.mark.parametrize("name", GROUP_LOSSES)
def test_ddp_averages_once_in_the_last_chunk(name: str, rows: list[int], world: World) -> None:
    plain = _towers()
    _plain_backward(plain, GROUP_LOSSES[name](None), *_batch())
    for gradients, averaged, parameters in world.results(_on_rank, name, rows, False):
        torch.testing.assert_close(gradients, _gradients(plain), rtol=1e-12, atol=1e-13)
        assert averaged == 2 * parameters


@two_ranks
def test_ddp_with_running_statistics_and_uneven_chunks(world: World) -> None:
    first, second = world.results(_on_rank, "siglip", [5, 8], True)
    torch.testing.assert_close(first[0], second[0], rtol=0, atol=0)
