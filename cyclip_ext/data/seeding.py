"""Random order as a function of (seed, epoch), and draws as one of (seed, epoch, index).

There is no generator state, so that batch size, number of workers and the step from which a run
resumes do not change a sample in a given epoch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Keys = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(state: Keys) -> Keys:
    """Apply the finalizer of SplitMix64 (Steele, Lea, Flood 2014) to uint64 [...]."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Keys = state ^ (state >> np.uint64(31))
    return mixed


def _keys(seed: int, epoch: int, indices: npt.NDArray[np.int64]) -> Keys:
    """Return one well mixed uint64 per sample; [n] -> [n]."""
    # One-element arrays rather than scalars: numpy warns when a scalar wraps around.
    start = _mix(np.array([seed % 2**64], dtype=np.uint64) + _GOLDEN)
    start = _mix(start + np.array([epoch], dtype=np.uint64) * _GOLDEN)
    return _mix(start + (indices.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def uniforms(seed: int, epoch: int, indices: Tensor, count: int) -> Tensor:
    """Draw `count` numbers from [0, 1) for each sample: int64 [n] -> float32 [n, count].

    Draw k of a sample depends on (seed, epoch, index, k) alone.
    """
    keys = _keys(seed, epoch, indices.numpy())[:, None]
    draws = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    # 24 bits: the most a float32 in [0, 1) holds without rounding up to 1.
    bits = _mix(keys + draws) >> np.uint64(40)
    return torch.from_numpy(bits.astype(np.float32) * np.float32(2**-24))


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Return a 63-bit seed for a generator, such as torch.Generator."""
    return int(_keys(seed, epoch, np.array([index]))[0] >> np.uint64(1))


def epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    """Return the order in which an epoch visits `count` samples; int64 [count]."""
    generator = torch.Generator().manual_seed(sample_seed(seed, epoch, -1))
    return torch.randperm(count, generator=generator)
