"""Tests that run inside other packages; a file is skipped if its package is not installed.

`.ci/run` installs all of them, in an environment of its own (the extra `integrations`).
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from losses.ranks import World

os.environ["HF_HUB_OFFLINE"] = "1"  # models and tokenizers here are made, not downloaded


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """Start two ranks of a gloo group, with the environment variables that torchrun sets."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        environment = {
            **dict.fromkeys(("RANK", "LOCAL_RANK"), "{rank}"),
            **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2"),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(probe.getsockname()[1]),
        }
        with World(2, environment) as ranks:
            yield ranks


@pytest.fixture
def run_documented() -> Callable[..., dict[str, Any]]:
    """Run the Python blocks of a section of docs/integrations.md with the given variables."""
    page = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text(encoding="utf-8")

    def run(title: str, **values: Any) -> dict[str, Any]:
        section = page.split(f"\n## {title}\n")[1].split("\n## ")[0]
        for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
            exec(block, values)
        return values

    return run
