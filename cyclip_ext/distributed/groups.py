"""Lookup of the processes that share a batch, at each call, because a loss may outlive a group."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch.distributed as dist

from .._torch_compat import constant_when_compiled, disable_compile, process_group_named
from .batch import check_group

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

    Group = Literal["world", "local"] | ProcessGroup | DeviceMesh


@dataclass(frozen=True)
class SavedGroup:
    """A process group in a form that can be pickled."""

    name: str
    ranks: tuple[int, ...]

    def find(self) -> ProcessGroup:
        """Return this process's group of that name.

        Raises RuntimeError if it does not exist.
        """
        group = process_group_named(self.name) if _is_initialized() else None
        if group is None or tuple(dist.get_process_group_ranks(group)) != self.ranks:
            raise RuntimeError(
                f"group: this loss was saved with process group {self.name!r} of ranks "
                f"{list(self.ranks)}, which this process does not have; construct the loss again "
                'with group= a group of this run, or with group="world"'
            )
        return group


def resolve(group: Group | SavedGroup | None) -> ProcessGroup | None:
    """Return the process group that shares the batch now, or None for this process alone.

    Raises: TypeError for another type, ValueError for a group without this process.
    """
    if group is None:
        _warn_if_there_are_other_ranks()
        return None
    if not isinstance(group, str):
        return _look_up(group)
    check(group)
    return dist.group.WORLD if group == "world" and _is_initialized() else None


@disable_compile
def _look_up(group: ProcessGroup | DeviceMesh | SavedGroup) -> ProcessGroup:
    check(group)
    return group.find() if isinstance(group, SavedGroup) else _process_group(group)


def check(group: Group | SavedGroup | None) -> None:
    """Raise TypeError for another type, ValueError for a group without this process."""
    if not (group is None or isinstance(group, SavedGroup) or group in ("world", "local")):
        check_group(_process_group(group))


def saved(group: Group | SavedGroup | None) -> Literal["world", "local"] | SavedGroup | None:
    """Return a form of the group that can be pickled and resolved by another process."""
    if group is None or isinstance(group, (str, SavedGroup)):
        return group
    members = _process_group(group)
    if members is dist.group.WORLD:
        return "world"
    return SavedGroup(members.group_name, tuple(dist.get_process_group_ranks(members)))


def _process_group(group: Any) -> ProcessGroup:
    """Return the process group of a DeviceMesh, and anything else as it is."""
    if not hasattr(group, "get_group"):  # importing DeviceMesh would import much more
        members: ProcessGroup = group
    elif group.ndim == 1:
        members = group.get_group()
    else:
        raise ValueError(
            f"group must be a DeviceMesh of one dimension, got one of {group.ndim} with names "
            f'{group.mesh_dim_names}; pass one of them, as in group=mesh["dp"]'
        )
    return members


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


@constant_when_compiled
def _warn_if_there_are_other_ranks() -> None:
    if _is_initialized() and dist.get_world_size() > 1:
        _warn_once()


@functools.cache
def _warn_once() -> None:
    warnings.warn(
        f"torch.distributed has {dist.get_world_size()} ranks, but a loss of cyclip_ext was called "
        'without a group: each rank trains on its own pairs alone. Pass group="world" for the loss '
        'of all pairs, or group="local" if this is intended',
        stacklevel=2,
    )
