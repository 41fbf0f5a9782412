"""Puts examples/ on the path, as `python examples/reproduce.py` does."""

import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"

sys.path.insert(0, str(EXAMPLES))
