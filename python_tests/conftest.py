"""Options common to all tests: reproducible hypothesis examples, what is under test."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "reproducible",
    derandomize=True,  # the same examples in every run: a failure is a failure for everyone
    deadline=None,
    max_examples=20,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("reproducible")

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):  # pytest -n
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def pytest_report_header(config: pytest.Config) -> str:
    import cyclip_ext

    return f"cyclip_ext: {cyclip_ext.__file__}, torch {torch.__version__}"
