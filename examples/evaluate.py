"""Evaluate a trained run and write a report that any browser shows.

    python examples/evaluate.py               evaluates the newest run in logs/
    python examples/evaluate.py logs/NAME     evaluates this run, or a checkpoint file

The report is written to the folder evaluation/ inside the run's folder. All options are those of
`cyclip-eval run --help`; other models are evaluated with `cyclip-eval`.
"""

import sys
from pathlib import Path

from cyclip_ext.evaluation.__main__ import main
from cyclip_ext.models.trained import CHOICE


def newest_run(folder: Path) -> Path:
    """Return the run with the newest best or last checkpoint."""
    checkpoints = [path for name in CHOICE for path in folder.glob(f"*/{name}")]
    found = sorted(checkpoints, key=lambda path: path.stat().st_mtime)
    if not found:
        sys.exit(
            f"there is no trained run in {folder}; train one with python examples/pretrain_cc3m.py"
        )
    return found[-1].parent.parent


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments.insert(0, str(newest_run(Path("logs"))))
    sys.exit(main(["run", *arguments]))
