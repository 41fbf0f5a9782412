"""Gradient checkpointing: less memory, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

from cyclip_ext.models import ImageConfig, MiniCLIP, TextConfig


def _model(checkpointed: bool) -> MiniCLIP:
    torch.manual_seed(0)
    model = MiniCLIP(
        16,
        ImageConfig(image_size=32, widths=(8, 16, 24)),
        TextConfig(context_length=6, vocab_size=32, width=8, heads=2, layers=3),
        init_logit_scale=1.0,
    )
    model.set_grad_checkpointing(checkpointed)
    return model


def _loss(model: MiniCLIP) -> torch.Tensor:
    torch.manual_seed(1)
    images, texts = torch.randn(5, 3, 32, 32), torch.randint(0, 32, (5, 6))
    image_features, text_features, logit_scale = model(images, texts).values()
    return (logit_scale * image_features @ text_features.T).logsumexp(1).sum()


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_and_running_statistics_are_the_same_to_the_bit(autocast: bool) -> None:
    plain, checkpointed = _model(False), _model(True)
    for _ in range(2):
        for model in plain, checkpointed:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = _loss(model)
            loss.backward()
    expected = {name: p.grad for name, p in plain.named_parameters()} | dict(plain.named_buffers())
    actual = {name: p.grad for name, p in checkpointed.named_parameters()}
    actual |= dict(checkpointed.named_buffers())
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name
    assert plain.visual.stem_norm.num_batches_tracked == 2


def test_two_forward_passes_and_one_backward() -> None:
    """With two views, a recomputed pass must not find tensors that have changed."""
    gradients = []
    for checkpointed in False, True:
        model = _model(checkpointed)
        (_loss(model) + _loss(model)).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        gradients.append(list(model.buffers()))
    for expected, actual in zip(
        gradients[0] + gradients[1], gradients[2] + gradients[3], strict=True
    ):
        assert torch.equal(actual, expected)


def _saved_bytes(model: MiniCLIP) -> int:
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = _loss(model)
    loss.backward()
    return sum(saved.values())


def test_fewer_activations_are_saved_until_it_is_switched_off() -> None:
    model = _model(False)
    plain = _saved_bytes(model)
    model.set_grad_checkpointing()
    assert _saved_bytes(model) < plain / 2
    model.set_grad_checkpointing(False)
    assert _saved_bytes(model) == pytest.approx(plain, rel=0.1)


@pytest.mark.slow
def test_compiled_towers_update_running_statistics_once() -> None:
    plain, checkpointed = _model(False), _model(True)
    _loss(plain).backward()
    _loss(torch.compile(checkpointed, backend="aot_eager")).backward()
    for expected, actual in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad)
    for expected, actual in zip(plain.buffers(), checkpointed.buffers(), strict=True):
        torch.testing.assert_close(actual, expected)
