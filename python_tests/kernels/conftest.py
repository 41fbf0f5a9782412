"""The fixture `device`: every test of a kernel runs on each device."""

from __future__ import annotations

import pytest
import torch

import cyclip_ext

from .devices import Cuda, Device, Emulated
from .emulation import emulation

EMULATED, CUDA = "emulated", "cuda"


@pytest.fixture(params=[EMULATED, CUDA])
def device(request: pytest.FixtureRequest) -> Device:
    if request.param == EMULATED:
        return Emulated(emulation())
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    status = cyclip_ext.libraries.backend_status()["cuda"]
    if not status.loaded:
        pytest.skip(f"no CUDA operators: {status.reason}")
    if reason := cyclip_ext.libraries.why_not_on_gpu(torch.cuda.current_device()):
        pytest.skip(reason)
    return Cuda()


@pytest.fixture
def emulated() -> Emulated:
    """Return the emulator, for tests of thread orders and memory that no GPU can run."""
    return Emulated(emulation())
