"""Operators of torch.ops.cyclip_ext in float64: values, gradients, error for second derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cyclip_ext import reference

from . import truth
from .inputs import INPUTS, make_features, random_like

pytestmark = pytest.mark.native

ops = torch.ops.cyclip_ext

SQUARE = [(1, 1), (1, 5), (2, 3), (5, 3), (3, 7), (17, 4), (33, 40)]  # (N, d)
# (n, m, offset): blocks of a distributed batch, also those that hold no positive at all
RECTANGLES = [
    (1, 4, 0),
    (1, 4, 3),
    (4, 1, 0),
    (3, 8, 5),
    (3, 8, 7),
    (5, 4, -2),
    (4, 3, 9),
    (6, 6, -6),
]
STATISTICS = truth.PairStatistics._fields[:5]


# Labels of the rows and columns of such blocks: shared with some columns, with the positive of
# offset 0 alone, and with all.
LABELS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "some": (lambda i: i % 3 - 1, lambda j: (j + 1) % 4 - 1),
    "distinct": (lambda i: i, lambda j: j),
    "one": (lambda i: 0 * i + 2**40, lambda j: 0 * j + 2**40),
}
every_labels = pytest.mark.parametrize("labels", LABELS)
either_meaning = pytest.mark.parametrize("positives", [False, True], ids=["mask", "positive"])


def _labels_of(kind: str, n: int, m: int) -> tuple[Tensor, Tensor]:
    of_rows, of_columns = LABELS[kind]
    return of_rows(torch.arange(n)), of_columns(torch.arange(m))


def _float64(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _rectangle(n: int, m: int, d: int = 3) -> tuple[Tensor, Tensor]:
    image, text = make_features("random", max(n, m), d, seed=n + 10 * m)
    return image[:n], text[:m]


def _gradients(outputs, inputs, weights) -> tuple[Tensor, ...]:
    return torch.autograd.grad(outputs, inputs, weights, allow_unused=True, materialize_grads=True)


def assert_same_derivatives(operator, dense, inputs: tuple[Tensor, ...], seed: int = 0) -> None:
    """Compare values and gradients of the floating outputs, under random upstream gradients."""
    results = []
    for function in operator, dense:
        leaves = tuple(t.detach().clone().requires_grad_() for t in inputs)
        outputs = function(*leaves)
        outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        floating = tuple(out for out in outputs if out.is_floating_point())
        assert all(out.dtype == torch.float64 for out in floating)
        gradients = _gradients(floating, leaves, random_like(floating, seed))
        results.append((outputs, gradients))
    (values, gradients), (expected_values, expected_gradients) = results
    torch.testing.assert_close(tuple(values), tuple(expected_values), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("n", "d"), SQUARE)
def test_row_norms_match_torch(n: int, d: int) -> None:
    """Norms are clamped at 1e-12."""
    features, _ = make_features("zero_rows", n, d)
    expected = features.norm(dim=1).clamp_min(1e-12)
    torch.testing.assert_close(ops.row_norms(features), expected)
    for dtype in torch.float32, torch.bfloat16:
        low = features.to(dtype)
        actual = ops.row_norms(low)
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, low.double().norm(dim=1).clamp_min(1e-12).float())


def _statistics(
    image: Tensor, text: Tensor, scale: Tensor, offset: int = 0, keep_bytes: int = 0
) -> list[Tensor]:
    """Return all outputs except for the dot products."""
    return ops.pair_statistics(image, text, scale, offset, False, False, keep_bytes)[:7]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 14.3, 100.0])
@pytest.mark.parametrize(("n", "d"), SQUARE)
def test_pair_statistics_match_truth(n: int, d: int, scale: float) -> None:
    image, text = make_features("random", n, d)
    assert_same_derivatives(_statistics, truth.pair_statistics, (image, text, _float64(scale)))


def test_pair_statistics_without_hardest() -> None:
    """The hardest negatives are optional, and nothing else depends on them."""
    image, text = _rectangle(6, 9)
    scale = _float64(5.0)
    full = truth.PairStatistics(*ops.pair_statistics(image, text, scale, 2)[:7])
    slim = truth.PairStatistics(
        *ops.pair_statistics(image, text, scale, 2, needs_hardest=False)[:7]
    )
    assert all(torch.equal(a, b) for a, b in zip(slim[:3], full[:3], strict=True))
    assert all((hardest == -torch.inf).all() for hardest in slim[3:5])
    assert all((index == -1).all() for index in slim[5:])


@pytest.mark.parametrize("keep_bytes", [0, 1 << 30])
@pytest.mark.parametrize(("n", "m", "offset"), RECTANGLES)
def test_pair_statistics_of_a_block_match_truth(
    n: int, m: int, offset: int, keep_bytes: int
) -> None:
    """The distributed case: positives off the diagonal, or none."""
    assert_same_derivatives(
        lambda x, y, s: _statistics(x, y, s, offset, keep_bytes),
        lambda x, y, s: truth.pair_statistics(x, y, s, offset),
        (*_rectangle(n, m), _float64(7.0)),
    )


BLOCKS = pytest.mark.parametrize(
    ("n", "m", "offset"), [*RECTANGLES, (150, 140, 0), (40, 300, 257)], ids=str
)


@either_meaning
@every_labels
@BLOCKS
def test_pair_statistics_with_labels_match_truth(
    n: int, m: int, offset: int, labels: str, positives: bool
) -> None:
    """Pairs of equal labels are not negatives, in any tile, with or without saved dot products."""
    known = _labels_of(labels, n, m)
    for keep_bytes in 0, 1 << 30:
        assert_same_derivatives(
            lambda *inputs, keep=keep_bytes: ops.pair_statistics(
                *inputs, offset, False, False, keep, True, *known, positives
            )[:7],
            lambda *inputs: truth.pair_statistics(*inputs, offset, known, positives),
            (*_rectangle(n, m), _float64(7.0)),
        )


@either_meaning
@pytest.mark.parametrize("groups", [1, 2])
def test_pairs_outside_a_sum_do_not_shift_it(positives: bool, groups: int) -> None:
    """In float32, logits of 100 would underflow or overflow sums of logits of -100."""
    sign = 1 - 2.0 * (torch.arange(40) % 2)[:, None]
    image, text = (sign * t.float() for t in make_features("narrow_cone", 40, 8))
    labels = torch.arange(40) % groups
    found = ops.pair_statistics(
        image, text, torch.tensor(100.0), 0, False, False, 0, True, labels, labels, positives
    )
    exact = truth.pair_statistics(
        image.double(), text.double(), 100.0, 0, (labels, labels), positives
    )
    torch.testing.assert_close(found[:2], exact[:2], rtol=1e-5, atol=0)


@either_meaning
@every_labels
def test_first_of_equal_negatives_counts_with_labels(labels: str, positives: bool) -> None:
    """Cosines equal to it may come earlier in pairs of equal labels."""
    image, text = make_features("ties", 40, 8)
    known = _labels_of(labels, 40, 40)
    options = 0, False, False, 0, True, *known, positives
    assert_same_derivatives(
        lambda *inputs: ops.pair_statistics(*inputs, *options)[:7],
        lambda *inputs: truth.pair_statistics(*inputs, 0, known, positives),
        (image, text, _float64(14.3)),
    )


@pytest.mark.parametrize("kind", ["duplicates", "narrow_cone", "modality_gap", "zero_rows", "ties"])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_pair_statistics_of_hard_inputs_match_truth(kind: str, scale: float) -> None:
    """Of several equal maxima the first one counts."""
    image, text = make_features(kind, 24, 8)
    if kind == "duplicates":  # exact ties of cosines that are rounded: no first one to speak of
        image[12:], text[12:] = image[12:] * 1.01 + 0.01, text[12:] * 1.01 - 0.01
    assert_same_derivatives(_statistics, truth.pair_statistics, (image, text, _float64(scale)))


@pytest.mark.parametrize("used", range(5), ids=STATISTICS)
def test_unused_statistics_disturb_no_gradient(used: int) -> None:
    assert_same_derivatives(
        lambda *inputs: _statistics(*inputs, 1)[used],
        lambda *inputs: truth.pair_statistics(*inputs, 1)[used],
        (*_rectangle(5, 7), _float64(7.0)),
    )


@pytest.mark.parametrize("kind", [kind for kind in INPUTS if kind not in ("duplicates", "ties")])
@pytest.mark.parametrize(("n", "d"), [*SQUARE, (5, 1), (40, 33), (70, 20)])
def test_cycle_grams_match_dense_products(n: int, d: int, kind: str) -> None:
    """P and M are deflated along their means, and the means put back."""

    def dense(image: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        x, y = reference.normalize(image), reference.normalize(text)
        plus, minus = x + y, x - y
        return plus.T @ plus, minus.T @ minus, plus.T @ minus

    assert_same_derivatives(ops.cycle_grams, dense, make_features(kind, n, d))
    equal = make_features(kind, n, d)[0]
    _, minus, cross = ops.cycle_grams(equal, equal.clone())
    assert not minus.any()  # M = 0 to the last bit
    assert not cross.any()


@pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 7), (40, 33)])
@pytest.mark.parametrize("kind", ["random", "narrow_cone"])
def test_cycle_grams_without_k_match_those_with_it(n: int, d: int, kind: str) -> None:
    features = make_features(kind, n, d)
    assert ops.cycle_grams(*features, cross=False)[2].shape == (0, 0)
    assert_same_derivatives(
        lambda x, y: ops.cycle_grams(x, y, cross=False)[:2],
        lambda x, y: ops.cycle_grams(x, y)[:2],
        features,
    )


@pytest.mark.parametrize(("n", "d"), [*SQUARE, (40, 33), (70, 20)])
@pytest.mark.parametrize("kind", ["random", "aligned", "narrow_cone", "zero_rows"])
def test_cycle_direct_matches_reference(n: int, d: int, kind: str) -> None:
    """So does the route by Gram matrices: the loss does not jump where the route is switched."""

    def dense(image: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        return (
            n * reference.in_modal_loss(image, text),
            n * reference.cross_modal_loss(image, text),
        )

    for keep_bytes in 0, 1 << 20:
        assert_same_derivatives(
            lambda x, y, kept=keep_bytes: ops.cycle_direct(x, y, kept)[:2],
            dense,
            make_features(kind, n, d),
        )


@pytest.mark.parametrize(
    ("n", "m", "offset"), [(1, 1, 0), (5, 5, 0), (33, 33, 0), *RECTANGLES], ids=str
)
@pytest.mark.parametrize("keep_bytes", [0, 1 << 30])
@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (1e-3, 0.0), (100.0, -5.0)])
def test_sigmoid_rows_match_dense_rows(
    n: int, m: int, offset: int, scale: float, bias: float, keep_bytes: int
) -> None:
    assert_same_derivatives(
        lambda x, y, s, b: ops.sigmoid_rows(x, y, s, b, offset, False, False, keep_bytes)[0],
        lambda *inputs: truth.sigmoid_rows(*inputs, offset),
        (*_rectangle(n, m), _float64(scale), _float64(bias)),
    )


@either_meaning
@every_labels
@BLOCKS
def test_sigmoid_rows_with_labels_match_truth(
    n: int, m: int, offset: int, labels: str, positives: bool
) -> None:
    options = *_labels_of(labels, n, m), positives
    for keep_bytes in 0, 1 << 30:
        assert_same_derivatives(
            lambda *inputs, keep=keep_bytes: ops.sigmoid_rows(
                *inputs, offset, False, False, keep, *options
            )[0],
            lambda *inputs: truth.sigmoid_rows(*inputs, offset, options[:2], positives),
            (*_rectangle(n, m), _float64(7.0), _float64(-3.0)),
        )


BAD_LABELS = {
    "rows": (torch.arange(5), torch.arange(3), "row_labels must be a vector of 4 int64"),
    "columns": (
        torch.arange(4),
        torch.zeros(2, 3).long(),
        "col_labels must be a vector of 3 int64",
    ),
    "dtype": (torch.arange(4).int(), torch.arange(3), "row_labels must be a vector of 4 int64"),
    "one side": (None, torch.arange(3), "given together, got col_labels alone"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_operators_check_labels(case: str) -> None:
    *labels, message = BAD_LABELS[case]
    image, text = _rectangle(4, 3)
    scale, options = _float64(1.0), (0, False, False, 0)
    with pytest.raises(RuntimeError, match=message):
        ops.pair_statistics(image, text, scale, *options, True, *labels)
    with pytest.raises(RuntimeError, match=message):
        ops.sigmoid_rows(image, text, scale, scale, *options, *labels)
    outputs = ops.pair_statistics(image, text, scale)
    saved = *outputs[:2], *outputs[5:], *outputs[:5]
    needed = True, True, False, False
    with pytest.raises(RuntimeError, match=message):
        ops.pair_statistics_backward(image, text, scale, 0, *saved, *needed, *labels)
    with pytest.raises(RuntimeError, match=message):
        ops.sigmoid_rows_backward(
            image, text, scale, scale, 0, outputs[-1], outputs[0], *needed, *labels
        )


def _calls(seed: int = 0) -> dict[str, tuple]:
    image, text = make_features("random", 4, 3, seed=seed)
    block, scale, bias = text[:3], _float64(5.0), _float64(-2.0)
    rounding, labels = (False, False, 0), (torch.tensor([3, 1, 3, 1]), torch.tensor([1, 3, 0]))
    return {
        "row_norms": (ops.row_norms, (image,)),
        "pair_statistics": (lambda *a: ops.pair_statistics(*a)[:5], (image, text, scale)),
        "pair_statistics_block": (
            lambda *a: ops.pair_statistics(*a, -1)[:5],
            (image, block, scale),
        ),
        "pair_statistics_labels": (
            lambda *a: ops.pair_statistics(*a, -1, *rounding, True, *labels)[:5],
            (image, block, scale),
        ),
        "sigmoid_rows_labels": (
            lambda *a: ops.sigmoid_rows(*a, -1, *rounding, *labels, True)[0],
            (image, block, scale, bias),
        ),
        "cycle_grams": (ops.cycle_grams, (image, text)),
        "cycle_direct": (lambda *a: ops.cycle_direct(*a)[:2], (image, text)),
        "sigmoid_rows": (lambda *a: ops.sigmoid_rows(*a)[0], (image, text, scale, bias)),
        "sigmoid_rows_block": (
            lambda *a: ops.sigmoid_rows(*a, 1)[0],
            (image, block, scale, bias),
        ),
    }


def test_row_norms_can_be_differentiated_once_and_twice() -> None:
    function, (features,) = _calls()["row_norms"]
    assert torch.autograd.gradcheck(function, features.requires_grad_())
    assert torch.autograd.gradgradcheck(function, features)


@pytest.mark.parametrize("name", [name for name in _calls() if name != "row_norms"])
def test_second_derivatives_raise(name: str) -> None:
    function, inputs = _calls()[name]
    leaves = tuple(t.clone().requires_grad_() for t in inputs)
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    first = torch.autograd.grad(
        outputs, leaves, tuple(map(torch.ones_like, outputs)), create_graph=True
    )
    with pytest.raises(
        (NotImplementedError, RuntimeError), match=r"(?i)second|double|twice|reference"
    ):
        torch.autograd.grad(sum(g.sum() for g in first), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_have_the_dtype_of_their_inputs(dtype: torch.dtype) -> None:
    for function, inputs in _calls().values():
        leaves = tuple(t.to(dtype if t.dim() else torch.float32).requires_grad_() for t in inputs)
        outputs = function(*leaves)
        outputs = tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)
        gradients = torch.autograd.grad(outputs, leaves, tuple(map(torch.ones_like, outputs)))
        assert [g.dtype for g in gradients] == [t.dtype for t in leaves]
