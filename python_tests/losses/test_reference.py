"""The specification itself: against loops, hand values, the papers' form and other libraries."""

from __future__ import annotations

import itertools
import math

import mpmath
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cyclip_ext import reference

from . import truth
from .inputs import make_features

SHAPES = [(1, 1), (2, 3), (5, 3), (3, 7), (8, 16)]


def _cosines(image: Tensor, text: Tensor) -> list[list[float]]:
    """Compute S_ij by loops over Python floats."""
    rows = image.tolist(), text.tolist()

    def unit(row: list[float]) -> list[float]:
        return [v / max(math.hypot(*row), 1e-12) for v in row]

    x, y = ([unit(row) for row in tower] for tower in rows)
    return [[sum(map(float.__mul__, a, b)) for b in y] for a in x]


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_contrastive_is_cross_entropy_of_both_directions(n: int, d: int) -> None:
    image, text = make_features("random", n, d)
    logits = 14.3 * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    labels = torch.arange(n)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(reference.contrastive_loss(image, text, 14.3), expected)


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("scale", [1e-3, 14.3, 100.0])
def test_truth_agrees_with_the_reference(n: int, d: int, scale: float) -> None:
    image, text = make_features("random", n, d)
    torch.testing.assert_close(
        truth.contrastive_loss(image, text, scale),
        reference.contrastive_loss(image, text, scale),
        atol=1e-13,
        rtol=1e-12,
    )


def test_truth_is_exact_for_tiny_losses() -> None:
    image, text = make_features("aligned", 6, 8)
    scale = 100.0
    with mpmath.workdps(60):
        unit = [
            [mpmath.matrix(row) / mpmath.norm(mpmath.matrix(row)) for row in tower.tolist()]
            for tower in (image, text)
        ]
        sim = [[scale * (x.T * y)[0] for y in unit[1]] for x in unit[0]]
        total = mpmath.mpf(0)
        for matrix in (sim, list(zip(*sim, strict=True))):
            for i, row in enumerate(matrix):
                total += mpmath.log1p(
                    mpmath.fsum(mpmath.exp(z - row[i]) for j, z in enumerate(row) if j != i)
                )
        expected = float(total / (2 * len(sim)))
    assert expected < 1e-12
    actual = truth.contrastive_loss(image, text, scale).item()
    assert actual == pytest.approx(expected, rel=1e-11, abs=0)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_cycle_terms_have_the_papers_scale(n: int, d: int) -> None:
    """The paper's lambdas apply to the mean over squared logits, times N / s^2."""
    image, text = make_features("random", n, d)
    x, y, s = F.normalize(image, dim=1), F.normalize(text, dim=1), 14.3
    logits, image_logits, text_logits = s * x @ y.T, s * x @ x.T, s * y @ y.T
    in_modal = ((image_logits - text_logits) ** 2).mean() * n / s**2
    cross_modal = ((logits - logits.T) ** 2).mean() * n / s**2
    torch.testing.assert_close(reference.in_modal_loss(image, text), in_modal)
    torch.testing.assert_close(reference.cross_modal_loss(image, text), cross_modal)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_every_term_matches_loops(n: int, d: int) -> None:
    image, text = make_features("random", n, d)
    sim, images, texts = _cosines(image, text), _cosines(image, image), _cosines(text, text)
    pairs = list(itertools.product(range(n), repeat=2))
    hinge = 0.0
    for i in range(n):
        for negatives in (
            [sim[i][j] for j in range(n) if j != i],
            [sim[j][i] for j in range(n) if j != i],
        ):
            hinge += max(0.0, 0.2 - sim[i][i] + max(negatives)) if negatives else 0.0
    expected = {
        "in_modal": sum((images[j][k] - texts[j][k]) ** 2 for j, k in pairs) / n,
        "cross_modal": sum((sim[j][k] - sim[k][j]) ** 2 for j, k in pairs) / n,
        "margin": sum(1 - sim[i][i] for i in range(n)) / n,
        "hinge": hinge / (2 * n),
        "square": sum((image[i] - text[i]).square().sum().item() for i in range(n)) / n,
    }
    actual = {
        "in_modal": reference.in_modal_loss(image, text),
        "cross_modal": reference.cross_modal_loss(image, text),
        "margin": reference.margin_loss(image, text),
        "hinge": reference.hinge_margin_loss(image, text),
        "square": reference.square_loss(image, text),
    }
    for name, value in expected.items():
        assert actual[name].item() == pytest.approx(value, rel=1e-12, abs=1e-15), name
    weights = {"in_modal": 0.5, "cross_modal": 0.7, "margin": 0.1, "hinge": 0.3}
    total = reference.contrastive_loss(image, text, 5.0).item() + sum(
        weight * expected[name] for name, weight in weights.items()
    )
    assert reference.cyclip_loss(image, text, 5.0, **weights).item() == pytest.approx(total)


def test_two_orthogonal_pairs_match_values_on_paper() -> None:
    image = torch.tensor([[2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    text = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    half = math.sqrt(0.5)  # S = [[1, half], [0, half]]
    s = 2.0
    rows = math.log1p(math.exp(s * (half - 1))) + math.log1p(math.exp(-s * half))
    cols = math.log1p(math.exp(-s)) + math.log1p(1.0)
    expected = {
        reference.contrastive_loss(image, text, s): (rows + cols) / 4,
        reference.cross_modal_loss(image, text): 0.5,  # 2 half^2 / N
        reference.in_modal_loss(image, text): 0.5,  # the texts' cosine is half, the images' 0
        reference.margin_loss(image, text): (1 - half) / 2,
        reference.hinge_margin_loss(image, text): (max(0, half - 0.8) + 0.2) / 4,
    }
    for actual, value in expected.items():
        assert actual.item() == pytest.approx(value, rel=1e-14)


@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
def test_reductions_differ_by_n(reduction: str) -> None:
    image, text = make_features("random", 6, 4)
    factor = {"batchmean": 1.0, "mean": 1 / 6}[reduction]
    for term in reference.in_modal_loss, reference.cross_modal_loss:
        torch.testing.assert_close(term(image, text, reduction), factor * term(image, text))


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_sigmoid_is_binary_cross_entropy(n: int, d: int) -> None:
    """The targets are the identity; the sum over pairs is divided by N."""
    image, text = make_features("random", n, d)
    logits = 10.0 * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T - 5.0
    target = torch.eye(n, dtype=torch.float64)
    expected = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / n
    torch.testing.assert_close(reference.sigmoid_loss(image, text, 10.0, -5.0), expected)


def test_hinge_is_multi_margin_for_one_negative() -> None:
    image, text = make_features("random", 2, 5)
    sim = reference.similarity(image, text)
    labels = torch.arange(2)
    # multi_margin_loss divides by the number of classes, 2 here, as the mean over two directions.
    expected = F.multi_margin_loss(sim, labels, margin=0.2) + F.multi_margin_loss(
        sim.T, labels, margin=0.2
    )
    torch.testing.assert_close(reference.hinge_margin_loss(image, text, 0.2), expected)


def test_scale_gets_no_gradient_from_the_cycle_terms() -> None:
    image, text = make_features("random", 5, 4)
    scale = torch.tensor(14.3, dtype=torch.float64, requires_grad=True)
    gradients = [
        torch.autograd.grad(reference.cyclip_loss(image, text, scale, **weights), scale)[0]
        for weights in ({}, {"in_modal": 0.0, "cross_modal": 0.0})
    ]
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y, s, b: reference.cyclip_loss(x, y, s, margin=0.1, hinge=0.2),
        lambda x, y, s, b: reference.sigmoid_loss(x, y, s, b),
        lambda x, y, s, b: reference.square_loss(x, y),
    ],
    ids=["cyclip", "sigmoid", "square"],
)
def test_reference_is_differentiable_twice(loss) -> None:
    image, text = make_features("random", 3, 4)
    scalars = torch.tensor(5.0, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)
    inputs = tuple(t.clone().requires_grad_() for t in (image, text, *scalars))
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)
