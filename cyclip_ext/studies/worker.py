"""One training of a study in a process of its own: `python -m cyclip_ext.studies.worker FOLDER`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from ..training.checkpoint import Checkpoints
from ..training.config import TrainConfig
from ..training.main import INTERRUPTED
from ..training.run import read_result, run_training
from ..training.sources import open_data
from .measure import measure
from .runs import SETTINGS, write_measures


def main(folder: Path) -> int:
    """Train what the folder's settings say, from its last checkpoint on, and measure it.

    The weights are dropped then: a study has dozens of runs, and their numbers are what it is for.
    """
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
