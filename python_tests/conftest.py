"""Options common to all tests: reproducible hypothesis examples, what is under test."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "reproducible",
    derandomize=True,  # the same examples in every run: a failure is a failure for everyone
    deadline=None,
    max_examples=20,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("reproducible")


def pytest_report_header(config: pytest.Config) -> str:
    import torch

    import cyclip_ext

    return f"cyclip_ext: {cyclip_ext.__file__}, torch {torch.__version__}"
