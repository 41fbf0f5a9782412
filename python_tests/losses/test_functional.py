"""Every function and option against the reference in float64: value and all gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from cyclip_ext import functional, reference

from .backends import BACKENDS
from .inputs import make_features

pytestmark = pytest.mark.parametrize("backend", BACKENDS)

SHAPES = [(1, 1), (1, 4), (2, 3), (5, 3), (3, 7), (16, 16), (37, 20), (20, 37)]


def value_and_gradients(loss, image: Tensor, text: Tensor, *scalars: float) -> list[Tensor]:
    """The loss, and the gradients of all inputs under an upstream gradient that is not one."""
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


@pytest.mark.parametrize("scale", [1e-3, 1.0, 14.3, 100.0])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_contrastive(n: int, d: int, scale: float, backend: str) -> None:
    """Wrong: the contrastive loss or its gradients, the temperature's among them."""
    assert_same(
        lambda x, y, s: functional.contrastive_loss(x, y, s, backend=backend),
        reference.contrastive_loss,
        *make_features("random", n, d),
        scale,
    )


@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
@pytest.mark.parametrize(
    ("in_modal", "cross_modal"), [(0.25, 0.25), (1.0, 0.0), (0.0, 1.0), (0.3, 2.0)]
)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_cycle(
    n: int, d: int, in_modal: float, cross_modal: float, reduction: str, backend: str
) -> None:
    """Wrong: a weight, a reduction, or the shortcut for equal weights, on either route."""
    assert_same(
        lambda x, y: functional.cycle_consistency(
            x, y, in_modal=in_modal, cross_modal=cross_modal, reduction=reduction, backend=backend
        ),
        lambda x, y: (
            in_modal * reference.in_modal_loss(x, y, reduction)
            + cross_modal * reference.cross_modal_loss(x, y, reduction)
        ),
        *make_features("random", n, d),
    )


def test_cycle_without_weights_is_zero(backend: str) -> None:
    """Wrong: switching both terms off raises, or leaves no zero gradient behind."""
    image, text = (t.requires_grad_() for t in make_features("random", 5, 3))
    loss = functional.cycle_consistency(image, text, in_modal=0.0, cross_modal=0.0, backend=backend)
    assert loss.item() == 0
    if loss.requires_grad:
        loss.backward()
        assert not image.grad.any()
        assert not text.grad.any()


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_margin(n: int, d: int, backend: str) -> None:
    """Wrong: the one-sided regularizer."""
    assert_same(
        lambda x, y: functional.margin_loss(x, y),
        reference.margin_loss,
        *make_features("random", n, d),
    )


@pytest.mark.parametrize("hinge_margin", [0.0, 0.2, 1.0, 3.0])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_hinge(n: int, d: int, hinge_margin: float, backend: str) -> None:
    """Wrong: the hinge, its clamp, or the gradient through the hardest negatives."""
    assert_same(
        lambda x, y: functional.hinge_margin_loss(x, y, hinge_margin, backend=backend),
        lambda x, y: reference.hinge_margin_loss(x, y, hinge_margin),
        *make_features("random", n, d),
    )


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (1e-3, 0.0), (100.0, 5.0)])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_sigmoid(n: int, d: int, scale: float, bias: float, backend: str) -> None:
    """Wrong: the sigmoid loss or its gradients, scale's and bias's among them."""
    assert_same(
        lambda x, y, s, b: functional.sigmoid_loss(x, y, s, b, backend=backend),
        reference.sigmoid_loss,
        *make_features("random", n, d),
        scale,
        bias,
    )


def _losses(backend: str) -> dict:
    f = functional
    return {
        "contrastive": lambda x, y, s, b: f.contrastive_loss(x, y, s, backend=backend),
        "cycle": lambda x, y, s, b: f.cycle_consistency(x, y, backend=backend),
        "margin": lambda x, y, s, b: f.margin_loss(x, y),
        "hinge": lambda x, y, s, b: f.hinge_margin_loss(x, y, backend=backend),
        "sigmoid": lambda x, y, s, b: f.sigmoid_loss(x, y, s, b, backend=backend),
    }


@pytest.mark.parametrize("name", _losses("auto"))
@pytest.mark.parametrize(("n", "d"), [(4, 3), (3, 5)])
def test_gradcheck(name: str, n: int, d: int, backend: str) -> None:
    """Wrong: a gradient against finite differences."""
    image, text = make_features("random", n, d)
    scalars = torch.tensor(5.0, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)
    inputs = tuple(t.requires_grad_() for t in (image, text, *scalars))
    assert torch.autograd.gradcheck(_losses(backend)[name], inputs)


@pytest.mark.parametrize("name", _losses("auto"))
@pytest.mark.parametrize("wanted", list(itertools.product([True, False], repeat=4)), ids=str)
def test_partial_gradients(name: str, wanted: tuple[bool, ...], backend: str) -> None:
    """Wrong: freezing one tower or the temperature changes the gradients of the others."""
    image, text = make_features("random", 6, 4)
    scalars = torch.tensor(5.0, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)
    inputs = (image, text, *scalars)
    loss = _losses(backend)[name]
    full = [t.clone().requires_grad_() for t in inputs]
    loss(*full).backward()
    part = [t.clone().requires_grad_(w) for t, w in zip(inputs, wanted, strict=True)]
    value = loss(*part)
    used = {"contrastive": 3, "sigmoid": 4}.get(name, 2)
    assert value.requires_grad == any(wanted[:used])
    if value.requires_grad:
        value.backward()
    for w, of_all, of_some in zip(wanted, full, part, strict=True):
        if w and of_all.grad is not None:
            torch.testing.assert_close(of_some.grad, of_all.grad, rtol=1e-12, atol=1e-14)
        else:
            assert of_some.grad is None


@pytest.mark.parametrize("name", _losses("auto"))
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
def test_dtypes(name, image_dtype, text_dtype, loss_dtype, backend: str) -> None:
    """Wrong: towers of mixed precision, the dtype of the loss, or that of the gradients."""
    image, text = make_features("random", 6, 4)
    expected = _losses("reference")[name](image, text, 5.0, -2.0)
    image, text = image.to(image_dtype).requires_grad_(), text.to(text_dtype).requires_grad_()
    loss = _losses(backend)[name](image, text, torch.tensor(5.0), torch.tensor(-2.0))
    assert loss.dtype == loss_dtype
    loss.backward()
    assert (image.grad.dtype, text.grad.dtype) == (image_dtype, text_dtype)
    rounding = max(torch.finfo(t).eps for t in (image_dtype, text_dtype))
    assert loss.item() == pytest.approx(expected.item(), rel=20 * rounding)


@pytest.mark.parametrize("as_scale", [float, torch.tensor, lambda v: torch.tensor([v])])
def test_forms_of_the_scale(as_scale, backend: str) -> None:
    """Wrong: a float, a 0-dim and a 1-element tensor do not mean the same temperature."""
    image, text = make_features("random", 6, 4, dtype=torch.float32)
    expected = reference.contrastive_loss(image, text, 14.0)
    actual = functional.contrastive_loss(image, text, as_scale(14.0), backend=backend)
    assert actual.shape == ()
    torch.testing.assert_close(actual, expected)


def test_parameter_of_one_element_keeps_its_shape_in_the_gradient(backend: str) -> None:
    """Wrong: logit_scale of shape [1] (older open_clip) gets a 0-dim gradient and raises."""
    image, text = make_features("random", 6, 4, dtype=torch.float32)
    scale = torch.nn.Parameter(torch.tensor([14.0]))
    functional.contrastive_loss(image, text, scale, backend=backend).backward()
    assert scale.grad.shape == (1,)


def test_one_tensor_for_both_towers(backend: str) -> None:
    """Wrong: gradients of the two arguments do not add up where they are the same tensor."""
    image, _ = make_features("random", 6, 4)
    for name, loss in _losses(backend).items():
        shared = image.clone().requires_grad_()
        loss(shared, shared, 5.0, -2.0).backward()
        apart = [image.clone().requires_grad_() for _ in range(2)]
        loss(*apart, 5.0, -2.0).backward()
        torch.testing.assert_close(shared.grad, apart[0].grad + apart[1].grad), name
