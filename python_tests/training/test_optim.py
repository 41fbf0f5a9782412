"""Schedule, decay groups, temperature."""

import math

import pytest
import torch

from cyclip_ext.training.config import OptimConfig
from cyclip_ext.training.optim import (
    clamp_logit_scale,
    fix_logit_scale,
    learning_rate,
    make_optimizer,
    parameter_groups,
    set_learning_rate,
)

from .parts import create_tiny


def test_warmup_begins_with_the_first_step() -> None:
    # A counter that starts an epoch late, or at zero, would skip the warmup or waste a step.
    config = OptimConfig(lr=1.0, warmup=4)
    assert [learning_rate(step, 12, config) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_cosine_after_warmup() -> None:
    config = OptimConfig(lr=2.0, warmup=4)
    assert learning_rate(4, 12, config) == 2.0
    assert learning_rate(8, 12, config) == pytest.approx(1.0)
    assert learning_rate(11, 12, config) == pytest.approx(1 + math.cos(math.pi * 7 / 8))
    assert learning_rate(12, 12, config) == pytest.approx(0)
    assert learning_rate(0, 12, OptimConfig(lr=2.0, warmup=0)) == 2.0


def test_no_decay_on_norms_biases_and_temperature() -> None:
    model = create_tiny(sigmoid=True).model
    groups = parameter_groups(model, OptimConfig(wd=0.3, logit_scale_lr=10))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [{names[id(p)] for p in group["params"]} for group in groups]  # type: ignore[attr-defined]
    decayed, plain, temperature = found
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0, 0.0]
    assert temperature == {"logit_scale"}
    assert "logit_bias" in plain
    assert all("norm" in name or "bias" in name or "shortcut.1" in name for name in plain)
    assert not any("norm" in name or name.endswith("bias") for name in decayed)
    assert set.union(*found) == set(names.values())


def test_temperature_has_its_own_rate() -> None:
    model = create_tiny().model
    optimizer = make_optimizer(model, OptimConfig(logit_scale_lr=10))
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5, 5.0]


def test_temperature_is_clamped_on_both_sides() -> None:
    model = create_tiny().model
    for stored, expected in ((9.0, math.log(100)), (-1.0, 0.0), (2.5, 2.5)):
        with torch.no_grad():
            model.logit_scale.fill_(stored)  # type: ignore[operator]
        clamp_logit_scale(model)
        assert model.logit_scale.item() == pytest.approx(expected)  # type: ignore[operator]


def test_fixed_temperature_is_in_no_group() -> None:
    model = create_tiny().model
    fix_logit_scale(model, 100)
    assert model.logit_scale.exp().item() == pytest.approx(100)  # type: ignore[operator]
    assert len(parameter_groups(model, OptimConfig())) == 2
