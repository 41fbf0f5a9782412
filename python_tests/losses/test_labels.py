"""Labels and additional negatives, against dense float64 code written here."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from cyclip_ext import CLIPLoss, CyCLIPLoss, MatryoshkaLoss, SigLIPLoss, functional, reference

from .inputs import gradients, make_features

SCALE, BIAS = 7.0, -3.0
SAME_LABEL = ["mask", "positive"]
# Groups of sizes from 1 to N; the last is one group of all.
LABELS = {
    "distinct": [4, 0, 3, 1, 2, 9],
    "pairs": [5, 7, 5, 7, -1, 2**60],
    "large": [1, 1, 0, 1, 1, 1],
    "one": [3, 3, 3, 3, 3, 3],
}
FURTHER = [(0, 0), (3, 0), (0, 4), (1, 5)]  # texts, images


def _further(texts: int, images: int, d: int) -> dict[str, Tensor]:
    more_images, more_texts = make_features("random", max(texts, images, 1), d, seed=5)
    given = {"negative_text_features": more_texts[:texts]}
    given["negative_image_features"] = more_images[:images]
    return {name: features for name, features in given.items() if len(features)}


def _logits(rows: Tensor, cols: Tensor) -> Tensor:
    return SCALE * F.normalize(rows, dim=1) @ F.normalize(cols, dim=1).T


def _softmax_loss(
    rows: Tensor, cols: Tensor, further: Tensor | None, labels: list[int], same_label: str
) -> Tensor:
    """Return one direction, pair by pair."""
    z = _logits(rows, cols)
    w = z.new_empty(len(z), 0) if further is None else _logits(rows, further)
    losses = []
    for i, label in enumerate(labels):
        group = [j for j, other in enumerate(labels) if other == label]
        if same_label == "mask":
            summed = [j for j in range(len(z)) if j == i or j not in group]
            positive = z[i, i]
        else:
            summed, positive = list(range(len(z))), z[i, group].mean()
        losses.append(torch.cat([z[i, summed], w[i]]).logsumexp(0) - positive)
    return torch.stack(losses).mean()


def _contrastive(
    x: Tensor, y: Tensor, labels: list[int], same_label: str, u: Tensor | None, v: Tensor | None
) -> Tensor:
    rows = _softmax_loss(x, y, u, labels, same_label)
    return (rows + _softmax_loss(y, x, v, labels, same_label)) / 2


def _sigmoid(
    x: Tensor, y: Tensor, labels: list[int], same_label: str, u: Tensor | None, v: Tensor | None
) -> Tensor:
    z = _logits(x, y) + BIAS
    total = 0 * z.sum()
    for i, j in itertools.product(range(len(x)), repeat=2):
        if labels[i] == labels[j] and (i == j or same_label == "positive"):
            total = total + F.softplus(-z[i, j])
        elif labels[i] != labels[j]:
            total = total + F.softplus(z[i, j])
    for rows, cols in ((x, u), (v, y)):
        if rows is not None and cols is not None:
            total = total + F.softplus(_logits(rows, cols) + BIAS).sum()
    return total / len(x)


def _hinge(
    x: Tensor, y: Tensor, labels: list[int], same_label: str, u: Tensor | None, v: Tensor | None
) -> Tensor:
    n = len(x)
    total = 0 * x.sum()
    for rows, cols, further in ((x, y, u), (y, x, v)):
        sim = _logits(rows, cols) / SCALE
        more = sim.new_empty(n, 0) if further is None else _logits(rows, further) / SCALE
        for i in range(n):
            foreign = [j for j in range(n) if labels[j] != labels[i]]
            negatives = torch.cat([sim[i, foreign], more[i]])
            if len(negatives):
                total = total + (0.2 - sim[i, i] + negatives.max()).relu()
    return total / (2 * n)


DENSE = {"contrastive": _contrastive, "hinge": _hinge, "sigmoid": _sigmoid}
OURS: dict[str, Callable[..., Tensor]] = {
    "contrastive": lambda x, y, **o: functional.contrastive_loss(x, y, SCALE, **o),
    "hinge": lambda x, y, **o: functional.hinge_margin_loss(x, y, **o),
    "sigmoid": lambda x, y, **o: functional.sigmoid_loss(x, y, SCALE, BIAS, **o),
}


def _assert_same(
    name: str, labels: list[int] | None, same_label: str, further: tuple[int, int], **options: Any
) -> None:
    n = len(labels) if labels is not None else 6
    x, y = make_features("random", n, 4)
    given = _further(*further, 4)
    leaves = [t.requires_grad_() for t in (x, y, *given.values())]
    known = None if labels is None else torch.tensor(labels)
    loss = OURS[name](x, y, labels=known, same_label=same_label, **given, **options)
    u, v = given.get("negative_text_features"), given.get("negative_image_features")
    expected = DENSE[name](x, y, labels or list(range(n)), same_label, u, v)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        gradients(3 * loss, leaves), gradients(3 * expected, leaves), rtol=1e-8, atol=1e-11
    )


@pytest.mark.parametrize("further", FURTHER, ids=str)
@pytest.mark.parametrize("same_label", SAME_LABEL)
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", OURS)
def test_labels_match_loops(
    name: str, labels: str, same_label: str, further: tuple[int, int], backend: str
) -> None:
    _assert_same(name, LABELS[labels], same_label, further, backend=backend)


@pytest.mark.parametrize("further", FURTHER, ids=str)
@pytest.mark.parametrize("name", OURS)
def test_further_negatives_match_loops(name: str, further: tuple[int, int], backend: str) -> None:
    _assert_same(name, None, "mask", further, backend=backend)


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=9),
    same_label=st.sampled_from(SAME_LABEL),
    further=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    name=st.sampled_from(sorted(OURS)),
)
def test_any_labels_match_loops(
    labels: list[int], same_label: str, further: tuple[int, int], name: str
) -> None:
    _assert_same(name, labels, same_label, further)


@pytest.mark.parametrize("same_label", SAME_LABEL)
@pytest.mark.parametrize("name", ["contrastive", "sigmoid"])
def test_labels_match_the_specification(name: str, same_label: str) -> None:
    x, y = make_features("random", 6, 4)
    u, v = _further(2, 3, 4).values()
    extra = {"negative_text_features": u, "negative_image_features": v}
    for labels in map(torch.tensor, LABELS.values()):
        options = {"labels": labels, "same_label": same_label, **extra}
        if name == "contrastive":
            expected = reference.contrastive_loss(x, y, SCALE, **options)
        else:
            expected = reference.sigmoid_loss(x, y, SCALE, BIAS, **options)
        torch.testing.assert_close(OURS[name](x, y, **options), expected)


def _bits(name: str, n: int, labels: Tensor | None, same_label: str) -> list[Tensor]:
    x, y = (t.requires_grad_() for t in make_features("random", n, 40, dtype=torch.float32))
    loss = OURS[name](x, y, labels=labels, same_label=same_label, backend="native")
    return [loss, *gradients(loss, [x, y])]


@pytest.mark.native
@pytest.mark.parametrize("n", [6, 300])
@pytest.mark.parametrize("same_label", SAME_LABEL)
@pytest.mark.parametrize("name", OURS)
def test_distinct_labels_change_no_bit(name: str, same_label: str, n: int) -> None:
    labels = 3 * torch.randperm(n, generator=torch.Generator().manual_seed(0)) - 2**62
    expected = _bits(name, n, None, same_label)
    assert all(map(torch.equal, _bits(name, n, labels, same_label), expected))


@pytest.mark.native
@pytest.mark.parametrize("n", [6, 300])
@pytest.mark.parametrize("same_label", SAME_LABEL)
def test_distinct_labels_change_no_bit_of_terms_and_statistics(same_label: str, n: int) -> None:
    leaves = [t.requires_grad_() for t in make_features("random", n, 40, dtype=torch.float32)]
    leaves.append(torch.tensor(SCALE, requires_grad=True))
    loss = CyCLIPLoss(hinge=0.3, statistics=True, same_label=same_label, backend="native")
    runs = []
    for labels in None, torch.arange(n):
        terms = loss(*leaves, output_dict=True, labels=labels)
        total = sum(term for name, term in terms.items() if name.endswith("_loss"))
        runs.append([*terms.values(), *gradients(total, leaves)])
    assert all(map(torch.equal, *runs))


@pytest.mark.native
@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("same_label", SAME_LABEL)
@pytest.mark.parametrize("name", OURS)
def test_bits_with_labels_do_not_depend_on_the_number_of_threads(
    name: str, same_label: str
) -> None:
    runs = []
    for threads in 1, 2, 3:
        torch.set_num_threads(threads)
        runs.append(_bits(name, 700, torch.arange(700) // 3, same_label))
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))


@pytest.mark.native
@pytest.mark.parametrize("name", OURS)
def test_values_of_labels_change_no_bit(name: str) -> None:
    labels = torch.arange(300) % 7
    expected = _bits(name, 300, labels, "mask")
    others = torch.tensor([5, -1, 2**63 - 1, -(2**63), 0, 2**32, 2**33])[labels]
    assert all(map(torch.equal, _bits(name, 300, others, "mask"), expected))


@pytest.mark.parametrize("same_label", SAME_LABEL)
@pytest.mark.parametrize("name", OURS)
def test_labels_may_change_before_the_backward_pass(
    name: str, same_label: str, backend: str
) -> None:
    x, y = (t.requires_grad_() for t in make_features("random", 6, 4))
    labels = torch.tensor(LABELS["pairs"])
    loss = OURS[name](x, y, labels=labels, same_label=same_label, backend=backend)
    expected = gradients(loss, [x, y], retain_graph=True)
    labels.zero_()
    assert all(map(torch.equal, gradients(loss, [x, y]), expected))


@pytest.mark.parametrize("name", ["contrastive", "hinge"])
def test_one_group_has_no_negatives(name: str, backend: str) -> None:
    """The loss is 0, as for N = 1."""
    x, y = (t.requires_grad_() for t in make_features("random", 40, 4))
    loss = OURS[name](x, y, labels=torch.zeros(40, dtype=torch.long), backend=backend)
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients(loss, [x, y]))


@pytest.mark.parametrize("further", FURTHER, ids=str)
@pytest.mark.parametrize("n", [1, 3])
def test_rows_without_negatives_have_second_derivatives(n: int, further: tuple[int, int]) -> None:
    given = _further(*further, 2)
    leaves = [t.requires_grad_() for t in (*make_features("random", n, 2), *given.values())]

    def loss(x: Tensor, y: Tensor, *more: Tensor) -> Tensor:
        options = {
            "labels": torch.zeros(n, dtype=torch.long),
            **dict(zip(given, more, strict=True)),
        }
        return functional.contrastive_loss(x, y, SCALE, backend="reference", **options)

    assert torch.autograd.gradgradcheck(loss, leaves)


@pytest.mark.parametrize("same_label", SAME_LABEL)
def test_bfloat16_products_with_labels_are_those_of_rounded_features(
    same_label: str, backend: str
) -> None:
    x, y = make_features("random", 300, 40, dtype=torch.float32)
    options: dict[str, Any] = {"labels": torch.arange(300) // 100, "same_label": same_label}
    loss = functional.contrastive_loss(x, y, 14.3, precision="bf16", backend=backend, **options)
    rounded = (t.bfloat16().double() for t in (x, y))
    expected = functional.contrastive_loss(*rounded, 14.3, **options)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("same_label", SAME_LABEL)
@pytest.mark.parametrize("name", OURS)
def test_autocast_changes_no_bit_with_labels(name: str, same_label: str, backend: str) -> None:
    x, y = make_features("random", 9, 4, dtype=torch.float32)
    options = {"labels": torch.arange(9) // 2, "same_label": same_label, "backend": backend}
    expected = OURS[name](x, y, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(OURS[name](x, y, **options), expected)


@pytest.mark.parametrize("same_label", SAME_LABEL)
@pytest.mark.parametrize("kind", [CLIPLoss, SigLIPLoss])
def test_statistics_ignore_pairs_of_equal_labels(
    kind: type[CLIPLoss], same_label: str, backend: str
) -> None:
    x, y = make_features("random", 60, 4)
    labels = torch.arange(60) % 5
    terms = kind(statistics=True, same_label=same_label, backend=backend)(
        x, y, SCALE, BIAS, output_dict=True, labels=labels
    )
    sim = reference.similarity(x, y)
    foreign = sim.masked_fill(labels[:, None] == labels, -torch.inf)
    for side, hardest in ("image", foreign.amax(dim=1)), ("text", foreign.amax(dim=0)):
        expected = (sim.diagonal() > hardest).float().mean()
        torch.testing.assert_close(terms[f"{side}_accuracy"], expected)


LOSSES: dict[str, Callable[..., torch.nn.Module]] = {
    "clip": CLIPLoss,
    "cyclip": partial(CyCLIPLoss, hinge=0.3, margin=0.1),
    "siglip": SigLIPLoss,
    "matryoshka": lambda **o: MatryoshkaLoss(CyCLIPLoss(hinge=0.3, **o), (2, 3)),
}


@pytest.mark.parametrize("further", FURTHER, ids=str)
@pytest.mark.parametrize("same_label", SAME_LABEL)
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_with_labels_match_finite_differences(
    name: str, same_label: str, further: tuple[int, int], backend: str
) -> None:
    loss, given = LOSSES[name](same_label=same_label, backend=backend), _further(*further, 3)
    scalars = torch.tensor([5.0, -2.0]).double().unbind()
    inputs = [t.requires_grad_() for t in (*make_features("random", 6, 3), *scalars)]

    def total(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, *more: Tensor) -> Tensor:
        known = {"labels": torch.tensor(LABELS["pairs"]), **dict(zip(given, more, strict=True))}
        return loss(x, y, scale, bias, **known)

    leaves = (*inputs, *(t.requires_grad_() for t in given.values()))
    assert torch.autograd.gradcheck(total, leaves)


X, L = torch.ones(4, 3), torch.arange(4)
BAD = {
    # id: (arguments, exception, words of the message)
    "shape": ({"labels": L[:3]}, ValueError, ["labels must be [4]", "[3]"]),
    "dtype": ({"labels": L.float()}, TypeError, ["labels must be int64", "float32"]),
    "device": ({"labels": L.to("meta")}, ValueError, ["labels", "cpu", "meta"]),
    "kind": ({"labels": [0, 1, 2, 3]}, TypeError, ["labels", "list"]),
    "width": ({"negative_text_features": X[:, :2]}, ValueError, ["negative_text_features", "4, 2"]),
    "empty": ({"negative_image_features": X[:0]}, ValueError, ["negative_image_features", "0, 3"]),
    "integers": ({"negative_image_features": L[:, None]}, TypeError, ["negative_image", "int64"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_labels_and_negatives_raise(case: str) -> None:
    arguments, exception, words = BAD[case]
    for loss in CLIPLoss(), CyCLIPLoss(hinge=0.1), SigLIPLoss():
        with pytest.raises(exception) as error:
            loss(X, X, 1.0, -1.0, **arguments)
        assert all(word in str(error.value) for word in words)
    with pytest.raises(ValueError, match="same_label must be 'mask' or 'positive', got 'masks'"):
        CLIPLoss(same_label="masks")


def test_unicl_formula() -> None:
    """Yang et al. 2022: cross-entropy with the targets of equal labels, over rows and columns."""
    x, y = (t.requires_grad_() for t in make_features("random", 6, 4, dtype=torch.float32))
    for labels in map(torch.tensor, LABELS.values()):
        target = (labels[:, None] == labels[None, :]).float()
        target = target / target.sum(dim=1, keepdim=True)
        z = _logits(x, y)
        expected = (F.cross_entropy(z, target) + F.cross_entropy(z.T, target)) / 2
        actual = CLIPLoss(same_label="positive")(x, y, SCALE, labels=labels)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(gradients(actual, [x, y]), gradients(expected, [x, y]))


def test_multiple_negatives_ranking_with_hard_negatives() -> None:
    """sentence-transformers' loss: anchors against positives and all hard negatives, scale 20."""
    anchors, positives = make_features("random", 6, 4, dtype=torch.float32)
    hard = make_features("random", 6, 4, seed=3, dtype=torch.float32)[0]
    candidates = torch.cat([positives, hard])
    scores = 20 * F.normalize(anchors, dim=1) @ F.normalize(candidates, dim=1).T
    expected = F.cross_entropy(scores, torch.arange(6))
    actual = functional.contrastive_loss(
        anchors, positives, 20.0, directions="image_to_text", negative_text_features=hard
    )
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("same_label", SAME_LABEL)
def test_two_graphs_serve_every_batch_size_with_labels(same_label: str) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    loss = CyCLIPLoss(same_label=same_label)
    compiled = torch.compile(loss, backend=counter, fullgraph=True)
    for n in 4, 7, 9, 30, 100, 2:
        x, y = (t.requires_grad_() for t in make_features("random", n, 16))
        more = {"labels": torch.arange(n) // 2, **_further(2, 3, 16)}
        actual, expected = (f(x, y, SCALE, **more) for f in (compiled, loss))
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(gradients(actual, [x, y]), gradients(expected, [x, y]))
    assert counter.frame_count <= 2


# ------------------------------------------------- number of products


@pytest.mark.native
@pytest.mark.parametrize("locked", [0, 1])
def test_locked_tower_costs_no_product(locked: int) -> None:
    features = make_features("random", 40, 8, dtype=torch.float32)
    features[1 - locked].requires_grad_()
    with FlopCounterMode(display=False) as counter:
        loss = functional.contrastive_loss(*features, SCALE, backend="native", memory_budget=0)
        loss.backward()
    assert counter.get_total_flops() == 3 * 2 * 40 * 40 * 8  # 4 with both gradients


@pytest.mark.native
@pytest.mark.parametrize("same_label", SAME_LABEL)
@pytest.mark.parametrize("kind", [CLIPLoss, SigLIPLoss])
def test_statistics_with_labels_take_one_pass(kind: type[CLIPLoss], same_label: str) -> None:
    x, y = make_features("random", 40, 8, dtype=torch.float32)
    loss = kind(same_label=same_label, statistics=True, backend="native")
    with FlopCounterMode(display=False) as counter:
        loss(x, y, SCALE, BIAS, labels=torch.arange(40) // 2)
    passes = 1 if kind is CLIPLoss else 2  # with that of the sigmoid loss
    assert counter.get_total_flops() == passes * 2 * 40 * 40 * 8
