"""Locking stops the gradients, running statistics and random draws of one tower."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from torch import nn

from cyclip_ext.models import create_model
from cyclip_ext.models.locking import Tower, lock_tower, train_unlocked

VISION = {"image_size": 32, "width": 16, "head_width": 8, "patch_size": 8, "layers": 1}
RESNET = {"image_size": 32, "width": 8, "patch_size": None, "layers": [1, 1, 1, 1]}
TEXT = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}


@pytest.mark.parametrize("vision", [VISION, RESNET], ids=["ViT", "ResNet"])
@pytest.mark.parametrize("custom_text", [False, True])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_towers_of_open_clip_are_locked(
    open_clip: ModuleType, vision: dict[str, Any], custom_text: bool, tower: Tower
) -> None:
    kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    model: nn.Module = kind(embed_dim=16, vision_cfg=vision, text_cfg=TEXT)
    lock_tower(model, tower)
    train_unlocked(model)
    temperature = {"logit_scale", "logit_bias"}
    for name, parameter in model.named_parameters():
        of_image = name.startswith("visual.")
        expected = name in temperature or of_image != (tower == "image")
        assert parameter.requires_grad == expected, name
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training == (tower == "text")


def test_model_without_a_method_is_locked_by_its_names() -> None:
    model = create_model("mini", sigmoid=True, tokenizer="words").model
    lock_tower(model, "text")
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not name.startswith("text.")), name
