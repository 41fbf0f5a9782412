"""Every function and option against the reference in float64: value and all gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cyclip_ext import functional, reference

from .inputs import FUNCTIONS, make_features

Loss = Callable[..., Tensor]
SHAPES = [(1, 1), (1, 4), (2, 3), (5, 3), (3, 7), (16, 16), (37, 20), (20, 37)]


def value_and_gradients(loss, image: Tensor, text: Tensor, *scalars: float) -> list[Tensor]:
    """Return the loss, and all gradients under an upstream gradient that is not one."""
    leaves = [
        t.detach().clone().requires_grad_()
        for t in (image, text, *(torch.tensor(v, dtype=image.dtype) for v in scalars))
    ]
    value = loss(*leaves)
    assert value.shape == ()
    gradients = torch.autograd.grad(3 * value, leaves, allow_unused=True, materialize_grads=True)
    return [value.detach(), *gradients]


def assert_same(loss, expected, image: Tensor, text: Tensor, *scalars: float) -> None:
    torch.testing.assert_close(
        value_and_gradients(loss, image, text, *scalars),
        value_and_gradients(expected, image, text, *scalars),
        rtol=1e-9,
        atol=1e-12,
    )


def _weighted_cycle(x: Tensor, y: Tensor, in_modal: float, cross_modal: float, reduction: str):
    return in_modal * reference.in_modal_loss(
        x, y, reduction
    ) + cross_modal * reference.cross_modal_loss(x, y, reduction)


# (function, its reference, scale and bias, options)
CASES = [
    *(
        (functional.contrastive_loss, reference.contrastive_loss, (scale,), {})
        for scale in (1e-3, 1.0, 14.3, 100.0)
    ),
    *(
        (functional.contrastive_loss, reference.contrastive_loss, (14.3,), {"directions": name})
        for name in ("both", "image_to_text", "text_to_image")
    ),
    *(
        (functional.sigmoid_loss, reference.sigmoid_loss, scalars, {})
        for scalars in ((10.0, -10.0), (1e-3, 0.0), (100.0, 5.0))
    ),
    *(
        (functional.hinge_margin_loss, reference.hinge_margin_loss, (), {"hinge_margin": margin})
        for margin in (0.0, 0.2, 1.0, 3.0)
    ),
    *(  # the shapes take both routes, and equal weights take a shortcut
        (functional.cycle_consistency, _weighted_cycle, (), weights | {"reduction": reduction})
        for reduction in ("batchmean", "mean")
        for weights in (
            {"in_modal": a, "cross_modal": b}
            for a, b in ((0.25, 0.25), (1.0, 0.0), (0.0, 1.0), (0.3, 2.0))
        )
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].__name__}-{case[2:]}")
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_function_matches_reference(n: int, d: int, case: tuple, backend: str) -> None:
    function, expected, scalars, options = case
    assert_same(
        lambda *a: function(*a, backend=backend, **options),
        lambda *a: expected(*a, **options),
        *make_features("random", n, d),
        *scalars,
    )


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_margin_matches_reference(n: int, d: int) -> None:
    assert_same(functional.margin_loss, reference.margin_loss, *make_features("random", n, d))


def test_cycle_without_weights_is_zero(backend: str) -> None:
    image, text = (t.requires_grad_() for t in make_features("random", 5, 3))
    loss = functional.cycle_consistency(image, text, in_modal=0.0, cross_modal=0.0, backend=backend)
    assert loss.item() == 0
    if loss.requires_grad:
        loss.backward()
        assert not image.grad.any()
        assert not text.grad.any()


@pytest.mark.parametrize(("n", "d"), [(4, 3), (3, 5)])
def test_gradients_match_finite_differences(loss: Loss, n: int, d: int) -> None:
    image, text = make_features("random", n, d)
    scalars = torch.tensor(5.0, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)
    inputs = tuple(t.requires_grad_() for t in (image, text, *scalars))
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("wanted", list(itertools.product([True, False], repeat=4)), ids=str)
def test_frozen_argument_leaves_other_gradients_alone(
    loss: Loss, loss_name: str, wanted: tuple[bool, ...]
) -> None:
    image, text = make_features("random", 6, 4)
    scalars = torch.tensor(5.0, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)
    inputs = (image, text, *scalars)
    full = [t.clone().requires_grad_() for t in inputs]
    loss(*full).backward()
    part = [t.clone().requires_grad_(w) for t, w in zip(inputs, wanted, strict=True)]
    value = loss(*part)
    used = {"contrastive": 3, "sigmoid": 4}.get(loss_name, 2)
    assert value.requires_grad == any(wanted[:used])
    if value.requires_grad:
        value.backward()
    for w, of_all, of_some in zip(wanted, full, part, strict=True):
        if w and of_all.grad is not None:
            torch.testing.assert_close(of_some.grad, of_all.grad, rtol=1e-12, atol=1e-14)
        else:
            assert of_some.grad is None


@pytest.mark.parametrize(
    ("image_dtype", "text_dtype", "loss_dtype"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float64, torch.float64, torch.float64),
        (torch.float32, torch.float64, torch.float64),
    ],
    ids=str,
)
def test_dtypes_of_loss_and_gradients(
    loss: Loss, loss_name: str, image_dtype, text_dtype, loss_dtype
) -> None:
    image, text = make_features("random", 6, 4)
    expected = FUNCTIONS[loss_name](image, text, 5.0, -2.0, backend="reference")
    image, text = image.to(image_dtype).requires_grad_(), text.to(text_dtype).requires_grad_()
    value = loss(image, text, torch.tensor(5.0), torch.tensor(-2.0))
    assert value.dtype == loss_dtype
    value.backward()
    assert (image.grad.dtype, text.grad.dtype) == (image_dtype, text_dtype)
    rounding = max(torch.finfo(t).eps for t in (image_dtype, text_dtype))
    assert value.item() == pytest.approx(expected.item(), rel=20 * rounding)


@pytest.mark.parametrize(
    "as_scale", [float, np.float32, np.float64, torch.tensor, lambda v: torch.tensor([v])]
)
def test_scale_may_be_a_number_or_a_tensor_of_one_element(as_scale, backend: str) -> None:
    image, text = make_features("random", 6, 4, dtype=torch.float32)
    expected = reference.contrastive_loss(image, text, 14.0)
    scale = as_scale(14.0)
    actual = functional.contrastive_loss(image, text, scale, backend=backend)
    assert actual.shape == ()
    torch.testing.assert_close(actual, expected)
    if isinstance(scale, Tensor):  # of shape [1] in older versions of open_clip
        scale.requires_grad_()
        functional.contrastive_loss(image, text, scale, backend=backend).backward()
        assert scale.grad.shape == scale.shape


def test_gradients_of_a_shared_tensor_add_up(loss: Loss) -> None:
    image, _ = make_features("random", 6, 4)
    shared = image.clone().requires_grad_()
    loss(shared, shared, 5.0, -2.0).backward()
    apart = [image.clone().requires_grad_() for _ in range(2)]
    loss(*apart, 5.0, -2.0).backward()
    torch.testing.assert_close(shared.grad, apart[0].grad + apart[1].grad)


def test_gradients_of_features_normalized_outside_have_no_radial_part(backend: str) -> None:
    """Those of dense code without its own normalization do; its backward pass removes them."""

    def dense(x: Tensor, y: Tensor) -> Tensor:
        logits, target = 5.0 * x @ y.T, torch.arange(len(x))
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    gradients = []
    for function in dense, lambda x, y: functional.contrastive_loss(x, y, 5.0, backend=backend):
        raw = [features.requires_grad_() for features in make_features("random", 6, 4)]
        unit = [F.normalize(features) for features in raw]
        gradients.append(torch.autograd.grad(function(*unit), (*unit, *raw)))
    (*of_dense, raw_x, raw_y), (*ours, our_x, our_y) = gradients
    torch.testing.assert_close((our_x, our_y), (raw_x, raw_y))
    for features, with_radial, without in zip(unit, of_dense, ours, strict=True):
        radial = (features * with_radial).sum(1, keepdim=True)
        assert radial.abs().min() > 1e-3
        torch.testing.assert_close(without, with_radial - features * radial)


def test_one_direction_is_the_cross_entropy_of_its_rows() -> None:
    """The loss equals sentence-transformers' MultipleNegativesRankingLoss."""
    image, text = make_features("random", 7, 4)
    logits, labels = 20 * reference.similarity(image, text), torch.arange(7)
    for directions, rows in (("image_to_text", logits), ("text_to_image", logits.T)):
        torch.testing.assert_close(
            functional.contrastive_loss(image, text, 20.0, directions=directions),
            torch.nn.functional.cross_entropy(rows, labels),
        )
    with pytest.raises(ValueError, match="directions must be 'both', 'image_to_text' or"):
        functional.contrastive_loss(image, text, 20.0, directions="rows")
