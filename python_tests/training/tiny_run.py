"""The job with the tiny model, as a program: what tests start, kill and start again.

    python -m training.tiny_run --train-data shapes ...      (python_tests on the path)

Of the model called "dropout" a resumed run must draw what the killed one would have drawn.
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
    """The tiny model; as "dropout" a tenth of its picture features are dropped."""
    created = create_tiny(name, sigmoid=sigmoid, tokenizer=tokenizer)
    if name == "dropout":
        visual: nn.Module = created.model.visual  # type: ignore[assignment]
        visual.projection = nn.Sequential(nn.Dropout(0.1), visual.projection)
    return created


def start(words: list[str], ranks: int = 1) -> list[subprocess.Popen[str]]:
    """The processes of a run, as torchrun would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(ranks):
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in places.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "training.tiny_run", *words],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return processes


def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    """What the processes printed; every one must have ended well."""
    shown = [process.communicate(timeout=300)[0] for process in processes]
    for process, text in zip(processes, shown, strict=True):
        assert process.returncode == 0, text
    return shown


if __name__ == "__main__":
    run.create_model = create
    sys.exit(main())
