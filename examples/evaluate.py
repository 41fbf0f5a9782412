"""Evaluate a trained run and write a report that any browser shows, telephones included.

    python examples/evaluate.py                           the newest run in logs/
    python examples/evaluate.py --checkpoint logs/NAME    that run, or a checkpoint file

The report lies in the run's folder, in evaluation/. Other options, models and data are those of
`python -m cyclip_ext.evaluation --help`. The code is in cyclip_ext/evaluation.
"""

import argparse
import sys
from pathlib import Path

from cyclip_ext.evaluation.__main__ import main
from cyclip_ext.models.trained import CHOICE


def newest_run(folder: Path) -> Path:
    """The run whose best or last checkpoint is the youngest."""
    checkpoints = [path for name in CHOICE for path in folder.glob(f"*/{name}")]
    found = sorted(checkpoints, key=lambda path: path.stat().st_mtime)
    if not found:
        sys.exit(f"there is no trained run in {folder}: python examples/pretrain_cc3m.py makes one")
    return found[-1].parent.parent


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, help="default: the newest run in logs/")
    options, others = parser.parse_known_args()
    sys.exit(main([str(options.checkpoint or newest_run(Path("logs"))), *others]))
