"""Objectives that are known to be worse, for comparison with the better ones.

Chen et al. 2024 (arXiv 2310.00927) regularize only the positive pairs, and name regression of one
tower on the other as a loss that does not lead to zero-shot transfer. The objectives are plain
PyTorch, because they are O(N d). They also show how to train with your own loss:
`run_training(objective=...)`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.functional import normalize

from cyclip_ext.training.config import TrainConfig
from cyclip_ext.training.objective import Objective, make_objective

ABLATIONS = ("square", "both-sided", "negative-only")


def make_ablation(
    name: str, config: TrainConfig, pairs: int, group: ProcessGroup | None = None
) -> Objective:
    """Return the objective called `name` in ABLATIONS, or that of the settings if it is "".

    "square" replaces the loss. "both-sided" adds the mean cosine of negatives to the loss of the
    settings, with the weight of their margin; "negative-only" adds it in place of the margin.
    """
    if not name:
        return make_objective(config, pairs, group)
    if name == "square":
        weights = {"square_loss": 1.0}
        return Objective(SquareLoss(group), weights, "square loss", learns_temperature=False)
    weight = config.loss.margin
    if name == "negative-only":
        config = replace(config, loss=replace(config.loss, margin=0.0))
    base = make_objective(config, pairs, group)
    label = config.updated({"margin": 0.0}).label() + f" + {name} margin {weight:g}"
    weights = {**base.weights, "negatives_loss": weight}
    return Objective(NegativesLoss(base.loss, weight, group), weights, label)


class SquareLoss(nn.Module):
    """1/N sum_i |x_i - y_i|^2 on raw features; it does not depend on the temperature.

    Source: Chen et al. 2024, the negative example; `cyclip_ext.reference.square_loss`.
    """

    def __init__(self, group: ProcessGroup | None = None) -> None:
        super().__init__()
        self.group = group

    def forward(
        self,
        image_features: Tensor,  # [n, d]
        text_features: Tensor,  # [n, d]
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = True,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return {"square_loss": scalar}; it has no negatives that `labels` could mask."""
        wide = torch.promote_types(image_features.dtype, torch.float32)
        squares = (image_features.to(wide) - text_features.to(wide)).square().sum(dim=-1)
        pairs = sum_of_all(squares.new_tensor(float(len(squares))), self.group)
        return {"square_loss": sum_of_all(squares.sum(), self.group) / pairs}


class NegativesLoss(nn.Module):
    """Another loss plus weight times the mean cosine of negative pairs, as "negatives_loss".

    L_neg = 1/(N (N-1)) sum_{i != j} S_ij, or 0 for a single pair. Together with the one-sided
    margin of the same weight it is the both-sided one:
    weight (1 - mean positive + mean negative cosine).
    """

    def __init__(self, loss: nn.Module, weight: float, group: ProcessGroup | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.weight = weight
        self.group = group

    def forward(
        self,
        image_features: Tensor,  # [n, d]
        text_features: Tensor,  # [n, d]
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = True,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the terms by name, independently of `output_dict`; `labels` are for `loss`."""
        features = image_features, text_features
        own = {"output_dict": True, "labels": labels}
        terms: dict[str, Tensor] = self.loss(*features, logit_scale, logit_bias, **own)
        negatives = self.weight * mean_negative(*features, self.group)
        terms["negatives_loss"] = negatives.to(terms["contrastive_loss"].dtype)
        return terms


def mean_negative(
    image_features: Tensor, text_features: Tensor, group: ProcessGroup | None = None
) -> Tensor:
    """Return the mean cosine of an image and another pair's text, in O(N d): float64 scalar."""
    image, text = (normalize(rows.double(), dim=-1) for rows in (image_features, text_features))
    count = image.new_tensor([float(len(image))])
    # [2 d + 2]: sums over the rows of all ranks.
    local = torch.cat([image.sum(dim=0), text.sum(dim=0), (image * text).sum()[None], count])
    width = image.shape[1]
    images, texts, positives, pairs = sum_of_all(local, group).split([width, width, 1, 1])
    mean: Tensor = (images @ texts - positives) / (pairs * (pairs - 1)).clamp(min=1)
    return mean.squeeze()


def sum_of_all(local: Tensor, group: ProcessGroup | None) -> Tensor:
    """Return the sum over the ranks of a group, or `local` itself without a group.

    The gradient is multiplied by the number of ranks, which DistributedDataParallel's averaging
    divides out: the parameters get the gradient of the sum.
    """
    if group is None:
        return local
    total = local.detach().clone()
    dist.all_reduce(total, group=group)
    ranks = dist.get_world_size(group)
    return total + ranks * (local - local.detach())
