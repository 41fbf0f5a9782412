"""The plan of `python -m benchmarks gpu`, and the lines of its CSV."""

from __future__ import annotations

import time as clock
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from cyclip_ext.functional import Backend
from cyclip_ext.libraries import has_operator

from .inputs import Batch, make_batch

SCALE, BIAS = 50.0, -10.0

FAMILIES = ("clip", "cyclip", "siglip")

COLUMNS = (
    *("stage", "name", "precision", "N", "d", "status"),
    *("median_ms", "lower_quartile_ms", "upper_quartile_ms", "tflops", "peak_mib"),
    *("loss_error", "grad_error", "scalar_grad_error", "note"),
)


@dataclass(frozen=True)
class Precision:
    name: str
    dtype: torch.dtype
    matmul: str = "highest"  # torch.set_float32_matmul_precision


PRECISIONS = (
    Precision("bf16", torch.bfloat16),
    Precision("fp16", torch.float16),
    Precision("tf32", torch.float32, "high"),
    Precision("float32", torch.float32),
)


@dataclass(frozen=True)
class Plan:
    """The measurements to make; `deadline` is in seconds since the epoch."""

    device: str
    precisions: tuple[Precision, ...]
    families: tuple[str, ...]
    peers: frozenset[str] | None  # None: all
    sizes: tuple[int, ...]
    widths: tuple[int, ...]
    rounds: int
    error_rows: int  # rows of the batch whose errors are measured in float64
    # (N, d) that take the 128 x 128 tiles, or pairs of them
    large_shapes: tuple[tuple[int, int], ...]
    deadline: float

    def is_over(self) -> bool:
        return clock.time() > self.deadline

    def batches(self) -> Iterator[tuple[Precision, Batch]]:
        """Yield a batch for each precision, width and size, until the deadline."""
        for n in self.sizes:
            for d in self.widths:
                for precision in self.precisions:
                    if self.is_over():
                        return
                    torch.set_float32_matmul_precision(precision.matmul)
                    yield (
                        precision,
                        make_batch(n, d, SCALE, BIAS, precision.dtype, torch.device(self.device)),
                    )


Line = dict[str, object]


def line_of(stage: str, name: str, *, status: object = "ok", **values: object) -> Line:
    """Return a line of the CSV; columns that are not given stay empty."""
    return dict.fromkeys(COLUMNS, "") | {"stage": stage, "name": name, "status": status} | values


def columns_of(precision: Precision, batch: Batch) -> Line:
    n, d = batch.image_features.shape
    return {"precision": precision.name, "N": n, "d": d}


def failure(error: Exception) -> str:
    return " ".join(f"failed: {type(error).__name__}: {error}".split())[:200]


def backend_of(plan: Plan) -> Backend:
    is_native = has_operator("pair_statistics", torch.device(plan.device).type)
    return "native" if is_native else "auto"
