"""Error messages of the losses: the argument's name, the value received, and the remedy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cyclip_ext import CLIPLoss, CyCLIPLoss, SigLIPLoss, functional

from .inputs import FUNCTIONS, MODULES

Loss = Callable[..., Tensor]


X = torch.ones(4, 3)


CALLS: dict[str, Loss] = FUNCTIONS | MODULES

every_loss = pytest.mark.parametrize("name", CALLS)
scaled_loss = pytest.mark.parametrize("name", ["contrastive", "sigmoid", "CLIPLoss", "SigLIPLoss"])

BAD_FEATURES = [
    # (image_features, text_features, exception, words that the message must contain)
    (torch.ones(3), X, ValueError, ["image_features", "3"]),
    (X, torch.ones(4, 3, 2), ValueError, ["text_features", "4, 3, 2"]),
    (torch.ones(()), X, ValueError, ["image_features"]),
    (X, torch.ones(5, 3), ValueError, ["image_features", "text_features", "4, 3", "5, 3"]),
    (X, torch.ones(4, 2), ValueError, ["image_features", "text_features", "4, 3", "4, 2"]),
    (X[:0], X[:0], ValueError, ["image_features", "0, 3"]),
    (X[:, :0], X[:, :0], ValueError, ["image_features", "4, 0"]),
    (X, X.to("meta"), ValueError, ["image_features", "text_features", "cpu", "meta"]),
    (X.tolist(), X, TypeError, ["image_features", "list"]),
    (X, X.tolist(), TypeError, ["text_features", "list"]),
    *(
        case
        for dtype in (torch.int64, torch.bool, torch.complex64, torch.uint8)
        for case in (
            (X.to(dtype), X, TypeError, ["image_features", str(dtype)]),
            (X, X.to(dtype), TypeError, ["text_features", str(dtype)]),
        )
    ),
]


@every_loss
@pytest.mark.parametrize(("image", "text", "exception", "words"), BAD_FEATURES)
def test_bad_features_raise(
    name: str, image: object, text: object, exception: type, words: list[str], backend: str
) -> None:
    with pytest.raises(exception) as error:
        CALLS[name](image, text, backend=backend)
    assert all(word in str(error.value) for word in words)


ONE = torch.ones(())
BAD_SCALES = [
    *((torch.ones(shape), ValueError, str(list(shape))) for shape in ((2,), (4, 1), (0,))),
    *((value, TypeError, "") for value in ("14.3", None, [1.0])),
    (ONE.to("meta"), ValueError, "meta"),
    (ONE.long(), TypeError, "int64"),  # it could not have a gradient
    (ONE.to(torch.complex64), TypeError, "complex64"),
]


@scaled_loss
@pytest.mark.parametrize(("scale", "exception", "word"), BAD_SCALES)
def test_bad_scale_raises(
    name: str, scale: object, exception: type, word: str, backend: str
) -> None:
    with pytest.raises(exception, match="logit_scale") as error:
        CALLS[name](X, X, scale, backend=backend)
    assert word in str(error.value)


def test_sigmoid_loss_without_bias_raises(backend: str) -> None:
    with pytest.raises((TypeError, ValueError), match="logit_bias"):
        SigLIPLoss(backend=backend)(X, X, 1.0)


@pytest.mark.parametrize("reduction", ["sum", "none", None], ids=str)
def test_unknown_reduction_raises(reduction: object, backend: str) -> None:
    with pytest.raises(ValueError, match=r"reduction.*batchmean") as error:
        functional.cycle_consistency(X, X, reduction=reduction, backend=backend)
    assert repr(reduction) in str(error.value)
    with pytest.raises(ValueError, match="reduction"):  # before the data is loaded, at any weights
        CyCLIPLoss(in_modal=0, cross_modal=0, reduction=reduction, backend=backend)


def test_unknown_backend_raises(backend: str) -> None:
    wrong = backend + "s"
    for name in set(CALLS) - {"margin"}:  # linear in every backend: takes no such argument
        with pytest.raises(ValueError, match=r"backend.*native.*reference") as error:
            CALLS[name](X, X, backend=wrong)
        assert repr(wrong) in str(error.value)
    for module in CLIPLoss, CyCLIPLoss, SigLIPLoss:
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
                call(torch.ones(image), torch.ones(text))
    for call in ops.cycle_grams, ops.cycle_direct:
        with pytest.raises((RuntimeError, ValueError), match=r"4, 3.*5, 3"):
            call(X, torch.ones(5, 3))
