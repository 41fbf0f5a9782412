"""The losses as modules, called like those of open_clip.

    loss = CyCLIPLoss()
    total = loss(image_features, text_features, model.logit_scale.exp())

They have neither parameters nor buffers. With `output_dict=True` they return a dictionary whose
entries ending in `_loss` are weighted and sum to the total, so that open_clip's trainer can use
them unchanged. With `statistics=True` the dictionary also has detached measurements of the batch,
under names that do not end in `_loss`; do not use it with a trainer that sums all entries.

With a process group, as in `CyCLIPLoss(group="world")`, each rank passes its own rows and gets the
loss and the statistics of the whole batch (docs/distributed.md).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from . import _cycle_terms, _pair_terms
from ._dispatch import PairOptions, Reduction, pair_options
from ._fused import Cycles
from ._inputs import Inputs, check_number, prepare
from ._sums import as_loss, mean
from .distributed import groups

if TYPE_CHECKING:
    from typing_extensions import Unpack

Terms = dict[str, Tensor]


class PairwiseLoss(nn.Module):
    """Base class of the losses; subclasses compute the weighted terms.

    Args:
        statistics: whether to add measurements of the batch to the dictionary.
        options: backend, precision, memory_budget, group, exchange, same_label; see
            cyclip_ext.functional.
    """

    needs_bias: ClassVar[bool] = False

    def __init__(
        self,
        *,
        statistics: bool = False,
        **options: Unpack[PairOptions],
    ) -> None:
        super().__init__()
        self.options = pair_options(f"{type(self).__name__}()", options)
        self.options.check()
        groups.check(self.options.group)
        self.statistics = statistics

    def forward(
        self,
        image_features: Tensor,  # [N, d]
        text_features: Tensor,  # [N, d]
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
        *,
        labels: Tensor | None = None,  # int64 [N]
        negative_text_features: Tensor | None = None,  # [M, d]
        negative_image_features: Tensor | None = None,  # [K, d]
    ) -> Tensor | Terms:
        """Return the loss of a batch of pairs.

        Args:
            image_features, text_features: [N, d], raw or normalized, row i of one paired with row i
                of the other; float32, float64, bfloat16 or float16.
            logit_scale: s, already exponentiated; a scalar.
            logit_bias: b of the sigmoid loss. The softmax losses accept it, because open_clip
                passes it if a model has one, but it does not change them: all logits shift alike.
                It gets the gradient 0, because DistributedDataParallel waits for one.
            output_dict: whether to return the weighted terms by name instead of their sum.
            labels, negative_text_features, negative_image_features: for the terms over all pairs;
                see cyclip_ext.functional.

        Raises: ValueError or TypeError, naming the argument, for invalid arguments.
        """
        inputs = prepare(
            image_features,
            text_features,
            logit_scale,
            logit_bias,
            options=self.options,
            operators=self.operators(),
            needs_bias=self.needs_bias,
            labels=labels,
            negative_text_features=negative_text_features,
            negative_image_features=negative_image_features,
        )
        terms, statistics = self.terms(inputs, apart=output_dict)
        if inputs.bias is not None and not self.needs_bias:
            # 0, with the gradient 0 for the bias, whatever its value
            zero = inputs.bias.masked_fill(torch.ones_like(inputs.bias, dtype=torch.bool), 0)
            terms["contrastive_loss"] = terms["contrastive_loss"] + zero
        terms = {name: as_loss(term, inputs) for name, term in terms.items()}
        if output_dict:
            return {**terms, **statistics}
        first, *others = terms.values()
        return sum(others, first)

    def operators(self) -> tuple[str, ...]:
        """Return the names of the native operators that the terms use."""
        return ("pair_statistics",)

    def terms(self, inputs: Inputs, *, apart: bool) -> tuple[Terms, Terms]:
        """Return the weighted terms, and the statistics (empty unless requested).

        Unless `apart`, terms that are cheaper together may be one: only their sum is used.
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        """List the options by name."""
        names = "backend", "precision", "memory_budget", "group", "exchange", "same_label"
        shared = {name: getattr(self.options, name) for name in names}
        values = {**self.own_options(), "statistics": self.statistics, **shared}
        return ", ".join(f"{name}={value!r}" for name, value in values.items())

    def own_options(self) -> dict[str, object]:
        """Return the options that this loss alone has, for its repr."""
        return {}


class CLIPLoss(PairwiseLoss):
    """The contrastive loss alone, as open_clip's ClipLoss on one device.

    Args:
        statistics: whether to add measurements of the batch to the dictionary.
        options: backend, precision, memory_budget, group, exchange, same_label; see
            cyclip_ext.functional.
    """

    def __init__(self, *, statistics: bool = False, **options: Unpack[PairOptions]) -> None:
        super().__init__(statistics=statistics, **options)

    def terms(self, inputs: Inputs, *, apart: bool) -> tuple[Terms, Terms]:
        """Return the contrastive loss."""
        loss, pairs = _pair_terms.contrastive(inputs, self.options, needs_hardest=self.statistics)
        terms = {"contrastive_loss": loss}
        return terms, _batch_statistics(pairs, inputs) if self.statistics else {}


class CyCLIPLoss(PairwiseLoss):
    """Contrastive loss with cycle consistency and margin terms.

    L = L_con + in_modal L_in + cross_modal L_cross + margin L_mar + hinge L_hin (docs/losses.md).
    Terms of weight zero are not computed.

    Args:
        in_modal: weight of the in-modal cycle term (Goel et al. 2022: 0.25). With the default
            reduction the cycle terms grow with the batch, so the weight depends on the batch size.
        cross_modal: weight of the cross-modal cycle term, likewise.
        margin: weight of the one-sided regularizer of Chen et al. 2024, such as 0.1.
        hinge: weight of the hinge on the hardest negative.
        hinge_margin: the margin g of the hinge, a cosine.
        reduction: "batchmean" (sum/N, as in CyCLIP) or "mean" (sum/N^2) for the cycle terms.
        statistics: whether to add measurements of the batch to the dictionary.
        options: backend, precision, memory_budget, group, exchange, same_label; see
            cyclip_ext.functional.
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
        statistics: bool = False,
        **options: Unpack[PairOptions],
    ) -> None:
        super().__init__(statistics=statistics, **options)
        self.options = replace(self.options, reduction=reduction)
        self.options.check()
        weights = {"in_modal": in_modal, "cross_modal": cross_modal, "margin": margin}
        for name, value in {**weights, "hinge": hinge, "hinge_margin": hinge_margin}.items():
            check_number(name, value)
        self.in_modal = in_modal
        self.cross_modal = cross_modal
        self.margin = margin
        self.hinge = hinge
        self.hinge_margin = hinge_margin

    @classmethod
    def for_batch(
        cls,
        batch_size: int,
        reference_batch: int = 128,
        *,
        in_modal: float = 0.25,
        cross_modal: float = 0.25,
        reduction: Reduction = "batchmean",
        **others: Any,
    ) -> CyCLIPLoss:
        """Return the loss whose cycle terms weigh as much as in batches of `reference_batch`.

        A cycle term is a sum over N (N - 1) pairs, divided by N ("batchmean") or N^2 ("mean").
        Weights that were chosen at one batch size in the default reduction, like CyCLIP's 0.25 at
        128, are scaled such that the average pair keeps its weight.

        Args:
            batch_size: pairs of a batch, of all ranks together.
            reference_batch: the batch size for which the weights were chosen, in "batchmean".
            in_modal: weight at that batch size.
            cross_modal: weight at that batch size.
            reduction: of the returned loss.
            others: further arguments of CyCLIPLoss.
        """
        for name, size in ("batch_size", batch_size), ("reference_batch", reference_batch):
            check_number(name, size)
            if size < 2:
                raise ValueError(f"{name} must be at least 2, got {size}; one pair has no cycles")
        factor = (reference_batch - 1) / (batch_size - 1)
        if reduction == "mean":
            factor *= batch_size
        return cls(factor * in_modal, factor * cross_modal, reduction=reduction, **others)

    def operators(self) -> tuple[str, ...]:
        """Return the operators of the terms of nonzero weight."""
        cycle = ("cycle_grams",) if self.in_modal or self.cross_modal else ()
        return "pair_statistics", *cycle

    def terms(self, inputs: Inputs, *, apart: bool) -> tuple[Terms, Terms]:
        """Return every term of nonzero weight."""
        # Unless they are fused, the cycle terms are first here and last in the backward pass, where
        # they need the least memory beside the gradients that are there already.
        fused = None if apart else self._fused_cycles(inputs)
        cycle = {} if fused else self._cycle_losses(inputs, apart)
        needs_hardest = self.statistics or self.hinge != 0
        loss, pairs = _pair_terms.contrastive(
            inputs, self.options, needs_hardest=needs_hardest, cycles=fused
        )
        terms = {"contrastive_loss": loss, **cycle}
        if self.margin:
            terms["margin_loss"] = self.margin * _pair_terms.margin(pairs, inputs)
        if self.hinge:
            terms["hinge_loss"] = self.hinge * _pair_terms.hinge(pairs, self.hinge_margin, inputs)
        return terms, _batch_statistics(pairs, inputs) if self.statistics else {}

    def _fused_cycles(self, inputs: Inputs) -> Cycles | None:
        if not (self.in_modal or self.cross_modal):
            return None
        if not _pair_terms.is_fused(inputs, self.options):
            return None
        return _cycle_terms.cycles_by_pairs(inputs, self.options, self.in_modal, self.cross_modal)

    def _cycle_losses(self, inputs: Inputs, apart: bool) -> Terms:
        if not (self.in_modal or self.cross_modal):
            return {}
        if self.in_modal == self.cross_modal and not apart:
            return {"cycle_loss": self.in_modal * _cycle_terms.cycle_sum(inputs, self.options)}
        in_modal, cross_modal = _cycle_terms.cycle_terms(inputs, self.options)
        losses = {}
        if self.in_modal:
            losses["in_modal_loss"] = self.in_modal * in_modal
        if self.cross_modal:
            losses["cross_modal_loss"] = self.cross_modal * cross_modal
        return losses

    def own_options(self) -> dict[str, object]:
        """Return the weights and the reduction of the terms."""
        names = "in_modal", "cross_modal", "margin", "hinge", "hinge_margin"
        weights = {name: getattr(self, name) for name in names}
        return {**weights, "reduction": self.options.reduction}


class SigLIPLoss(PairwiseLoss):
    """The pairwise sigmoid loss of SigLIP (Zhai et al. 2023); needs `logit_bias`.

    The dictionary's one loss is called "contrastive_loss", as in open_clip.

    Args:
        statistics: whether to add measurements of the batch to the dictionary.
        options: backend, precision, memory_budget, group, exchange, same_label; see
            cyclip_ext.functional.
    """

    needs_bias = True

    def __init__(self, *, statistics: bool = False, **options: Unpack[PairOptions]) -> None:
        super().__init__(statistics=statistics, **options)

    def operators(self) -> tuple[str, ...]:
        """Return the operator of the loss, and that of the statistics if they are requested."""
        return ("sigmoid_rows", "pair_statistics") if self.statistics else ("sigmoid_rows",)

    def terms(self, inputs: Inputs, *, apart: bool) -> tuple[Terms, Terms]:
        """Return the sigmoid loss."""
        terms, statistics = {"contrastive_loss": _pair_terms.sigmoid(inputs, self.options)}, {}
        if self.statistics:
            with torch.no_grad():
                pairs = _pair_terms.pair_statistics(inputs, self.options)
                statistics = _batch_statistics(pairs, inputs)
        return terms, statistics


def _batch_statistics(pairs: _pair_terms.PairStatistics, inputs: Inputs) -> Terms:
    """Return means over the batch, detached; a tie with the positive counts as a miss."""
    positive = pairs.positive.detach()
    image_margin = positive - pairs.row_hardest.detach()
    text_margin = positive - pairs.col_hardest.detach()
    means = {
        "positive_similarity": positive,
        "image_margin": image_margin,
        "text_margin": text_margin,
        "image_accuracy": (image_margin > 0).double(),
        "text_accuracy": (text_margin > 0).double(),
    }
    return {name: mean(values, inputs.batch).float() for name, values in means.items()}
