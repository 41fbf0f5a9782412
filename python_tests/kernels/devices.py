"""An operator call on a device: the arguments of its schema, CPU tensors in and out.

A device is called `device(operator, *arguments)` and returns the operator's outputs as a tuple.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

Device = Callable[..., tuple[Tensor, ...]]

# numpy lacks bfloat16, so 16-bit features are passed as their bits.
_BITS = {torch.bfloat16: torch.uint16, torch.float16: torch.uint16}


# Runs 16-bit features on the engine for compute capability 9.0a, in this number of blocks.
HOPPER_BLOCKS = int(os.environ.get("CYCLIP_EMULATE_HOPPER_BLOCKS", "0"))

# The order of threads, such as "RANDOM 1", unless a test sets it; the seed also delays bulk copies.
ORDER = os.environ.get("CYCLIP_EMULATE_ORDER", "ASCENDING 0").split()

# Forces 128 x 128 tiles for the small problems of these tests, unless a test sets the limit itself.
_FORCED = os.environ.get("CYCLIP_EMULATE_LARGE_TILES")  # "2": pairs of them for 16-bit features
LARGE_TILES = 0 if _FORCED in ("1", "2") or HOPPER_BLOCKS else None
TILE_PAIRS = 0 if _FORCED == "2" else None


class Emulated:
    """The operators executed by csrc/emulation; `order` is the order of the threads."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def __call__(
        self,
        operator: str,
        *arguments: Any,
        allow_tf32: bool = False,
        panel_bytes: int | None = None,
        large_tiles: int | None = LARGE_TILES,
        tile_pairs: int | None = TILE_PAIRS,
        needs_hardest: bool = True,
        float64_is_slow: bool = False,
        row_labels: Tensor | None = None,
        col_labels: Tensor | None = None,
        same_are_positives: bool = False,
        hopper_blocks: int = HOPPER_BLOCKS,
        order: tuple[str, int] = (ORDER[0], int(ORDER[1])),
    ) -> tuple[Tensor, ...]:
        dtype = arguments[0].dtype
        options = self.module.Options(
            str(dtype).removeprefix("torch."),
            *(allow_tf32, panel_bytes, large_tiles, tile_pairs, needs_hardest, float64_is_slow),
            *(_to_numpy(row_labels), _to_numpy(col_labels), same_are_positives, hopper_blocks),
        )
        name, seed = order
        self.module.set_order(self.module.Order[name], seed)
        results = getattr(self.module, operator)(*map(_to_numpy, arguments), options)
        results = results if isinstance(results, tuple) else (results,)
        return tuple(_from_numpy(result, dtype) for result in results)


# What operators store for the backward pass on a CPU: empty on a GPU, and absent from the emulator.
STORED = "dots", "products"


class Cuda:
    """torch.ops.cyclip_ext on the GPU, which chooses the order, the panels and the tiles itself."""

    def __call__(
        self,
        operator: str,
        *arguments: Any,
        allow_tf32: bool = False,
        needs_hardest: bool = True,
        row_labels: Tensor | None = None,
        col_labels: Tensor | None = None,
        same_are_positives: bool = False,
        **_: Any,
    ) -> tuple[Tensor, ...]:
        call = getattr(torch.ops.cyclip_ext, operator).default
        takes = [argument.name for argument in call._schema.arguments]
        for place, name in enumerate(takes):
            if name in STORED:
                arguments = (*arguments[:place], torch.empty(0, 0), *arguments[place:])
        given = {
            "allow_tf32": allow_tf32,
            "allow_bf16": False,
            "needs_hardest": needs_hardest,
            "row_labels": _to_cuda(row_labels),
            "col_labels": _to_cuda(col_labels),
            "same_are_positives": same_are_positives,
        }
        options = {name: value for name, value in given.items() if name in takes}
        results = call(*map(_to_cuda, arguments), **options)
        results = results if isinstance(results, (tuple, list)) else (results,)
        named = zip(call._schema.returns, results, strict=True)
        return tuple(result.cpu() for returned, result in named if returned.name not in STORED)


def _to_numpy(argument: Any) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    argument = argument.detach()
    return argument.view(_BITS.get(argument.dtype, argument.dtype)).numpy()


def _from_numpy(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.view(dtype) if tensor.dtype == torch.uint16 else tensor


def _to_cuda(argument: Any) -> Any:
    """Copy the whole storage, so that pitch, alignment and surrounding memory stay the same."""
    if not isinstance(argument, Tensor):
        return argument
    storage = torch.empty(0, dtype=argument.dtype).set_(argument.detach().untyped_storage())
    return storage.cuda().as_strided(argument.shape, argument.stride(), argument.storage_offset())
