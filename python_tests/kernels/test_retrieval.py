"""Ranks and top-k, exactly: cosines are exact in every precision and often equal."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from cyclip_ext import reference

from .cases import LARGE, MIDDLE, PRECISIONS, Precision, rectangle
from .devices import Device

pytestmark = pytest.mark.parametrize("precision", PRECISIONS, ids=str)

SHAPES = [
    (1, 1, 1),
    (5, 3, 7),
    (3, 150, 24),
    (140, 66, 24),
    (2, 2100, 24),
    (2100, 2, 24),
    *MIDDLE,
    *LARGE,
]


def similarity(image: Tensor, text: Tensor) -> Tensor:
    """Replace NaN by -inf."""
    cosines = reference.similarity(image.double(), text.double())
    return cosines.where(~cosines.isnan(), -torch.inf)


def integer_features(n: int, m: int, d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return rows with four (or one) entries of +-1: norm 2 (or 1), cosines multiples of 1/4."""
    generator = Generator().manual_seed(n + 1000 * m)
    width = 4 if d >= 4 else 1

    def tower(rows: int) -> Tensor:
        features = torch.zeros(rows, d, dtype=dtype)
        for row in features:
            where = torch.randperm(d, generator=generator)[:width]
            row[where] = torch.randint(0, 2, (width,), generator=generator).to(dtype) * 2 - 1
        return features

    return tower(n), tower(m)


def ranks(sim: Tensor, row_labels: Tensor, col_labels: Tensor) -> Tensor:
    own = row_labels[:, None] == col_labels[None, :]
    best = sim.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
    return torch.where(own.any(dim=1), ((sim >= best) & ~own).sum(dim=1), -1)


def check_ranks(
    device: Device,
    image: Tensor,
    text: Tensor,
    labels: tuple[Tensor, Tensor],
    precision: Precision,
    **sizes: int | None,
) -> None:
    options = {"allow_tf32": precision.allow_tf32, **sizes}
    ours = device("retrieval_ranks", image, text, *labels, **options)
    sim = similarity(image, text)
    assert torch.equal(ours[0], ranks(sim, *labels))
    assert torch.equal(ours[1], ranks(sim.T, *reversed(labels)))


@pytest.mark.parametrize(("n", "m", "d"), SHAPES, ids=str)
@pytest.mark.parametrize("labels", ["pairs", "groups", "strangers"])
def test_ranks(device: Device, n: int, m: int, d: int, labels: str, precision: Precision) -> None:
    """Ties count against the model; a row without a partner has rank -1."""
    image, text = integer_features(n, m, d, precision.dtype)
    generator = Generator().manual_seed(0)
    large = 2**40  # labels are any 64-bit numbers
    pair = {
        "pairs": (torch.arange(n), torch.arange(m)),
        "groups": tuple(torch.randint(-2, 3, (k,), generator=generator) * large for k in (n, m)),
        "strangers": (torch.arange(n) * 2, torch.arange(m) * 3 + large),
    }[labels]
    check_ranks(device, image, text, pair, precision)


@pytest.mark.parametrize(("n", "m"), [(6, 9), (70, 130)])
def test_ranks_of_nan(device: Device, n: int, m: int, precision: Precision) -> None:
    """NaN counts as -inf, also if all cosines of a label are NaN."""
    image, text = integer_features(n, m, 8, precision.dtype)
    image[1, 0] = torch.nan
    text[3, 2] = torch.nan
    # Each NaN is an own entry for some lines and a foreign one for others. At m = 9, text 3 is the
    # only own text of image 4. Image label 0 and text label 7 have no partner.
    labels = torch.arange(n) % 7, torch.arange(m) % 7 + 1
    check_ranks(device, image, text, labels, precision)


def expected_top_k(sim: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, indices = sim.sort(dim=1, descending=True, stable=True)
    return values[:, :k], indices[:, :k]


def check_top_k(
    device: Device,
    query: Tensor,
    candidate: Tensor,
    k: int,
    precision: Precision,
    **sizes: int | None,
) -> None:
    options = {"allow_tf32": precision.allow_tf32, **sizes}
    ours = device("similarity_top_k", query, candidate, k, **options)
    values, indices = expected_top_k(similarity(query, candidate), k)
    assert torch.equal(ours[0], values), k
    assert torch.equal(ours[1], indices), k


@pytest.mark.parametrize(("n", "m", "d"), SHAPES, ids=str)
def test_top_k(device: Device, n: int, m: int, d: int, precision: Precision) -> None:
    """Equal entries keep the order of their indices, also across tiles."""
    query, candidate = integer_features(n, m, d, precision.dtype)
    for k in sorted({1, min(5, m), min(33, m), min(m, 150)}):
        check_top_k(device, query, candidate, k, precision)


def test_top_k_of_nan(device: Device, precision: Precision) -> None:
    """NaN counts as -inf and comes last."""
    query, candidate = integer_features(6, 9, 8, precision.dtype)
    candidate[3, 2] = torch.nan
    query[1, 0] = torch.nan
    check_top_k(device, query, candidate, 9, precision)


def test_top_k_of_rounded_cosines(device: Device, precision: Precision) -> None:
    """Values belong to their indices and do not rise."""
    query, candidate = rectangle("random", 20, 70, 40, precision.dtype)
    values, indices = device(
        "similarity_top_k", query, candidate, 10, allow_tf32=precision.allow_tf32
    )
    assert (values.diff(dim=1) <= 0).all()
    tolerance = 2e-3 if precision.allow_tf32 else 1e-5
    exact = similarity(query, candidate)
    torch.testing.assert_close(values, exact.gather(1, indices), rtol=0, atol=tolerance)
    torch.testing.assert_close(values, expected_top_k(exact, 10)[0], rtol=0, atol=tolerance)
