"""One training of a study in a process of its own: `python -m cyclip_ext.studies.worker FOLDER`."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

from ..training.checkpoint import Checkpoints
from ..training.config import TrainConfig
from ..training.main import INTERRUPTED
from ..training.run import read_result, run_training
from ..training.sources import open_data
from .measure import measure
from .runs import MEASURES, OUTPUT, SETTINGS, write_measures


def main(folder: Path) -> int:
    """Train what the folder's settings say, from its last checkpoint on, and measure it.

    The weights are dropped then: a study has dozens of runs, and their numbers are what it is for.
    Once the standard input ends, for the study's process is gone, it saves its state and stops. A
    folder is one process's at a time: another waits.
    """
    threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    with (folder / OUTPUT).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return 0 if (folder / MEASURES).is_file() else _train_and_measure(folder)


def _stop_at_end_of_input() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _train_and_measure(folder: Path) -> int:
    config = TrainConfig.from_dict(json.loads((folder / SETTINGS).read_text()))
    data = open_data(config.data)
    if read_result(folder) is None:
        state = Checkpoints(folder).newest(print)
        if run_training(config, data, folder, state) is None:
            return INTERRUPTED
    measures = measure(folder, data)
    write_measures(folder, measures)
    shutil.rmtree(folder / "checkpoints")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
