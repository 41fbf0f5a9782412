"""AdamW with decay on matrices only, the schedule, and the bounds of the temperature."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from ..models.locking import lock_tower
from .config import OptimConfig, TrainConfig

MIN_LOGIT_SCALE, MAX_LOGIT_SCALE = 1.0, 100.0  # Radford et al. 2021, section 2.5


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, object]]:
    """Return groups for AdamW, each with "lr_factor": decayed weights, the rest, the temperature.

    Parameters of two or more dimensions are decayed. Norms and biases have one, and shrinking them
    changes the scale of activations; temperature and bias of the logits have none or one.
    Parameters that take no gradient are in no group.
    """
    decayed, plain, temperature = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.split(".")[-1] == "logit_scale":
            temperature.append(parameter)
        elif parameter.ndim >= 2:
            decayed.append(parameter)
        else:
            plain.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.wd, "lr_factor": 1.0},
        {"params": plain, "weight_decay": 0.0, "lr_factor": 1.0},
        {"params": temperature, "weight_decay": 0.0, "lr_factor": config.logit_scale_lr},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """Return AdamW over `parameter_groups`. Call it after `hold_constant`."""
    return AdamW(
        parameter_groups(model, config),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Return the learning rate of step `step` of `steps`, counted from the first step, 0.

    Linear from lr/warmup at step 0 to lr at step warmup - 1, then half a cosine that would reach
    zero at step `steps`.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, steps - config.warmup)
    return config.lr * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of every group to its multiple of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]


def hold_constant(model: Any, config: TrainConfig, *, learns_temperature: bool) -> None:
    """Stop the gradients of what the settings or the loss hold constant."""
    if config.optim.logit_scale_fixed is not None:
        fix_logit_scale(model, config.optim.logit_scale_fixed)
    if config.loss.loss != "siglip" and getattr(model, "logit_bias", None) is not None:
        model.logit_bias.requires_grad_(False)  # it shifts all logits alike
    if not learns_temperature:
        model.logit_scale.requires_grad_(False)
    if config.run.lock_image:
        lock_tower(model, "image")
    if config.run.lock_text:
        lock_tower(model, "text")


def fix_logit_scale(model: Any, scale: float) -> None:
    """Hold the (exponentiated) logit scale at `scale`: it gets no gradient from now on."""
    with torch.no_grad():
        model.logit_scale.fill_(math.log(scale))
    model.logit_scale.requires_grad_(False)


def clamp_logit_scale(model: Any) -> None:
    """Keep the stored logarithm within [ln 1, ln 100]; call it after each optimizer step."""
    with torch.no_grad():
        model.logit_scale.clamp_(math.log(MIN_LOGIT_SCALE), math.log(MAX_LOGIT_SCALE))
