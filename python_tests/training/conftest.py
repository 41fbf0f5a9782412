"""Nothing is collected where the loop's progress bar (tqdm, extra `train`) is not installed."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("tqdm") else ["test_*.py"]
