"""Random shapes and values (Hypothesis), and changes to which the losses are invariant."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

import cyclip_ext
from cyclip_ext import reference

from . import truth
from .inputs import FUNCTIONS, INPUTS, all_but_hinge, make_features

scales = st.floats(1e-3, 100.0)
shapes = st.tuples(st.integers(1, 70), st.integers(1, 40))
seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(sorted(INPUTS))
weights = st.floats(0.0, 2.0)


def _entries() -> st.SearchStrategy[float]:
    # Whole numbers make exact zeros, ties and duplicates; the floats everything else.
    return st.one_of(
        st.integers(-3, 3).map(float),
        st.floats(-1e3, 1e3, allow_subnormal=False).map(lambda v: v if abs(v) > 1e-3 else 0.0),
    )


@st.composite
def towers(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two towers [N, d] of arbitrary finite numbers."""
    n, d = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    image, text = (draw(hnp.arrays(np.float64, (n, d), elements=_entries())) for _ in range(2))
    return torch.from_numpy(image), torch.from_numpy(text)


def _values(backend: str, image: Tensor, text: Tensor, scale: float) -> dict[str, float]:
    return {
        name: loss(image, text, scale, -3.0, backend=backend).item()
        for name, loss in FUNCTIONS.items()
    }


@given(features=towers(), scale=scales)
def test_arbitrary_features_match_reference(
    backend: str, features: tuple[Tensor, Tensor], scale: float
) -> None:
    actual, expected = (_values(b, *features, scale) for b in (backend, "reference"))
    for name, value in actual.items():
        assert value == pytest.approx(expected[name], rel=1e-9, abs=1e-11), name
        assert value >= -1e-12


@pytest.mark.native
@given(shape=shapes, seed=seeds, kind=kinds, scale=scales)
def test_gradients_of_any_shape_match_reference(
    shape: tuple[int, int], seed: int, kind: str, scale: float
) -> None:
    image, text = make_features(kind, *shape, seed=seed % 1000)
    results = []
    for backend in "native", "reference":
        leaves = [t.clone().requires_grad_() for t in (image, text, torch.tensor(scale).double())]
        loss = all_but_hinge(*leaves, backend)
        loss.backward()
        sizes = [t.norm(dim=1, keepdim=True).clamp_min(reference.EPS) for t in (image, text)]
        gradients = [leaf.grad * size for leaf, size in zip(leaves, (*sizes, 1.0), strict=True)]
        results.append([loss.detach(), *gradients])
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-10)


@pytest.mark.native
@given(
    n=st.integers(1, 40), m=st.integers(1, 40), d=st.integers(1, 20), seed=seeds, scale=scales,
    data=st.data(),
)  # fmt: skip
def test_statistics_of_any_block_match_truth(
    n: int, m: int, d: int, seed: int, scale: float, data: st.DataObject
) -> None:
    offset = data.draw(st.integers(-n - 1, m + 1))
    image, text = make_features("random", max(n, m), d, seed=seed % 1000)
    arguments = image[:n], text[:m], torch.tensor(scale).double(), offset
    actual = torch.ops.cyclip_ext.pair_statistics(*arguments)[:7]
    expected = truth.pair_statistics(*arguments)
    # Cosines are +-1 for d = 1: ties to within rounding have no first one.
    compared = 7 if d > 1 else 5
    torch.testing.assert_close(
        tuple(actual[:compared]), tuple(expected[:compared]), rtol=1e-11, atol=1e-12
    )


def _permute(image: Tensor, text: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(image), generator=generator)
    return image[order], text[order]


def _lengthen(image: Tensor, text: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Multiply the images by 1e-3 to 1e3, and divide the texts by their norms."""
    exponent = 6 * torch.rand(len(image), 1, dtype=torch.float64, generator=generator) - 3
    return image * 10**exponent, reference.normalize(text)


def _rotate(image: Tensor, text: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    noise = torch.randn(2 * image.shape[1:], dtype=torch.float64, generator=generator)
    rotation, _ = torch.linalg.qr(noise)
    return image @ rotation, text @ rotation


@pytest.mark.parametrize(
    ("change", "rel", "abs"),
    [
        (_permute, 1e-9, 1e-12),
        (lambda image, text, _: (text, image), 1e-9, 1e-12),
        (_lengthen, 1e-9, 1e-11),
        (_rotate, 1e-8, 1e-10),
    ],
)
@given(shape=shapes, seed=seeds, scale=scales)
def test_losses_are_invariant_to_order_length_rotation_and_swapped_towers(
    backend: str, change: Callable, rel: float, abs: float, shape: tuple, seed: int, scale: float
) -> None:
    features = make_features("random", *shape, seed=seed % 1000)
    changed = change(*features, torch.Generator().manual_seed(seed))
    first, second = (_values(backend, *towers, scale) for towers in (features, changed))
    assert second == pytest.approx(first, rel=rel, abs=abs)


@pytest.mark.native
@given(shape=shapes, seed=seeds, scale=scales)
def test_gradients_are_orthogonal_to_the_features(
    shape: tuple[int, int], seed: int, scale: float
) -> None:
    """A step along x_i cannot change a loss of cosines."""
    image, text = make_features("random", *shape, seed=seed % 1000, dtype=torch.float32)
    leaves = [t.requires_grad_() for t in (image, text, torch.tensor(scale))]
    cyclip_ext.CyCLIPLoss(margin=0.1, hinge=0.1, backend="native")(*leaves).backward()
    for leaf in leaves[:2]:
        along = (leaf.grad.double() * leaf.detach().double()).sum(dim=1)
        size = leaf.grad.double().norm(dim=1) * leaf.detach().double().norm(dim=1)
        # The projection subtracts numbers of the size of s / N from each other.
        assert (along.abs() <= 1e-5 * (size + (1 + scale) / shape[0])).all()


@given(
    shape=shapes, seed=seeds, scale=scales,
    chosen=st.tuples(weights, weights, weights, weights),
    hinge_margin=st.floats(0.0, 1.0), reduction=st.sampled_from(["batchmean", "mean"]),
)  # fmt: skip
def test_any_weights_match_reference(
    backend, shape, seed, scale, chosen, hinge_margin, reduction
) -> None:
    image, text = make_features("random", *shape, seed=seed % 1000)
    options = dict(zip(("in_modal", "cross_modal", "margin", "hinge"), chosen, strict=True))
    options |= {"hinge_margin": hinge_margin, "reduction": reduction}
    loss = cyclip_ext.CyCLIPLoss(**options, backend=backend)(image, text, scale)
    expected = reference.cyclip_loss(image, text, scale, **options)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)
