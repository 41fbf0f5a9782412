"""Error messages of the losses: the argument's name, the value received, and the remedy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cyclip_ext import CLIPLoss, CyCLIPLoss, SigLIPLoss, functional

from .inputs import FUNCTIONS

Loss = Callable[..., Tensor]


def _features(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.ones(shape, dtype=dtype, device=device)


def _module(kind: type[nn.Module]) -> Loss:
    return lambda x, y, s=1.0, b=-5.0, backend="auto": kind(backend=backend)(x, y, s, b)


MODULES = {kind.__name__: kind for kind in (CLIPLoss, CyCLIPLoss, SigLIPLoss)}
CALLS: dict[str, Loss] = FUNCTIONS | {name: _module(kind) for name, kind in MODULES.items()}

every_loss = pytest.mark.parametrize("name", CALLS)
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
def test_bad_shape_raises(name: str, case: str, backend: str) -> None:
    image, text, exception, words = BAD_FEATURES[case]
    with pytest.raises(exception) as error:
        CALLS[name](_features(*image), _features(*text), backend=backend)
    for word in words:
        assert word in str(error.value)


@every_loss
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.uint8], ids=str)
@pytest.mark.parametrize("argument", ["image_features", "text_features"])
def test_dtype_that_is_not_floating_raises(
    name: str, argument: str, dtype: torch.dtype, backend: str
) -> None:
    features = {"image_features": _features(4, 3), "text_features": _features(4, 3)}
    features[argument] = features[argument].to(dtype)
    with pytest.raises(TypeError, match=argument) as error:
        CALLS[name](*features.values(), backend=backend)
    assert str(dtype) in str(error.value)


@every_loss
@pytest.mark.parametrize("argument", ["image_features", "text_features"])
def test_features_that_are_not_a_tensor_raise(name: str, argument: str, backend: str) -> None:
    features = {"image_features": _features(4, 3), "text_features": _features(4, 3)}
    features[argument] = [[1.0, 2.0, 3.0]] * 4
    with pytest.raises(TypeError, match=argument) as error:
        CALLS[name](*features.values(), backend=backend)
    assert "list" in str(error.value)


@every_loss
def test_towers_on_two_devices_raise(name: str, backend: str) -> None:
    with pytest.raises(ValueError, match=r"image_features.*text_features") as error:
        CALLS[name](_features(4, 3), _features(4, 3, device="meta"), backend=backend)
    for device in "cpu", "meta":
        assert device in str(error.value)


@scaled_loss
@pytest.mark.parametrize("shape", [(2,), (4, 1), (0,)])
def test_vector_of_scales_raises(name: str, shape: tuple[int, ...], backend: str) -> None:
    with pytest.raises(ValueError, match="logit_scale") as error:
        CALLS[name](_features(4, 3), _features(4, 3), torch.ones(shape), backend=backend)
    assert str(list(shape)) in str(error.value)


@scaled_loss
@pytest.mark.parametrize("value", ["14.3", None, [1.0]], ids=str)
def test_scale_that_is_not_a_number_raises(name: str, value: object, backend: str) -> None:
    with pytest.raises(TypeError, match="logit_scale"):
        CALLS[name](_features(4, 3), _features(4, 3), value, backend=backend)


@scaled_loss
def test_scale_on_another_device_raises(name: str, backend: str) -> None:
    with pytest.raises(ValueError, match="logit_scale"):
        CALLS[name](
            _features(4, 3), _features(4, 3), torch.ones((), device="meta"), backend=backend
        )


@scaled_loss
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64], ids=str)
def test_scale_of_wrong_dtype_raises(name: str, dtype: torch.dtype, backend: str) -> None:
    """An integer scale cannot have a gradient."""
    with pytest.raises(TypeError, match="logit_scale"):
        CALLS[name](_features(4, 3), _features(4, 3), torch.ones((), dtype=dtype), backend=backend)


def test_sigmoid_loss_without_bias_raises(backend: str) -> None:
    with pytest.raises((TypeError, ValueError), match="logit_bias"):
        SigLIPLoss(backend=backend)(_features(4, 3), _features(4, 3), 1.0)


@pytest.mark.parametrize("reduction", ["sum", "none", None], ids=str)
def test_unknown_reduction_raises(reduction: object, backend: str) -> None:
    with pytest.raises(ValueError, match=r"reduction.*batchmean") as error:
        functional.cycle_consistency(
            _features(4, 3), _features(4, 3), reduction=reduction, backend=backend
        )
    assert repr(reduction) in str(error.value)
    with pytest.raises(ValueError, match="reduction"):  # before the data is loaded, at any weights
        CyCLIPLoss(in_modal=0, cross_modal=0, reduction=reduction, backend=backend)


def test_unknown_backend_raises(backend: str) -> None:
    wrong = backend + "s"
    for name in set(CALLS) - {"margin"}:  # linear in every backend: takes no such argument
        with pytest.raises(ValueError, match=r"backend.*native.*reference") as error:
            CALLS[name](_features(4, 3), _features(4, 3), backend=wrong)
        assert repr(wrong) in str(error.value)
    for module in MODULES.values():
        with pytest.raises(ValueError, match="backend"):
            module(backend=wrong)


@pytest.mark.native
def test_operators_check_their_arguments() -> None:
    """Called directly, they would read outside of mismatched features."""
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
