"""Which backends are present, and the marks that depend on it."""

from __future__ import annotations

import pytest
import torch

import cyclip_ext

NATIVE = hasattr(cyclip_ext, "ops") and hasattr(torch.ops.cyclip_ext, "pair_statistics")

needs_native = pytest.mark.skipif(not NATIVE, reason="the C++ operators are not built")

BACKENDS = ["reference", pytest.param("native", marks=needs_native)]
