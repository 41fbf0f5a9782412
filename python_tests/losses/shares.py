"""One batch, computed by one process and by the ranks of a group: what tests compare.

`Case` says what; `whole` computes it here, `share` is what a rank of ranks.World runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cyclip_ext import CyCLIPLoss

from .inputs import FUNCTIONS, MODULES, make_features

# (image_features, text_features, logit_scale, logit_bias, **options) -> loss
LOSSES: dict[str, Callable[..., Tensor]] = {
    **{name: FUNCTIONS[name] for name in ("contrastive", "margin", "hinge", "sigmoid")},
    "equal_cycle": FUNCTIONS["cycle"],
    "cycle": functools.partial(FUNCTIONS["cycle"], in_modal=0.3, cross_modal=0.2),
    **MODULES,
    "c_cyclip": lambda *a, **o: CyCLIPLoss(0.0, 0.5, **o)(*a),
    "i_cyclip": lambda *a, **o: CyCLIPLoss(0.5, 0.0, **o)(*a),
    "all": lambda *a, **o: CyCLIPLoss(0.3, 0.2, 0.1, 0.4, reduction="mean", **o)(*a),
}
PAIRWISE = ["contrastive", "hinge", "sigmoid", "all"]  # every way that features are exchanged


EXCHANGES = ["gather", "ring", "replicate"]
every_exchange = pytest.mark.parametrize("exchange", EXCHANGES)
needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo"
)


def worlds(*sizes: int) -> pytest.MarkDecorator:
    """Run a test with groups of these numbers of ranks."""
    return pytest.mark.parametrize("world", sizes, indirect=True)


def _alone(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of one process."""
    return {name: value for name, value in options.items() if name != "exchange"}


@dataclass(frozen=True)
class Case:
    """A loss of a batch, and how it is spread."""

    loss: str
    counts: tuple[int, ...]  # rows of each rank
    width: int = 5
    kind: str = "random"
    dtype: torch.dtype = torch.float64
    scale: float = 14.3
    bias: float = -5.0
    upstream: float = 1.0
    frozen: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)  # backend, exchange


def features(case: Case) -> tuple[Tensor, Tensor]:
    return make_features(case.kind, sum(case.counts), case.width, dtype=case.dtype)


def rows_of(rank: int, case: Case) -> slice:
    start = sum(case.counts[:rank])
    return slice(start, start + case.counts[rank])


# ------------------------------------------------- with respect to features


def whole(case: Case) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Return the loss and its gradients, by one process."""
    options = _alone(case.options)
    return loss_and_gradients(case, *features(case), options)


def share(
    rank: int, case: Case, members: tuple[int, ...] | None = None
) -> tuple[Tensor, dict[str, Tensor | None]] | None:
    """Return the same by a rank, of its own rows; `members`: a group of some ranks."""
    group = dist.group.WORLD
    if members is not None:
        group = dist.new_group(members)
        if rank not in members:
            return None
    rows = rows_of(dist.get_rank(group), case)
    image, text = features(case)
    return loss_and_gradients(case, image[rows], text[rows], {**case.options, "group": group})


def loss_and_gradients(
    case: Case, image: Tensor, text: Tensor, options: dict[str, Any]
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Return the loss, and the gradients of copies of the features, the scale and the bias."""
    dtype = torch.float64 if case.dtype == torch.float64 else torch.float32
    leaves = {
        "image": image.clone(),
        "text": text.clone(),
        "scale": torch.tensor(case.scale, dtype=dtype),
        "bias": torch.tensor(case.bias, dtype=dtype),
    }
    for name, leaf in leaves.items():
        leaf.requires_grad_(name not in case.frozen)
    loss = LOSSES[case.loss](*leaves.values(), **options)
    if loss.requires_grad:
        loss.backward(torch.tensor(case.upstream, dtype=loss.dtype))
    return loss.detach(), {name: leaf.grad for name, leaf in leaves.items()}


# ------------------------------------------------- with respect to a model's parameters


class TwoTowers(nn.Module):
    """A model as DistributedDataParallel wraps it: towers, temperature and bias."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = (nn.Linear(case.width, case.width).to(case.dtype) for _ in range(2))
        self.log_scale = nn.Parameter(torch.tensor(case.scale, dtype=case.dtype).log())
        self.bias = nn.Parameter(torch.tensor(case.bias, dtype=case.dtype))
        for name in case.frozen:
            getattr(self, name).requires_grad_(False)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        return self.image(image), self.text(text).tanh(), self.log_scale.exp(), self.bias


def whole_model(case: Case) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Return the loss and every parameter's gradient, by one process."""
    model = TwoTowers(case)
    return _train(case, model, model, *features(case), _alone(case.options))


def share_of_model(rank: int, case: Case) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Return the same by a rank, after the averaging of DistributedDataParallel."""
    rows = rows_of(rank, case)
    image, text = features(case)
    model = TwoTowers(case)
    options = {**case.options, "group": dist.group.WORLD}
    return _train(case, DistributedDataParallel(model), model, image[rows], text[rows], options)


def _train(
    case: Case, call: nn.Module, model: TwoTowers, image: Tensor, text: Tensor, options: dict
) -> tuple[Tensor, dict[str, Tensor | None]]:
    outputs = call(image, text)
    loss = LOSSES[case.loss](*outputs, **options)
    # DistributedDataParallel waits for the gradient of every parameter, also of one that this loss
    # does not look at.
    (loss + 0 * sum(out.sum() for out in outputs)).backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}
