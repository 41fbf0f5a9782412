"""Error messages of the losses: the argument's name, the value received, and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cyclip_ext import CLIPLoss, CyCLIPLoss, MatryoshkaLoss, SigLIPLoss, functional

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
    (X.to_sparse(), X, TypeError, ["image_features", "sparse", "to_dense"]),
    (torch.nested.nested_tensor([X[0], X[1]]), X, TypeError, ["image_features", "nested"]),
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
    *((value, TypeError, type(value).__name__) for value in ("14.3", None, [1.0], True)),
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


def test_output_dict_in_the_place_of_the_bias_raises() -> None:
    """Older trainers pass output_dict as the fourth argument."""
    with pytest.raises(TypeError, match=r"logit_bias.*bool"):
        CLIPLoss()(X, X, 1.0, True)


NOT_NUMBERS = [("0.25", TypeError), (None, TypeError), (True, TypeError), (ONE, TypeError)]
NOT_FINITE = [(float("nan"), ValueError), (float("inf"), ValueError)]
USES_OF_NUMBERS: dict[str, Callable[[Any], object]] = {
    "in_modal": lambda value: functional.cycle_consistency(X, X, in_modal=value),
    "cross_modal": lambda value: functional.cycle_consistency(X, X, cross_modal=value),
    "hinge_margin": lambda value: functional.hinge_margin_loss(X, X, value),
    **{
        f"CyCLIPLoss {name}": lambda value, name=name: CyCLIPLoss(**{name: value})
        for name in ("in_modal", "cross_modal", "margin", "hinge", "hinge_margin")
    },
    "for_batch batch_size": CyCLIPLoss.for_batch,
    "MatryoshkaLoss weights": lambda value: MatryoshkaLoss(CLIPLoss(), [2], [value]),
}


@pytest.mark.parametrize("use", USES_OF_NUMBERS)
@pytest.mark.parametrize(("value", "exception"), NOT_NUMBERS + NOT_FINITE, ids=str)
def test_weight_that_is_no_finite_number_raises(
    use: str, value: object, exception: type[Exception]
) -> None:
    """None would silently be a weight of zero."""
    word = str(value) if exception is ValueError else type(value).__name__
    with pytest.raises(exception, match=rf"{use.split()[-1]} must be .* {word}"):
        USES_OF_NUMBERS[use](value)


UNKNOWN: dict[str, Callable[..., object]] = {
    "contrastive_loss": lambda **o: functional.contrastive_loss(X, X, 1.0, **o),
    "hinge_margin_loss": lambda **o: functional.hinge_margin_loss(X, X, **o),
    "sigmoid_loss": lambda **o: functional.sigmoid_loss(X, X, 1.0, 0.0, **o),
    "CLIPLoss": CLIPLoss,
    "SigLIPLoss": SigLIPLoss,
    "CyCLIPLoss": CyCLIPLoss,
}


@pytest.mark.parametrize("caller", UNKNOWN)
def test_unknown_keyword_raises(caller: str) -> None:
    """An option of another loss would otherwise be ignored."""
    of_another = "directions" if caller == "CyCLIPLoss" else "reduction"
    for name in "back_end", of_another:
        with pytest.raises(TypeError, match=rf"{caller}\(\).*'{name}'.*backend"):
            UNKNOWN[caller](**{name: "mean"})


@pytest.mark.parametrize("k", [2.0, None, True, "2"])
def test_k_that_is_no_integer_raises(k: object, backend: str) -> None:
    with pytest.raises(TypeError, match=f"k must be an int, got .*{type(k).__name__}"):
        functional.similarity_top_k(X, X, k, backend=backend)


@pytest.mark.parametrize(
    ("loss", "widths", "word"),
    [
        (CLIPLoss, [2], "loss"),
        (functional.contrastive_loss, [2], "loss"),
        (CLIPLoss(), [2.0], "widths"),
    ],
    ids=["class", "function", "float"],
)
def test_matryoshka_of_wrong_types_raises(loss: object, widths: list[object], word: str) -> None:
    with pytest.raises(TypeError, match=f"{word} must be"):
        MatryoshkaLoss(loss, widths)


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
