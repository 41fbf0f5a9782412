"""Tests that run inside other packages; a file is skipped if its package is not installed.

`.ci/run` installs all of them, in an environment of its own (the extra `integrations`).
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # models and tokenizers here are made, not downloaded
