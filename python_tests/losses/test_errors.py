"""What a wrong argument is told: the argument's name, the value received, and the remedy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import cyclip_ext
from cyclip_ext import functional

from .backends import BACKENDS, needs_native

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def _features(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.ones(shape, dtype=dtype, device=device)


def _losses(backend: str) -> dict[str, Callable[..., Tensor]]:
    f = functional
    return {
        "contrastive": lambda x, y, s=1.0: f.contrastive_loss(x, y, s, backend=backend),
        "cycle": lambda x, y, s=1.0: f.cycle_consistency(x, y, backend=backend),
        "margin": lambda x, y, s=1.0: f.margin_loss(x, y),
        "hinge": lambda x, y, s=1.0: f.hinge_margin_loss(x, y, backend=backend),
        "sigmoid": lambda x, y, s=1.0: f.sigmoid_loss(x, y, s, -1.0, backend=backend),
        "CLIPLoss": lambda x, y, s=1.0: cyclip_ext.CLIPLoss(backend=backend)(x, y, s),
        "CyCLIPLoss": lambda x, y, s=1.0: cyclip_ext.CyCLIPLoss(backend=backend)(x, y, s),
        "SigLIPLoss": lambda x, y, s=1.0: cyclip_ext.SigLIPLoss(backend=backend)(x, y, s, -1.0),
    }


every_loss = pytest.mark.parametrize("name", _losses("auto"))
scaled_loss = pytest.mark.parametrize("name", ["contrastive", "sigmoid", "CLIPLoss", "SigLIPLoss"])

BAD_FEATURES = {
    # id: (image_features, text_features, exception, words that the message must contain)
    "one_dimension": ((3,), (4, 3), ValueError, ["image_features", "3"]),
    "three_dimensions": ((4, 3), (4, 3, 2), ValueError, ["text_features", "4, 3, 2"]),
    "no_dimension": ((), (4, 3), ValueError, ["image_features"]),
    "rows_differ": (
        (4, 3),
        (5, 3),
        ValueError,
        ["image_features", "text_features", "4, 3", "5, 3"],
    ),
    "widths_differ": (
        (4, 3),
        (4, 2),
        ValueError,
        ["image_features", "text_features", "4, 3", "4, 2"],
    ),
    "empty_batch": ((0, 3), (0, 3), ValueError, ["image_features", "0, 3"]),
    "no_width": ((4, 0), (4, 0), ValueError, ["image_features", "4, 0"]),
}


@every_loss
@pytest.mark.parametrize("case", BAD_FEATURES)
def test_bad_shapes(name: str, case: str, backend: str) -> None:
    """Wrong: a shape that cannot mean a batch of pairs is broadcast, or fails deep inside."""
    image, text, exception, words = BAD_FEATURES[case]
    with pytest.raises(exception) as error:
        _losses(backend)[name](_features(*image), _features(*text))
    for word in words:
        assert word in str(error.value)


@every_loss
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.uint8], ids=str)
@pytest.mark.parametrize("argument", ["image_features", "text_features"])
def test_bad_dtypes(name: str, argument: str, dtype: torch.dtype, backend: str) -> None:
    """Wrong: integer, boolean or complex features are converted silently."""
    features = {"image_features": _features(4, 3), "text_features": _features(4, 3)}
    features[argument] = features[argument].to(dtype)
    with pytest.raises(TypeError, match=argument) as error:
        _losses(backend)[name](*features.values())
    assert str(dtype) in str(error.value)


@every_loss
@pytest.mark.parametrize("argument", ["image_features", "text_features"])
def test_not_a_tensor(name: str, argument: str, backend: str) -> None:
    """Wrong: a list or None ends in an AttributeError."""
    features = {"image_features": _features(4, 3), "text_features": _features(4, 3)}
    features[argument] = [[1.0, 2.0, 3.0]] * 4
    with pytest.raises(TypeError, match=argument) as error:
        _losses(backend)[name](*features.values())
    assert "list" in str(error.value)


@every_loss
def test_devices_differ(name: str, backend: str) -> None:
    """Wrong: towers on two devices fail without saying which is where."""
    with pytest.raises(ValueError, match=r"image_features.*text_features") as error:
        _losses(backend)[name](_features(4, 3), _features(4, 3, device="meta"))
    for device in "cpu", "meta":
        assert device in str(error.value)


@scaled_loss
@pytest.mark.parametrize("shape", [(2,), (4, 1), (0,)])
def test_scale_is_not_a_scalar(name: str, shape: tuple[int, ...], backend: str) -> None:
    """Wrong: a vector of scales is broadcast over the logits."""
    with pytest.raises(ValueError, match="logit_scale") as error:
        _losses(backend)[name](_features(4, 3), _features(4, 3), torch.ones(shape))
    assert str(list(shape)) in str(error.value)


@scaled_loss
@pytest.mark.parametrize("value", ["14.3", None, [1.0]], ids=str)
def test_scale_is_not_a_number(name: str, value: object, backend: str) -> None:
    """Wrong: a string or None as scale ends in an error that does not name it."""
    with pytest.raises(TypeError, match="logit_scale"):
        _losses(backend)[name](_features(4, 3), _features(4, 3), value)


@scaled_loss
def test_scale_on_another_device(name: str, backend: str) -> None:
    """Wrong: a scale left on another device is not named."""
    with pytest.raises(ValueError, match="logit_scale"):
        _losses(backend)[name](_features(4, 3), _features(4, 3), torch.ones((), device="meta"))


@scaled_loss
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64], ids=str)
def test_scale_of_wrong_dtype(name: str, dtype: torch.dtype, backend: str) -> None:
    """Wrong: an integer or complex scale tensor is accepted, though it can have no gradient."""
    with pytest.raises(TypeError, match="logit_scale"):
        _losses(backend)[name](_features(4, 3), _features(4, 3), torch.ones((), dtype=dtype))


def test_sigmoid_needs_its_bias(backend: str) -> None:
    """Wrong: SigLIPLoss called as CLIPLoss fails without naming logit_bias."""
    with pytest.raises((TypeError, ValueError), match="logit_bias"):
        cyclip_ext.SigLIPLoss(backend=backend)(_features(4, 3), _features(4, 3), 1.0)


@pytest.mark.parametrize("reduction", ["sum", "none", None], ids=str)
def test_unknown_reduction(reduction: object, backend: str) -> None:
    """Wrong: a misspelt reduction falls through to some other one."""
    with pytest.raises(ValueError, match=r"reduction.*batchmean") as error:
        functional.cycle_consistency(
            _features(4, 3), _features(4, 3), reduction=reduction, backend=backend
        )
    assert repr(reduction) in str(error.value)
    with pytest.raises(ValueError, match="reduction"):  # before the data is loaded, at any weights
        cyclip_ext.CyCLIPLoss(in_modal=0, cross_modal=0, reduction=reduction, backend=backend)


def test_unknown_backend(backend: str) -> None:
    """Wrong: a misspelt backend is taken for another; every name of a backend is in the message."""
    wrong = backend + "s"
    for name in set(_losses(wrong)) - {"margin"}:  # linear in every backend: takes no such argument
        with pytest.raises(ValueError, match=r"backend.*native.*reference") as error:
            _losses(wrong)[name](_features(4, 3), _features(4, 3))
        assert repr(wrong) in str(error.value)
    for module in (cyclip_ext.CLIPLoss, cyclip_ext.CyCLIPLoss, cyclip_ext.SigLIPLoss):
        with pytest.raises(ValueError, match="backend"):
            module(backend=wrong)


@needs_native
def test_operators_check_for_themselves(backend: str) -> None:
    """Wrong: calling an operator directly with mismatched features reads outside of them."""
    ops, one = torch.ops.cyclip_ext, torch.ones(())
    for image, text in (((4, 3), (4, 2)), ((4,), (4, 3)), ((0, 3), (4, 3))):
        for call in (
            lambda x, y: ops.pair_statistics(x, y, one),
            lambda x, y: ops.sigmoid_rows(x, y, one, one),
            ops.cycle_grams,
            ops.cycle_direct,
        ):
            with pytest.raises((RuntimeError, ValueError), match="_features"):
                call(_features(*image), _features(*text))
    for call in ops.cycle_grams, ops.cycle_direct:
        with pytest.raises((RuntimeError, ValueError), match=r"4, 3.*5, 3"):
            call(_features(4, 3), _features(5, 3))
