"""Fixtures of the loss tests: backends, the losses by name, threads, ranks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from .inputs import FUNCTIONS
from .ranks import World


@pytest.fixture(
    scope="session",
    params=["reference", pytest.param("native", marks=pytest.mark.native)],
)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn."""
    name: str = request.param
    return name


@pytest.fixture(scope="session", params=FUNCTIONS)
def loss_name(request: pytest.FixtureRequest) -> str:
    """Each loss function in turn."""
    name: str = request.param
    return name


@pytest.fixture
def loss(loss_name: str, backend: str) -> Callable[..., Tensor]:
    """Each loss function with each backend: loss(image, text, scale=1.0, bias=-5.0)."""
    return functools.partial(FUNCTIONS[loss_name], backend=backend)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """Restore the number of threads after the test."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Start that many ranks of a gloo group; parametrize it indirectly."""
    with World(request.param) as ranks:
        yield ranks
