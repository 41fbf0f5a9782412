"""MatryoshkaLoss: nested widths."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from cyclip_ext import CLIPLoss, CyCLIPLoss, MatryoshkaLoss

from .inputs import gradients, make_features
from .ranks import World

SCALE, BIAS = 7.0, -3.0
X = torch.ones(4, 3)


def test_matryoshka_is_the_weighted_sum_over_prefixes(backend: str) -> None:
    x, y = (t.requires_grad_() for t in make_features("random", 6, 8))
    inner = CyCLIPLoss(hinge=0.1, backend=backend, statistics=True)
    v, u = make_features("random", 3, 8, seed=5)
    u = u[:2]
    more = {"negative_text_features": u, "negative_image_features": v}
    loss = MatryoshkaLoss(inner, widths=(2, 5, 8), weights=(1.0, 0.5, 2.0))
    terms = loss(x, y, SCALE, BIAS, output_dict=True, **more)
    expected = sum(
        weight
        * inner(
            x[:, :width], y[:, :width], SCALE, BIAS,
            negative_text_features=u[:, :width], negative_image_features=v[:, :width],
        )
        for width, weight in ((2, 1.0), (5, 0.5), (8, 2.0))
    )  # fmt: skip
    total = loss(x, y, SCALE, BIAS, **more)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(gradients(total, [x, y]), gradients(expected, [x, y]))
    summed = sum(value for name, value in terms.items() if name.endswith("_loss"))
    torch.testing.assert_close(summed, total)
    assert {"contrastive_2_loss", "in_modal_5_loss", "hinge_8_loss", "image_margin_5"} <= set(terms)


def test_matryoshka_rejects_wrong_widths() -> None:
    for widths, weights in (((), None), ((4, 4), None), ((0, 4), None), ((2, 4), (1.0,))):
        with pytest.raises(ValueError, match=r"widths|weights"):
            MatryoshkaLoss(CLIPLoss(), widths, weights)
    with pytest.raises(ValueError, match=r"must not exceed the features' width 3, got \(2, 4\)"):
        MatryoshkaLoss(CLIPLoss(), (2, 4))(X, X, 1.0)


@pytest.mark.parametrize(
    ("text", "further", "message"),
    [
        (X[:, :2], None, "must have the same width d, got [4, 3] and [4, 2]"),
        (X[0], None, "text_features must be [N, d], one embedding per row, got shape [3]"),
        (X, X[:, :2], "negative_text_features must have the same width d, got [4, 3] and [4, 2]"),
        (X, X[0], "negative_text_features must be [N, d], one embedding per row, got shape [3]"),
    ],
)
def test_matryoshka_raises_for_features_that_do_not_fit(
    text: Tensor, further: Tensor | None, message: str
) -> None:
    """Their prefixes would."""
    with pytest.raises(ValueError, match=re.escape(message)):
        MatryoshkaLoss(CLIPLoss(), (1, 2))(X, text, 1.0, negative_text_features=further)


def _matryoshka_of_narrow_features(rank: int, narrow: tuple[int, ...]) -> str:
    x = X[:, :1] if rank in narrow else X
    with pytest.raises(ValueError, match="width") as error:
        MatryoshkaLoss(CLIPLoss(group="world"), (1, 2))(x, x, 1.0)
    return str(error.value)


@pytest.mark.parametrize("narrow", [(0,), (0, 1)])
@pytest.mark.parametrize("world", [2], indirect=True)
def test_matryoshka_of_narrow_features_raises_on_all_ranks(
    world: World, narrow: tuple[int, ...]
) -> None:
    messages = world.results(_matryoshka_of_narrow_features, narrow)
    beginning = "image_features" if len(narrow) == 1 else "widths must not exceed"
    assert all(message.startswith(beginning) for message in messages)
