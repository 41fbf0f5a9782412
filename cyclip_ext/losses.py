"""The losses as modules, called as open_clip calls its own.

    loss = CyCLIPLoss()
    total = loss(image_features, text_features, model.logit_scale.exp())

All are stateless. With `output_dict=True` they return a dictionary whose entries ending in `_loss`
are weighted and sum to the total, so that open_clip's trainer can use them unchanged. Constructed
with `statistics=True` they add measurements of the batch to it, under names that do not end in
`_loss`, detached; leave that off where a trainer sums all values.

Constructed with a process group, as in `CyCLIPLoss(group=torch.distributed.group.WORLD)`, they take
each rank's rows and return the loss and the statistics of the whole batch (docs/distributed.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import distributed, functional
from .distributed import Batch, Exchange
from .functional import Backend, PairStatistics, Precision, Reduction

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class _PairwiseLoss(nn.Module):
    """The call shape that all losses share; subclasses compute the weighted terms."""

    def __init__(
        self,
        *,
        backend: Backend = "auto",
        precision: Precision = "auto",
        memory_budget: int | None = None,
        statistics: bool = False,
        group: ProcessGroup | None = None,
        exchange: Exchange = "gather",
    ) -> None:
        super().__init__()
        functional.check_options(
            backend=backend, precision=precision, memory_budget=memory_budget, exchange=exchange
        )
        if group is not None:
            distributed.check_group(group)
        self.backend: Backend = backend
        self.precision: Precision = precision
        self.memory_budget = memory_budget
        self.statistics = statistics
        self.group = group
        self.exchange: Exchange = exchange

    @property
    def _options(self) -> dict[str, Any]:
        """How the pairs are computed, for functions of cyclip_ext.functional."""
        return {
            "backend": self.backend,
            "precision": self.precision,
            "memory_budget": self.memory_budget,
        }

    @property
    def _ranks(self) -> dict[str, Any]:
        """Who shares the batch, likewise."""
        return {"group": self.group, "exchange": self.exchange}

    def forward(
        self,
        image_features: Tensor,  # [N, d]
        text_features: Tensor,  # [N, d]
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The loss of a batch of pairs.

        Args:
            image_features, text_features: [N, d], raw or normalized, row i of one paired with row i
                of the other; float32, float64, bfloat16 or float16.
            logit_scale: s, already exponentiated; a scalar.
            logit_bias: b of the sigmoid loss. The softmax losses accept it, since open_clip passes
                it where a model has one, and it changes nothing: every logit shifts alike.
            output_dict: return the weighted terms by name instead of their sum.

        Raises: ValueError or TypeError naming the argument that does not fit.
        """
        terms, measured = self.terms(
            image_features, text_features, logit_scale, logit_bias, apart=output_dict
        )
        if output_dict:
            return {**terms, **measured}
        return torch.stack(list(terms.values())).sum()

    def terms(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None,
        *,
        apart: bool,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weighted terms, and the statistics (empty unless asked for).

        Not `apart`, terms that are cheaper together may be one: only the sum is wanted.
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        public = {k: v for k, v in vars(self).items() if not k.startswith("_") and k != "training"}
        return ", ".join(f"{name}={value!r}" for name, value in public.items())


class CyCLIPLoss(_PairwiseLoss):
    """Contrastive loss with cycle consistency and margin terms.

    L = L_con + in_modal L_in + cross_modal L_cross + margin L_mar + hinge L_hin, each term as in
    docs/losses.md; a term of weight zero is not computed.

    Args:
        in_modal, cross_modal: weights of the cycle terms (Goel et al. 2022: 0.25 each). In the
            default reduction the terms grow with the batch, so weights belong to a batch size.
        margin: weight of the one-sided regularizer of Chen et al. 2024 (0.1 when switched on).
        hinge: weight of the hinge on the hardest negative.
        hinge_margin: the margin g of the hinge, a cosine.
        reduction: "batchmean" (sum/N, as in CyCLIP) or "mean" (sum/N^2) for the cycle terms.
        backend, precision, memory_budget: see cyclip_ext.functional.
        statistics: add measurements of the batch to the dictionary.
        group, exchange: who shares the batch, and how; see cyclip_ext.functional.
    """

    def __init__(
        self,
        in_modal: float = 0.25,
        cross_modal: float = 0.25,
        margin: float = 0.0,
        hinge: float = 0.0,
        *,
        hinge_margin: float = 0.2,
        reduction: Reduction = "batchmean",
        backend: Backend = "auto",
        precision: Precision = "auto",
        memory_budget: int | None = None,
        statistics: bool = False,
        group: ProcessGroup | None = None,
        exchange: Exchange = "gather",
    ) -> None:
        super().__init__(
            backend=backend,
            precision=precision,
            memory_budget=memory_budget,
            statistics=statistics,
            group=group,
            exchange=exchange,
        )
        functional.check_options(reduction=reduction)
        self.in_modal = in_modal
        self.cross_modal = cross_modal
        self.margin = margin
        self.hinge = hinge
        self.hinge_margin = hinge_margin
        self.reduction: Reduction = reduction

    def terms(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None,
        *,
        apart: bool,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        image, text, scale, batch = functional._prepare(
            image_features, text_features, logit_scale, **self._ranks
        )
        # First here is last in the backward pass, where the cycle terms need the least memory
        # beside the gradients that are there already.
        cycle = self._cycle_losses(image, text, batch, apart)
        pairs = functional.pair_statistics(image, text, scale, batch, **self._options)
        contrastive = functional.contrastive_from_statistics(pairs, scale, batch)
        terms = {"contrastive_loss": contrastive, **cycle}
        if self.margin:
            terms["margin_loss"] = self.margin * functional.mean(1 - pairs.positive, batch)
        if self.hinge:
            hinge = functional.hinge_from_statistics(pairs, self.hinge_margin, batch)
            terms["hinge_loss"] = self.hinge * hinge
        terms = {name: functional._as_loss(term, image) for name, term in terms.items()}
        return terms, _batch_statistics(pairs, batch) if self.statistics else {}

    def _cycle_losses(
        self, image: Tensor, text: Tensor, batch: Batch | None, apart: bool
    ) -> dict[str, Tensor]:
        options: dict[str, Any] = {"reduction": self.reduction, "backend": self.backend}
        if not (self.in_modal or self.cross_modal):
            return {}
        if self.in_modal == self.cross_modal and not apart:
            both = functional.cycle_sum(image, text, batch, **options)
            return {"cycle_loss": self.in_modal * both}
        in_modal, cross_modal = functional.cycle_terms(image, text, batch, **options)
        losses = {}
        if self.in_modal:
            losses["in_modal_loss"] = self.in_modal * in_modal
        if self.cross_modal:
            losses["cross_modal_loss"] = self.cross_modal * cross_modal
        return losses


class CLIPLoss(CyCLIPLoss):
    """The contrastive loss alone, as open_clip's ClipLoss on one device."""

    def __init__(
        self,
        *,
        backend: Backend = "auto",
        precision: Precision = "auto",
        memory_budget: int | None = None,
        statistics: bool = False,
        group: ProcessGroup | None = None,
        exchange: Exchange = "gather",
    ) -> None:
        super().__init__(
            in_modal=0.0,
            cross_modal=0.0,
            backend=backend,
            precision=precision,
            memory_budget=memory_budget,
            statistics=statistics,
            group=group,
            exchange=exchange,
        )


class SigLIPLoss(_PairwiseLoss):
    """The pairwise sigmoid loss of SigLIP (Zhai et al. 2023); needs `logit_bias`.

    The dictionary's one loss is called "contrastive_loss", as in open_clip.
    """

    def terms(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None,
        *,
        apart: bool,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if logit_bias is None:
            raise ValueError(
                "logit_bias is missing: the sigmoid loss needs it; pass the model's, or 0.0"
            )
        loss = functional.sigmoid_loss(
            image_features, text_features, logit_scale, logit_bias, **self._options, **self._ranks
        )
        measured = {}
        if self.statistics:
            with torch.no_grad():
                image, text, scale, batch = functional._prepare(
                    image_features, text_features, logit_scale, **self._ranks
                )
                pairs = functional.pair_statistics(image, text, scale, batch, **self._options)
                measured = _batch_statistics(pairs, batch)
        return {"contrastive_loss": loss}, measured


def _batch_statistics(pairs: PairStatistics, batch: Batch | None) -> dict[str, Tensor]:
    """Means over the batch, detached; a tie with the positive counts as a miss."""
    positive = pairs.positive.detach()
    image_margin = positive - pairs.row_hardest.detach()
    text_margin = positive - pairs.col_hardest.detach()
    means = {
        "positive_similarity": functional.mean(positive, batch),
        "image_margin": functional.mean(image_margin, batch),
        "text_margin": functional.mean(text_margin, batch),
        "image_accuracy": functional.mean((image_margin > 0).double(), batch),
        "text_accuracy": functional.mean((text_margin > 0).double(), batch),
    }
    return {name: mean.float() for name, mean in means.items()}
