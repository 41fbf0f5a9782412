"""A ranking loss for sentence-transformers, with or without cached gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.base.losses.gradcache import CachedLossMixin, has_static_embedding_input
from torch import Tensor, nn

from ..functional import contrastive_loss

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._dispatch import Directions, PairOptions

_DIRECTIONS: dict[tuple[str, ...], Directions] = {
    ("query_to_doc",): "image_to_text",
    ("doc_to_query", "query_to_doc"): "both",
}


class FusedRankingLoss(CachedLossMixin, nn.Module):  # type: ignore[misc]
    """MultipleNegativesRankingLoss without the matrix of all similarities.

    The columns of the dataset are (anchor, positive) or (anchor, positive, negative_1, ...). With
    the default criterion, loss and gradients are those of MultipleNegativesRankingLoss, or, with
    `mini_batch_size`, of CachedMultipleNegativesRankingLoss, on cosine similarities.

    Args:
        model: the SentenceTransformer to be trained.
        criterion: a loss of cyclip_ext.losses, called with anchors and positives as its two towers
            and the negatives as `negative_text_features`. None: the contrastive loss.
        scale: factor of the cosines, the inverse of the temperature.
        directions: of the default criterion, in the words of sentence-transformers:
            ("query_to_doc",), which is the default, or ("query_to_doc", "doc_to_query"), the mean
            of both (its partition_mode="per_direction").
        mini_batch_size: texts embedded at a time, with exact gradients (GradCache); activations of
            the batch then take the memory of one mini-batch. None: all at once.
        options: of the default criterion: backend, precision, memory_budget, group, exchange; see
            cyclip_ext.functional. group="world" is gather_across_devices=True.

    Raises: ValueError for directions that are not one of the two, for options beside a criterion,
    and for mini_batch_size with a StaticEmbedding, whose inputs have no rows to split.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module | None = None,
        scale: float = 20.0,
        directions: tuple[str, ...] | None = None,
        mini_batch_size: int | None = None,
        **options: Unpack[PairOptions],
    ) -> None:
        chosen = ("query_to_doc",) if directions is None else tuple(sorted(directions))
        if chosen not in _DIRECTIONS:
            raise ValueError(
                'directions must be ("query_to_doc",) or ("query_to_doc", "doc_to_query"), '
                f"got {directions!r}; use MultipleNegativesRankingLoss for others"
            )
        if criterion is not None and (directions is not None or options):
            names = ["directions"] * (directions is not None) + list(options)
            raise ValueError(
                f"{', '.join(names)} only applies to the default criterion, got "
                f"criterion={criterion!r}; construct the criterion with its own options"
            )
        if mini_batch_size is not None and has_static_embedding_input(model):
            raise ValueError(
                f"mini_batch_size must be None for a model with a StaticEmbedding, got "
                f"{mini_batch_size}"
            )
        super().__init__()
        self.model = model
        self.criterion = criterion
        self.scale = scale
        self.directions = chosen
        self.mini_batch_size = mini_batch_size
        self.uses_gradient_cache = mini_batch_size is not None
        self.options = options

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> Tensor:
        """Return the loss of a batch of tokenized columns; `labels` are not used."""
        if self.mini_batch_size is not None:
            loss: Tensor = super().forward_cached(sentence_features, labels)
            return loss
        return self._loss(
            [self.model(column)["sentence_embedding"] for column in sentence_features]
        )

    def calculate_loss(
        self,
        reps: list[list[Tensor]],  # per column, per mini-batch: [n, d]
        labels: Tensor | None = None,
        *,
        with_backward: bool = False,
    ) -> Tensor:
        """Return the loss of embedded columns; with_backward=True propagates it to them."""
        loss = self._loss([torch.cat(column) for column in reps])
        if not with_backward:
            return loss
        loss.backward()
        return loss.detach()

    def get_config_dict(self) -> dict[str, Any]:
        """Return the arguments of the constructor, for the model card."""
        return {
            "criterion": repr(self.criterion),
            "scale": self.scale,
            "directions": self.directions,
            "mini_batch_size": self.mini_batch_size,
            **self.options,
        }

    def _loss(self, columns: list[Tensor]) -> Tensor:
        anchors, positives, *negatives = columns
        hard = torch.cat(negatives) if negatives else None
        if self.criterion is not None:
            value: Tensor = self.criterion(
                anchors, positives, self.scale, negative_text_features=hard
            )
            return value
        return contrastive_loss(
            anchors,
            positives,
            self.scale,
            directions=_DIRECTIONS[self.directions],
            negative_text_features=hard,
            **self.options,
        )
