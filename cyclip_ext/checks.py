"""What every metric and analysis asks of its embeddings."""

from __future__ import annotations

from torch import Tensor


def require_finite(**features: Tensor) -> None:
    """Raises ValueError, naming the argument: no comparison with NaN counts against the model."""
    for name, rows in features.items():
        finite = rows.isfinite()
        if not finite.all():
            broken = int((~finite).reshape(len(rows), -1).any(1).sum())
            raise ValueError(
                f"{name} must be finite, got NaN or infinity in {broken} of {len(rows)} rows; "
                "the model has diverged: evaluate an earlier checkpoint"
            )
