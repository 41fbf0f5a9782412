"""The losses in transformers' Trainer, for models that return image_embeds and text_embeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import Trainer

from ..losses import CLIPLoss, SigLIPLoss


def dual_encoder_loss(
    model: nn.Module, outputs: Mapping[str, Any], criterion: nn.Module | None = None
) -> Tensor:
    """Return the loss of a dual encoder's outputs.

    Args:
        model: CLIPModel, SiglipModel, VisionTextDualEncoderModel or another model with a parameter
            `logit_scale`, the logarithm of the scale, and perhaps `logit_bias`; not wrapped.
        outputs: of the model, with `image_embeds` and `text_embeds`, both [N, d]; `return_loss` is
            not needed.
        criterion: a loss of cyclip_ext.losses. None: that of the model, over the pairs of all
            ranks, which is SigLIPLoss(group="world") for a model with a bias and
            CLIPLoss(group="world") for others.

    Raises: ValueError naming what the model or its outputs lack.
    """
    missing = [name for name in ("image_embeds", "text_embeds") if outputs.get(name) is None]
    if missing:
        raise ValueError(
            f"outputs must have image_embeds and text_embeds, got {', '.join(outputs)} of "
            f"{type(model).__name__}; give the model images and texts"
        )
    log_scale = getattr(model, "logit_scale", None)
    if log_scale is None:
        raise ValueError(
            f"model must have a logit_scale, got {type(model).__name__}; call a loss of "
            "cyclip_ext.losses with its own scale"
        )
    bias = getattr(model, "logit_bias", None)
    if criterion is None:
        criterion = CLIPLoss(group="world") if bias is None else SigLIPLoss(group="world")
    features = outputs["image_embeds"], outputs["text_embeds"]
    loss: Tensor = criterion(*features, log_scale.exp(), bias)
    return loss


class FusedLossTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose loss is `dual_encoder_loss`.

    With several processes, the loss is that of the pairs of all of them, and the gradient that
    DistributedDataParallel averages is exact. Evaluation returns the loss as `eval_loss`.

    Args:
        arguments: of transformers.Trainer.
        criterion: a loss of cyclip_ext.losses; see `dual_encoder_loss`.
    """

    loss_is_scaled_for_ga = False  # a mean over the batch, which gradient accumulation divides

    def __init__(self, *arguments: Any, criterion: nn.Module | None = None, **others: Any) -> None:
        super().__init__(*arguments, **others)
        self.criterion = criterion
        self.can_return_loss = True  # also without labels

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Return the loss of a batch, and the outputs of the model if they are requested."""
        inputs = {name: value for name, value in inputs.items() if name != "return_loss"}
        outputs = model(**inputs)
        loss = dual_encoder_loss(self.accelerator.unwrap_model(model), outputs, self.criterion)
        return (loss, outputs) if return_outputs else loss
