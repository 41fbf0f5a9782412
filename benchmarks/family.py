"""Peers and families. A family is a set of implementations, the peers, of the same function."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .inputs import Batch

Loss = Callable[[Batch], Tensor]  # or a retrieval, whose result has no derivatives

Make = Callable[[Batch], Loss]  # for batches of this shape

# The values that are rounded to bfloat16: none, the factors of matrix products, or the features.
Arithmetic = Literal["float32", "bf16 products", "bf16 features"]


class Unavailable(Exception):
    """The reason why a peer is not measured."""


@dataclass(frozen=True)
class Peer:
    name: str
    make: Make
    note: str = ""
    arithmetic: Arithmetic = "float32"
    ours: bool = False
    compiled: bool = False
    judged: bool = True  # whether its error is compared; a compiled peer has the original's
    logit_bytes: float = math.inf  # logits up to this size are stored for the backward pass
    largest: int | None = None  # N beyond which a CPU would take too long
    locked: bool = False  # whether the image features need no gradient, which saves a product

    def features(self, batch: Batch) -> Batch:
        """Return the batch in the dtype that the peer is measured with."""
        return batch.of_dtype(torch.bfloat16) if self.arithmetic == "bf16 features" else batch


@dataclass(frozen=True)
class Family:
    name: str
    truth: Loss  # for batches in float64
    peers: tuple[Peer, ...]  # the first one is the baseline
    # Number of unavoidable N x d x N products: with stored logits, and with recomputed ones.
    products: tuple[int, int] | None

    @property
    def baseline(self) -> Peer:
        return self.peers[0]

    def peer(self, name: str) -> Peer:
        return next(peer for peer in self.peers if peer.name == name)

    def flops(self, peer: Peer, n: int, d: int) -> float | None:
        """Return the flops of the unavoidable products, or None if their number is unknown."""
        if self.products is None:
            return None
        kept = 4 * n * n <= peer.logit_bytes
        return 2.0 * n * n * d * (self.products[0 if kept else 1] - peer.locked)
