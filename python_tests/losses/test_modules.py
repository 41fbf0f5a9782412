"""The nn.Modules: one call for all of them, open_clip's dictionary, weights and statistics."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch import Tensor

import cyclip_ext
from cyclip_ext import reference

from .inputs import make_features

STATISTICS = {
    "positive_similarity",
    "image_margin",
    "text_margin",
    "image_accuracy",
    "text_accuracy",
}
WEIGHTS = {"in_modal": 0.3, "cross_modal": 0.2, "margin": 0.1, "hinge": 0.4}
KEY = {name: f"{name}_loss" for name in WEIGHTS}


def _terms(image: Tensor, text: Tensor) -> dict[str, Tensor]:
    return {
        "in_modal": reference.in_modal_loss(image, text),
        "cross_modal": reference.cross_modal_loss(image, text),
        "margin": reference.margin_loss(image, text),
        "hinge": reference.hinge_margin_loss(image, text),
    }


def _modules(backend: str, **options: bool) -> dict[str, torch.nn.Module]:
    return {
        "CLIPLoss": cyclip_ext.CLIPLoss(backend=backend, **options),
        "CyCLIPLoss": cyclip_ext.CyCLIPLoss(margin=0.1, hinge=0.2, backend=backend, **options),
        "SigLIPLoss": cyclip_ext.SigLIPLoss(backend=backend, **options),
    }


MODULES = list(_modules("auto"))


@pytest.mark.parametrize(
    "off", [(), ("in_modal",), ("cross_modal",), ("margin",), ("hinge",), tuple(WEIGHTS)], ids=str
)
def test_dictionary_holds_the_weighted_terms(off: tuple[str, ...], backend: str) -> None:
    image, text = make_features("random", 7, 5)
    weights = {name: 0.0 if name in off else weight for name, weight in WEIGHTS.items()}
    loss = cyclip_ext.CyCLIPLoss(**weights, backend=backend)
    parts = loss(image, text, torch.tensor(9.0).double(), output_dict=True)
    assert list(parts) == ["contrastive_loss", *(KEY[n] for n in WEIGHTS if n not in off)]
    for name, value in _terms(image, text).items():
        if name not in off:
            torch.testing.assert_close(parts[KEY[name]], weights[name] * value)
    total = loss(image, text, torch.tensor(9.0).double())
    torch.testing.assert_close(sum(parts.values()), total, rtol=1e-12, atol=0)
    torch.testing.assert_close(total, reference.cyclip_loss(image, text, 9.0, **weights))


def test_defaults_are_the_papers(backend: str) -> None:
    image, text = make_features("random", 7, 5)
    loss = cyclip_ext.CyCLIPLoss(backend=backend)
    torch.testing.assert_close(
        loss(image, text, 9.0),
        reference.contrastive_loss(image, text, 9.0)
        + 0.25 * reference.in_modal_loss(image, text)
        + 0.25 * reference.cross_modal_loss(image, text),
    )
    assert list(loss(image, text, 9.0, output_dict=True)) == [
        "contrastive_loss",
        "in_modal_loss",
        "cross_modal_loss",
    ]


def test_sum_of_the_dictionary_has_the_gradients_of_the_loss(backend: str) -> None:
    """open_clip's trainer sums the entries of the dictionary."""
    loss = _modules(backend, statistics=True)["CyCLIPLoss"]
    gradients = []
    for as_dict in False, True:
        image, text = make_features("random", 7, 5)
        leaves = [t.requires_grad_() for t in (image, text, torch.tensor(9.0).double())]
        value = loss(*leaves, output_dict=as_dict)
        if as_dict:
            value = sum(v for key, v in value.items() if key.endswith("_loss"))
        value.backward()
        gradients.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)


def test_clip_and_siglip_match_reference(backend: str) -> None:
    image, text = make_features("random", 7, 5)
    for loss, expected in (
        (cyclip_ext.CLIPLoss(backend=backend), reference.contrastive_loss(image, text, 9.0)),
        (cyclip_ext.SigLIPLoss(backend=backend), reference.sigmoid_loss(image, text, 9.0, -5.0)),
    ):
        torch.testing.assert_close(loss(image, text, 9.0, -5.0), expected)
        terms = loss(image, text, 9.0, -5.0, output_dict=True)
        torch.testing.assert_close(terms, {"contrastive_loss": expected})


@pytest.mark.parametrize("module", ["CLIPLoss", "CyCLIPLoss"])
def test_softmax_losses_give_the_bias_the_gradient_zero(module: str, backend: str) -> None:
    """DistributedDataParallel waits for the gradient of every parameter."""
    image, text = make_features("random", 7, 5)
    loss = _modules(backend)[module]
    for value in -5.0, torch.nan, torch.inf:
        for output_dict in False, True:
            bias = torch.tensor(value, requires_grad=True)
            actual = loss(image, text, 9.0, bias, output_dict)
            torch.testing.assert_close(actual, loss(image, text, 9.0, None, output_dict))
            (actual["contrastive_loss"] if output_dict else actual).backward()
            assert bias.grad == 0


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("kind", ["random", "aligned", "modality_gap", "ties", "zero_rows"])
def test_statistics_match_loops(module: str, kind: str, backend: str) -> None:
    n = 9
    leaves = [t.requires_grad_() for t in make_features(kind, n, 5)]
    parts = _modules(backend, statistics=True)[module](*leaves, 9.0, -5.0, output_dict=True)
    statistics = {key: value for key, value in parts.items() if not key.endswith("_loss")}
    assert statistics.keys() == STATISTICS
    assert all(v.shape == () and not v.requires_grad for v in statistics.values())
    sim = reference.similarity(*leaves).tolist()
    margins = {
        "image": [sim[i][i] - max(sim[i][j] for j in range(n) if j != i) for i in range(n)],
        "text": [sim[i][i] - max(sim[j][i] for j in range(n) if j != i) for i in range(n)],
    }
    expected = {"positive_similarity": sum(sim[i][i] for i in range(n)) / n}
    for side, values in margins.items():
        expected[f"{side}_margin"] = sum(values) / n
        expected[f"{side}_accuracy"] = sum(v > 0 for v in values) / n  # a tie is not a hit
    for key, value in expected.items():
        assert statistics[key].item() == pytest.approx(value, rel=1e-6, abs=1e-6), key  # float32


@pytest.mark.parametrize("module", MODULES)
def test_statistics_leave_the_loss_alone(module: str, backend: str) -> None:
    image, text = make_features("random", 9, 5)
    values = [
        _modules(backend, statistics=asked)[module](image, text, 9.0, -5.0)
        for asked in (False, True)
    ]
    assert torch.equal(*values)


def test_losses_replace_those_of_open_clip(backend: str) -> None:
    open_clip_loss = pytest.importorskip("open_clip.loss", exc_type=ImportError)
    image, text = make_features("random", 9, 5, dtype=torch.float32)
    model_out = {
        "image_features": torch.nn.functional.normalize(image, dim=1),
        "text_features": torch.nn.functional.normalize(text, dim=1),
        "logit_scale": torch.tensor(14.3),
    }
    expected = open_clip_loss.ClipLoss()(**model_out, output_dict=True)
    actual = cyclip_ext.CLIPLoss(backend=backend)(**model_out, output_dict=True)
    torch.testing.assert_close(actual, expected)
    model_out["logit_bias"] = torch.tensor(-5.0)
    expected = open_clip_loss.SigLipLoss()(**model_out, output_dict=True)
    actual = cyclip_ext.SigLIPLoss(backend=backend)(**model_out, output_dict=True)
    assert sum(actual.values()).item() == pytest.approx(sum(expected.values()).item(), rel=1e-5)


@pytest.mark.parametrize("module", MODULES)
def test_losses_are_stateless(module: str, backend: str) -> None:
    loss = _modules(backend)[module]
    assert not list(loss.parameters())
    assert not loss.state_dict()
    image, text = make_features("random", 9, 5)
    expected = loss(image, text, 9.0, -5.0)
    for other in copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)):
        assert torch.equal(other(image, text, 9.0, -5.0), expected)
    assert torch.equal(loss.eval()(image, text, 9.0, -5.0), expected)


KINDS = [cyclip_ext.CLIPLoss, cyclip_ext.CyCLIPLoss, cyclip_ext.SigLIPLoss]


@pytest.mark.parametrize("kind", KINDS)
def test_repr_lists_every_argument_of_the_constructor(kind: type[torch.nn.Module]) -> None:
    names = set(inspect.signature(kind).parameters) - {"options"}
    text = repr(kind(backend="reference", group="world"))
    assert text.startswith(kind.__name__)
    assert not [name for name in names if f"{name}=" not in text]
    assert "backend='reference'" in text
    assert "group='world'" in text


def test_losses_are_siblings() -> None:
    for kind in KINDS:
        assert [isinstance(kind(), other) for other in KINDS].count(True) == 1


@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
def test_weights_for_another_batch_size_keep_the_weight_of_a_pair(reduction: str) -> None:
    """The cosines of the two towers differ by the same number for all pairs."""

    def cycle_loss(n: int) -> Tensor:
        weights = {"in_modal": 0.3, "cross_modal": 0.1}
        loss = cyclip_ext.CyCLIPLoss.for_batch(n, 16, reduction=reduction, **weights)
        image = torch.cat([torch.eye(n), torch.ones(n, 1)], dim=1).double()
        text = torch.cat([torch.eye(n), 2 * torch.ones(n, 1)], dim=1).double()
        return loss(image, text, 1.0, output_dict=True)["in_modal_loss"]

    expected = cycle_loss(16)
    assert expected > 0
    for n in 2, 5, 40:
        torch.testing.assert_close(cycle_loss(n), expected)
    same = cyclip_ext.CyCLIPLoss.for_batch(128)
    assert (same.in_modal, same.cross_modal) == (0.25, 0.25)
    with pytest.raises(ValueError, match="batch_size must be at least 2, got 1"):
        cyclip_ext.CyCLIPLoss.for_batch(1)
