"""Tests of the two devices themselves, on which the other tests rely."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from . import devices
from .cases import as_double, rectangle
from .devices import Cuda, Emulated
from .test_orders import OPERATORS, calls


@pytest.mark.native
@pytest.mark.parametrize("allow_tf32", [False, True])
@pytest.mark.parametrize("operator", OPERATORS)
def test_cuda_calls(operator: str, allow_tf32: bool) -> None:
    """Without a GPU, the CPU operators check the arguments, because their schemas are the same."""
    arguments = calls(9, 12, 4, torch.float32)[operator]
    with mock.patch.object(devices, "_to_cuda", lambda argument: argument):
        outputs = Cuda()(operator, *arguments, allow_tf32=allow_tf32, panel_bytes=0, large_tiles=1)
    returns = getattr(torch.ops.cyclip_ext, operator).default._schema.returns
    assert len(outputs) == sum(returned.name not in devices.STORED for returned in returns)
    assert all(not out.isnan().any() for out in outputs)


def test_wrong_arguments(emulated: Emulated) -> None:
    """The module of the emulated kernels raises for strides and types that it cannot read."""
    image, text = rectangle("random", 4, 4, 3, torch.float32)
    with pytest.raises(ValueError, match="unit column stride"):
        emulated("row_norms", image.T)
    with pytest.raises(ValueError, match="logit_scale must be dense"):
        emulated("pair_statistics", image, text, as_double(1.0).float(), 0)
