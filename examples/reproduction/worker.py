"""One training of a study in a process of its own: `python -m reproduction.worker FOLDER`."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sys
import threading
from functools import partial
from pathlib import Path

from cyclip_ext.training.__main__ import INTERRUPTED
from cyclip_ext.training.data import open_data
from cyclip_ext.training.folder import newest_state, read_result
from cyclip_ext.training.run import run_training

from .ablations import make_ablation
from .measure import measure
from .runs import MEASURES, OUTPUT, SETTINGS, Method, write_measures


def main(folder: Path) -> int:
    """Train with the folder's settings, from its last checkpoint on, and measure.

    The weights are deleted afterwards: a study has dozens of runs and uses only their numbers. When
    the standard input is closed, because the study's process has ended, the training saves its
    state and stops. Only one process at a time uses a folder; another one waits.
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
    method = Method.from_dict(json.loads((folder / SETTINGS).read_text()))
    data = open_data(method.config.data)
    if read_result(folder) is None:
        objective = partial(make_ablation, method.ablation)
        state = newest_state(folder)
        if run_training(method.config, data, folder, state, objective=objective) is None:
            return INTERRUPTED
    write_measures(folder, measure(folder, data))
    shutil.rmtree(folder / "checkpoints")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
