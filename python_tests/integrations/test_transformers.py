"""The losses equal those of transformers' own models, alone and in the Trainer."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from losses.ranks import World
from torch import Tensor

import cyclip_ext

pytest.importorskip("transformers")

import transformers

from cyclip_ext.integrations.transformers import FusedLossTrainer, dual_encoder_loss

TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
TEXT = {**TOWER, "vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 49}
VISION = {**TOWER, "image_size": 8, "patch_size": 4}
TOWERS = {"text_config": TEXT, "vision_config": VISION}


def create(name: str) -> Any:
    """Return a model of random weights."""
    torch.manual_seed(0)
    if name == "clip":
        return transformers.CLIPModel(transformers.CLIPConfig(**TOWERS, projection_dim=12))
    if name == "siglip":
        return transformers.SiglipModel(transformers.SiglipConfig(**TOWERS))
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        transformers.CLIPVisionConfig(**VISION), transformers.BertConfig(**TEXT), projection_dim=12
    )
    return transformers.VisionTextDualEncoderModel(config)


def pairs(count: int = 24) -> list[dict[str, Tensor]]:
    torch.manual_seed(1)
    images, tokens = torch.randn(count, 3, 8, 8), torch.randint(1, 49, (count, 8))
    tokens[:, -1] = 49
    return [
        {"pixel_values": image, "input_ids": row} for image, row in zip(images, tokens, strict=True)
    ]


def stack(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Any]:
    """Return a batch that makes the models compute their own loss, as the Trainer needs it."""
    return {**stack(rows), "return_loss": True}


@pytest.mark.parametrize("name", ["clip", "siglip", "dual_encoder"])
def test_loss_and_gradients_are_the_models_own(name: str) -> None:
    results = []
    for fused in False, True:
        model = create(name).eval()  # BERT has dropout
        outputs = model(**collate(pairs()))
        loss = dual_encoder_loss(model, outputs) if fused else outputs.loss
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


def train(
    kind: type[Any],
    folder: Path,
    name: str = "clip",
    batch: int = 4,
    steps: int = 2,
    **options: Any,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the metrics of an evaluation and the weights after steps of gradient descent."""
    model = create(name)
    arguments = transformers.TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=12,
        gradient_accumulation_steps=2,
        max_grad_norm=0,
        use_cpu=True,
        ddp_backend="gloo" if "RANK" in os.environ else None,
        report_to="none",
        save_strategy="no",
        remove_unused_columns=False,
    )
    trainer = kind(
        model,
        arguments,
        data_collator=collate if kind is transformers.Trainer else stack,
        train_dataset=pairs(),
        eval_dataset=pairs(),
        optimizers=(torch.optim.SGD(model.parameters(), lr=0.1), None),
        **options,
    )
    trainer.train()
    return trainer.evaluate(), {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_trainer_ends_with_the_same_weights(tmp_path: Path, name: str) -> None:
    """With gradient accumulation, by which the loss has to be divided."""
    expected, weights = train(transformers.Trainer, tmp_path, name)
    actual, fused_weights = train(FusedLossTrainer, tmp_path, name)
    assert actual["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)
    torch.testing.assert_close(fused_weights, weights, rtol=1e-4, atol=1e-6)


def test_trainer_takes_another_loss(tmp_path: Path) -> None:
    criterion = cyclip_ext.CyCLIPLoss(0.5, 0.3)
    metrics, _ = train(FusedLossTrainer, tmp_path, criterion=criterion, steps=0)
    model = create("clip").eval()
    with torch.no_grad():
        losses = [
            dual_encoder_loss(model, model(**collate(rows)), criterion)
            for rows in (pairs()[:12], pairs()[12:])
        ]
    assert metrics["eval_loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def _train_on_a_rank(rank: int, folder: Path) -> dict[str, Tensor]:
    return train(FusedLossTrainer, folder, batch=4)[1]


def test_two_ranks_train_on_the_pairs_of_both(world: World, tmp_path: Path) -> None:
    """As one process with batches of twice the size."""
    _, expected = train(FusedLossTrainer, tmp_path, batch=8)
    for weights in world.results(_train_on_a_rank, tmp_path):
        torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)


def test_documented_usage(run_documented: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=1, use_cpu=True, report_to="none", remove_unused_columns=False
    )
    model, batch = create("clip"), {name: row[None] for name, row in pairs()[0].items()}
    values = {"model": model, "args": arguments, "pairs": pairs(), "collate": collate}
    values |= {"batch": batch, "criterion": cyclip_ext.CLIPLoss()}
    run_documented("transformers", **values)["trainer"].train()


def test_outputs_of_other_models_raise() -> None:
    model = create("clip")
    with pytest.raises(ValueError, match=r"image_embeds and text_embeds, got logits of CLIPModel"):
        dual_encoder_loss(model, {"logits": torch.zeros(2)})
    embeds = {"image_embeds": torch.ones(2, 3), "text_embeds": torch.ones(2, 3)}
    with pytest.raises(ValueError, match="logit_scale, got Linear"):
        dual_encoder_loss(torch.nn.Linear(2, 2), embeds)
