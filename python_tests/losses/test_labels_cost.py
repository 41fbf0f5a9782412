"""Processor time of labels, compared with that of the same loss without labels."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from cyclip_ext import CLIPLoss, SigLIPLoss
from cyclip_ext._dispatch import SameLabel

from .inputs import make_leaves

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("restore_threads")]

N = 2048
MOST = 1.15  # a second pass over the pairs would cost 1.3 or more
LEAST_ROUNDS, MOST_ROUNDS = 4, 40  # noise only adds to a minimum, so a false alarm ends by itself


def _seconds(loss: CLIPLoss, inputs: list[Tensor], labels: Tensor | None) -> float:
    """Return the processor time of one forward and backward pass."""
    begin = time.process_time()
    loss(*inputs, labels=labels).backward()
    return time.process_time() - begin


@pytest.mark.parametrize(
    ("kind", "same_label", "statistics"),
    [
        (CLIPLoss, "mask", False),
        (CLIPLoss, "positive", False),
        (CLIPLoss, "positive", True),
        (SigLIPLoss, "mask", False),
        (SigLIPLoss, "positive", False),
    ],
)
def test_labels_cost_no_second_pass(
    kind: type[CLIPLoss], same_label: SameLabel, statistics: bool
) -> None:
    torch.set_num_threads(1)
    inputs, labels = make_leaves(N, 512), torch.arange(N) % (N // 2)
    loss = kind(backend="native", same_label=same_label, statistics=statistics)
    without = with_labels = float("inf")
    for done in range(MOST_ROUNDS):
        without = min(without, _seconds(loss, inputs, None))
        with_labels = min(with_labels, _seconds(loss, inputs, labels))
        if done + 1 >= LEAST_ROUNDS and with_labels <= MOST * without:
            return
    pytest.fail(f"labels take {with_labels / without:.2f} times as long, more than {MOST}")
