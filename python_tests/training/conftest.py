"""Nothing is collected where the loop's own needs (extra `train`) are not installed."""

import importlib.util

NEEDED = ("jsonargparse", "tqdm")

collect_ignore_glob = [] if all(map(importlib.util.find_spec, NEEDED)) else ["test_*.py"]
