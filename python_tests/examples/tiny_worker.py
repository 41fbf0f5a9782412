"""The worker with the tiny model: `python -m examples.tiny_worker FOLDER` in python_tests.

A run with a learning rate of 666 ends with an error instead.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from reproduction import worker
from training.parts import create_tiny

from cyclip_ext.models import trained
from cyclip_ext.training import run

if __name__ == "__main__":
    run.create_model = create_tiny
    trained.create_model = create_tiny
    folder = Path(sys.argv[1])
    if json.loads((folder / "study.json").read_text())["config"]["optim"]["lr"] == 666:
        raise SystemExit("the number of the beast")
    sys.exit(worker.main(folder))
