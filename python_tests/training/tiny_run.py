"""Training with the tiny model as a program, for tests that start and kill it.

    python -m training.tiny_run --train-data shapes ...      (python_tests on the path)

The model called "dropout" draws random numbers, which a resumed run must draw again.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from torch import nn

from cyclip_ext.models import CreatedModel, TokenizerName
from cyclip_ext.training import run
from cyclip_ext.training.__main__ import main

from .parts import create_tiny

TESTS = Path(__file__).parents[1]


def create(
    name: str, *, sigmoid: bool = False, tokenizer: TokenizerName | None = None
) -> CreatedModel:
    """Create the tiny model; "dropout" drops a tenth of its image features."""
    created = create_tiny(name, sigmoid=sigmoid, tokenizer=tokenizer)
    if name == "dropout":
        visual: nn.Module = created.model.visual  # type: ignore[assignment]
        visual.projection = nn.Sequential(nn.Dropout(0.1), visual.projection)
    return created


def start(words: list[str], ranks: int = 1) -> list[subprocess.Popen[str]]:
    """Start the processes of a run as torchrun would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(ranks):
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in places.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "training.tiny_run", *words],
                cwd=TESTS,  # which `python -m` puts first on the import path
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return processes


def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Wait for the processes, which must succeed, and return their output."""
    shown = [process.communicate(timeout=300)[0] for process in processes]
    for process, text in zip(processes, shown, strict=True):
        assert process.returncode == 0, text
    return shown


if __name__ == "__main__":
    run.create_model = create
    sys.exit(main())
