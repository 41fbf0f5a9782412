"""The first exchange of a loss, in which the ranks of a group compare their arguments.

If one rank sends data that another does not expect, collectives hang or mix up bytes. Each loss
therefore begins with a small all-gather of the number of rows, their width and dtype, the arguments
given, and whether the rank's arguments are valid. All ranks then compute or raise together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from .._torch_compat import disable_compile, in_function_transform

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Exchange = Literal["gather", "ring", "replicate"]
Arguments = dict[str, Tensor | None]

_ARGUMENTS = (
    "image_features",
    "text_features",
    "logit_scale",
    "logit_bias",
    "negative_text_features",
    "negative_image_features",
    "labels",
)
_BIAS = 1 << _ARGUMENTS.index("logit_bias")
_DTYPES = torch.float32, torch.float64, torch.bfloat16, torch.float16


@dataclass(frozen=True)
class Batch:
    """Division of a batch among the ranks of a group: `counts[r]` rows on rank r, in order."""

    group: ProcessGroup
    exchange: Exchange
    rank: int  # this process within the group
    counts: tuple[int, ...]
    negative_texts: tuple[int, ...] = ()
    negative_images: tuple[int, ...] = ()

    @property
    def ranks(self) -> int:
        return len(self.counts)

    @property
    def rows(self) -> int:
        return sum(self.counts)

    def start(self, rank: int) -> int:
        """Return the index of the first row of a rank in the whole batch."""
        return sum(self.counts[:rank])


@dataclass(frozen=True)
class _Message:
    """Message of one rank about its arguments; if `accepted` is 0, the other fields are unused."""

    accepted: int = 0
    rows: int = 0
    width: int = 0
    dtype: int = 0
    exchange: int = 0
    given: int = 0  # bit k: argument k is there
    derivatives: int = 0  # bit k: argument k requires grad
    negative_texts: int = 0
    negative_images: int = 0

    @classmethod
    def about(cls, arguments: Mapping[str, Tensor | None], exchange: Exchange) -> _Message:
        def bits(holds: Callable[[Tensor], bool]) -> int:
            tensors = [arguments[name] for name in _ARGUMENTS]
            return sum((t is not None and holds(t)) << k for k, t in enumerate(tensors))

        def rows(name: str) -> int:
            tensor = arguments[name]
            return 0 if tensor is None else tensor.shape[0]

        image = arguments["image_features"]
        assert image is not None
        return cls(
            accepted=1,
            rows=image.shape[0],
            width=image.shape[1],
            dtype=_DTYPES.index(image.dtype),
            exchange=get_args(Exchange).index(exchange),
            given=bits(lambda tensor: True) & ~_BIAS,  # a softmax loss may have one on some ranks
            derivatives=bits(lambda tensor: torch.is_grad_enabled() and tensor.requires_grad),
            negative_texts=rows("negative_text_features"),
            negative_images=rows("negative_image_features"),
        )


@disable_compile
def agree(
    check: Callable[[], Arguments], group: ProcessGroup, exchange: Exchange
) -> tuple[Arguments, Batch]:
    """Return the arguments of a loss as `check` returns them, by name, and the Batch.

    Raises: on this rank the error of `check`, or RuntimeError in a transform of torch.func, and on
    all others a RuntimeError that names this rank; ValueError on all ranks if their arguments do
    not fit together.
    """
    try:
        if in_function_transform():
            raise RuntimeError(
                f"a loss over the {dist.get_world_size(group)} ranks of its group cannot be "
                'transformed by torch.func; use torch.autograd.grad, or group="local"'
            )
        arguments = check()
    except Exception:
        _exchange(_Message(), group, None)
        raise
    image = arguments["image_features"]
    assert image is not None
    messages = _exchange(_Message.about(arguments, exchange), group, image.device)
    _check_messages(messages)
    return arguments, Batch(
        group,
        exchange,
        dist.get_rank(group),
        tuple(message.rows for message in messages),
        tuple(message.negative_texts for message in messages),
        tuple(message.negative_images for message in messages),
    )


def check_group(group: object) -> None:
    """Raise unless `group` is a process group that this process belongs to."""
    if not dist.is_available():
        raise RuntimeError(
            'group must be "local" or None: this torch is built without torch.distributed'
        )
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            "group must contain this process, got NON_GROUP_MEMBER, which new_group returns to "
            "those outside; call the loss on the members alone"
        )
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            'group must be "world", "local", a torch.distributed.ProcessGroup, a DeviceMesh or '
            f"None, got {group!r} ({type(group).__name__})"
        )
    if dist.get_rank(group) < 0:
        members = dist.get_process_group_ranks(group)
        raise ValueError(f"group must contain this process, got one of ranks {members}")


def _exchange(
    message: _Message, group: ProcessGroup, device: torch.device | None
) -> list[_Message]:
    """Gather the messages, through the host if the group can, to avoid waiting for a GPU."""
    if "cpu:" in dist.get_backend_config(group):
        device = torch.device("cpu")
    elif device is None:
        device = torch.accelerator.current_accelerator()
    mine = torch.tensor(list(vars(message).values()), device=device)
    all_of_them = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(all_of_them, mine, group=group)
    return [_Message(*row) for row in torch.stack(all_of_them).tolist()]


def _check_messages(messages: list[_Message]) -> None:
    invalid = [rank for rank, message in enumerate(messages) if not message.accepted]
    if invalid:
        raise RuntimeError(
            f"rank {', '.join(map(str, invalid))} of the group got invalid arguments, so this rank "
            "cannot compute the loss either; correct the error that was raised there"
        )
    features = "image_features and text_features"
    _check_equal(f"{features} must have one width d on all ranks", [m.width for m in messages])
    _check_equal(
        f"{features} must have one dtype on all ranks", [_DTYPES[m.dtype] for m in messages]
    )
    exchanges = get_args(Exchange)
    _check_equal(
        "exchange must be the same on all ranks", [exchanges[m.exchange] for m in messages]
    )
    for k, name in enumerate(_ARGUMENTS):
        given = [bool(message.given >> k & 1) for message in messages]
        _check_equal(f"{name} must be given on all ranks or on none", given)
        wanted = [bool(message.derivatives >> k & 1) for message in messages]
        _check_equal(f"{name} must require grad on all ranks or on none", wanted)


def _check_equal(rule: str, values: list[Any]) -> None:
    if any(value != values[0] for value in values):
        got = ", ".join(f"{value} on rank {rank}" for rank, value in enumerate(values))
        raise ValueError(f"{rule}, got {got}")
