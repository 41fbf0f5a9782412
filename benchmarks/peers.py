"""The implementations that are compared, on a CPU and on a GPU.

Every peer receives raw features and learnable scalars and normalizes the features itself, as
cyclip_ext does, unless its name indicates otherwise. The note of a peer lists results that it does
not compute.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cyclip_ext import CLIPLoss, CyCLIPLoss, SigLIPLoss, functional, reference
from cyclip_ext.functional import DEFAULT_MEMORY_BUDGET, Backend

from . import dense, packages
from .family import Arithmetic, Family, Loss, Make, Peer
from .inputs import Batch

OURS = "cyclip_ext"
RECOMPUTE = "cyclip_ext, recompute"
OURS_BF16 = "cyclip_ext, bf16 products"
OURS_BF16_FEATURES = "cyclip_ext, bf16 features"
COMPILED = "torch.compile"
# In names of peers that compute another function than the rest of their family.
OTHER_FUNCTION = r", labels, |, image tower locked$"

# N beyond which a CPU would take too long.
LARGEST_BASELINE = 8192
LARGEST_OTHERS = 4096
LARGEST_UNIT_ROWS = 2048  # beyond it, normalization takes a negligible share of the time

# ---------------------------------------------------------------- the truth, in float64


def _true_clip(b: Batch) -> Tensor:
    # Not reference.contrastive_loss, which rounds a loss of 1e-30 to 0.
    return functional.contrastive_loss(*b.leaves[:3], backend="reference")


def _true_cycle(b: Batch) -> Tensor:
    in_modal = reference.in_modal_loss(b.image_features, b.text_features)
    return dense.CYCLE_WEIGHT * (
        in_modal + reference.cross_modal_loss(b.image_features, b.text_features)
    )


def _true_cyclip(b: Batch) -> Tensor:
    return _true_clip(b) + _true_cycle(b)


def _true_siglip(b: Batch) -> Tensor:
    return reference.sigmoid_loss(*b.leaves)


def _true_hinge(b: Batch) -> Tensor:
    return reference.hinge_margin_loss(b.image_features, b.text_features, dense.HINGE_MARGIN)


# ---------------------------------------------------------------- cyclip_ext

WithOptions = Callable[..., Make]  # from options of a loss of cyclip_ext to its maker


def _module(module: type[Any], backend: Backend) -> WithOptions:
    def with_options(**options: Any) -> Make:
        def make(batch: Batch) -> Loss:
            loss = module(backend=backend, **options)
            return lambda b: loss(b.image_features, b.text_features, b.logit_scale, b.logit_bias)

        return make

    return with_options


def _function(function: Callable[..., Tensor]) -> WithOptions:
    """Return the maker of a loss that depends only on the features."""

    def with_options(**options: Any) -> Make:
        return lambda batch: (
            lambda b: function(b.image_features, b.text_features, backend="native", **options)
        )

    return with_options


def _ranks(b: Batch) -> Tensor:
    labels = torch.arange(len(b.image_features))
    return torch.cat(
        functional.retrieval_ranks(
            b.image_features, b.text_features, labels, labels, backend="native"
        )
    )


def _top_k(b: Batch) -> Tensor:
    k = min(dense.TOP_K, len(b.text_features))
    return functional.similarity_top_k(b.image_features, b.text_features, k, backend="native")[0]


def _in_float32(loss: WithOptions) -> tuple[Peer, ...]:
    return (
        Peer(OURS, loss(), ours=True, logit_bytes=DEFAULT_MEMORY_BUDGET),
        Peer(RECOMPUTE, loss(memory_budget=0), "memory_budget=0", ours=True, logit_bytes=0),
    )


def _locked(loss: WithOptions) -> Iterator[Peer]:
    """Yield the peers of _in_float32 for a locked image tower."""

    def without_image_gradient(make: Make) -> Make:
        def make_locked(batch: Batch) -> Loss:
            of_batch = make(batch)
            return lambda b: of_batch(replace(b, image_features=b.image_features.detach()))

        return make_locked

    for peer in _in_float32(loss):
        yield replace(
            peer,
            name=f"{peer.name}, image tower locked",
            make=without_image_gradient(peer.make),
            note=", ".join(filter(None, [peer.note, "no gradient of the image features"])),
            judged=False,
            locked=True,
        )


def _labelled(module: type[Any], *statistics: bool) -> Iterator[Peer]:
    """Yield the loss of groups of two equal labels, for comparison with its time without labels."""

    def labelled(**options: Any) -> Make:
        def make(batch: Batch) -> Loss:
            loss: Callable[..., Tensor] = module(backend="native", **options)

            def run(b: Batch) -> Tensor:
                n = len(b.image_features)
                return loss(*b.leaves, labels=torch.arange(n) % max(1, n // 2))

            return run

        return make

    for same_label, has_statistics in itertools.product(("mask", "positive"), statistics):
        yield Peer(
            f"{OURS}, labels, {same_label}{', statistics' * has_statistics}",
            labelled(same_label=same_label, statistics=has_statistics),
            f"groups of two, same_label={same_label!r}{', statistics=True' * has_statistics}",
            ours=True,
            judged=False,  # another function
        )


def _in_bf16(loss: WithOptions) -> tuple[Peer, ...]:
    of_precision = Peer(
        OURS_BF16,
        loss(precision="bf16"),
        'precision="bf16"',
        "bf16 products",
        ours=True,
        logit_bytes=DEFAULT_MEMORY_BUDGET,
    )
    return of_precision, _ours_of_bf16(loss)


def _ours_of_bf16(loss: WithOptions, largest: int | None = None) -> Peer:
    return Peer(
        OURS_BF16_FEATURES,
        loss(),
        arithmetic="bf16 features",
        ours=True,
        logit_bytes=DEFAULT_MEMORY_BUDGET,
        largest=largest,
    )


# ---------------------------------------------------------------- dense PyTorch


def _always(loss: Loss) -> Make:
    return lambda batch: loss


def _baseline(name: str, make: Make) -> Peer:
    return Peer(name, make, largest=LARGEST_BASELINE)


def _compiled(make: Make, arithmetic: Arithmetic = "float32") -> Peer:
    return Peer(
        COMPILED if arithmetic == "float32" else f"{COMPILED}, {arithmetic}",
        lambda batch: torch.compile(make(batch), dynamic=False),
        "of the baseline; compiled for every N",
        arithmetic,
        compiled=True,
        judged=False,
        largest=LARGEST_OTHERS,
    )


def _dense_in_bf16(name: str, make: Make) -> tuple[Peer, ...]:
    def make_autocast(batch: Batch) -> Loss:
        loss = make(batch)

        def run(b: Batch) -> Tensor:
            with torch.autocast(b.image_features.device.type, torch.bfloat16):
                return loss(b)

        return run

    return (
        Peer(
            f"{name}, autocast",
            make_autocast,
            "to bfloat16",
            "bf16 products",
            largest=LARGEST_OTHERS,
        ),
        Peer(f"{name}, bf16 features", make, "", "bf16 features", largest=LARGEST_OTHERS),
    )


def _chunked(loss: Loss) -> Peer:
    note = f"blocks of {dense.BLOCK_ROWS} rows under torch.utils.checkpoint"
    return Peer("dense in blocks", _always(loss), note, logit_bytes=0, largest=LARGEST_OTHERS)


def _of_open_clip(name: str, otherwise: Loss) -> tuple[str, Make]:
    """Return open_clip's loss if it can be imported, else the same one written here."""
    if packages.has_open_clip():
        return f"open_clip.{name}", packages.open_clip(name)
    return "dense, as open_clip", _always(otherwise)


# ---------------------------------------------------------------- on a CPU


def cpu_families() -> dict[str, Family]:
    families = (_clip(), _cyclip(), _siglip(), _cycle(), _hinge(), *_retrieval())
    return {family.name: family for family in families}


def _clip() -> Family:
    name, make = _of_open_clip("ClipLoss", dense.clip)
    ours = _module(CLIPLoss, "native")
    unit_rows = Peer(
        f"{name}, unit rows",
        packages.open_clip("ClipLoss", unit_rows=True),
        "features come normalized and are left alone",
        judged=False,
        largest=LARGEST_UNIT_ROWS,
    )
    chunks = Peer(
        "torch, linear_cross_entropy",
        packages.linear_cross_entropy,
        "two calls, chunked",
        logit_bytes=0,
        largest=LARGEST_OTHERS,
    )
    ranking = Peer(
        "sentence_transformers",
        packages.multiple_negatives_ranking,
        "MultipleNegativesRankingLoss: rows only, no gradient of the scale",
        judged=False,
        largest=LARGEST_OTHERS,
    )
    cached_ranking = replace(
        ranking,
        name=f"{ranking.name}, cached",
        make=packages.cached_multiple_negatives_ranking,
        note=f"Cached{ranking.note}; mini_batch_size={dense.BLOCK_ROWS}",
        logit_bytes=0,
    )
    chunks_of_bf16 = replace(
        chunks, name=f"{chunks.name}, bf16 features", arithmetic="bf16 features"
    )
    peers = (
        *(_baseline(name, make), _compiled(make), unit_rows, _chunked(dense.clip_in_blocks)),
        *(chunks, ranking, cached_ranking),
        *_in_float32(ours),
        *_locked(ours),
        *_labelled(CLIPLoss, False, True),
        *_dense_in_bf16(name, make),
        _compiled(make, "bf16 features"),
        chunks_of_bf16,
        *_in_bf16(ours),
    )
    return Family("clip", _true_clip, peers, products=(3, 4))


def _cyclip() -> Family:
    name, make = "dense, as CyCLIP", _always(dense.cyclip)
    ours = _module(CyCLIPLoss, "native")
    peers = (
        *(_baseline(name, make), _compiled(make), _chunked(dense.cyclip_in_blocks)),
        *_in_float32(ours),
        *_dense_in_bf16(name, make),
        _compiled(make, "bf16 features"),
        *_in_bf16(ours),
    )
    return Family("cyclip", _true_cyclip, peers, products=(3, 4))


def _siglip() -> Family:
    name, make = _of_open_clip("SigLipLoss", dense.siglip)
    ours = _module(SigLIPLoss, "native")
    chunks = Peer(
        "open_clip.SigLipLoss, chunks",
        packages.open_clip("SigLipLoss", chunk_size=dense.BLOCK_ROWS),
        f"chunk_size={dense.BLOCK_ROWS}",
        logit_bytes=0,
        largest=LARGEST_OTHERS,
    )
    peers = (
        *(_baseline(name, make), chunks),
        *_in_float32(ours),
        *_labelled(SigLIPLoss, False),
        *_dense_in_bf16(name, make),
        *_in_bf16(ours),
    )
    return Family("siglip", _true_siglip, peers, products=(3, 4))


def _cycle() -> Family:
    name, make = "dense, as CyCLIP", _always(dense.cycle)
    ours = _function(functional.cycle_consistency)
    _, dense_of_bf16 = _dense_in_bf16(name, make)
    peers = (
        Peer(name, make, largest=LARGEST_OTHERS),
        _chunked(dense.cycle_in_blocks),
        Peer("expansion", _always(dense.cycle_expanded), "d x d matrices; cancels"),
        Peer(OURS, ours(), ours=True),
        dense_of_bf16,
        _ours_of_bf16(ours, largest=LARGEST_BASELINE),
    )
    return Family("cycle", _true_cycle, peers, products=None)


def _hinge() -> Family:
    name, make = "dense", _always(dense.hinge)
    ours = _function(functional.hinge_margin_loss)
    peers = (
        *(_baseline(name, make), Peer(OURS, ours(), ours=True)),
        *_dense_in_bf16(name, make),
        *_in_bf16(ours),
    )
    return Family("hinge", _true_hinge, peers, products=(1, 1))


def _retrieval() -> tuple[Family, Family]:
    ranks = (_baseline("dense", _always(dense.ranks)), Peer(OURS, _always(_ranks), ours=True))
    top_k = (_baseline("dense", _always(dense.top_k)), Peer(OURS, _always(_top_k), ours=True))
    return (
        Family("ranks", dense.ranks, ranks, products=(1, 1)),
        Family("top-k", dense.top_k, top_k, products=(1, 1)),
    )


# ---------------------------------------------------------------- on a GPU


def gpu_families(backend: Backend) -> tuple[Family, ...]:
    """Return the families of a GPU, with cyclip_ext's losses on this backend."""
    no_scale = "computes no gradient of the scale"
    clip = (
        *_on_gpu(_module(CLIPLoss, backend), dense.clip),
        Peer("open_clip.ClipLoss", packages.open_clip("ClipLoss")),
        Peer("torch, linear_cross_entropy", packages.linear_cross_entropy, "one direction each"),
        Peer("cut-cross-entropy", packages.cut_cross_entropy, "one direction each"),
        Peer("Inf-CL", packages.inf_cl, "two passes: one direction each"),
        Peer("memeff", packages.memeff, no_scale),
    )
    cyclip = _on_gpu(_module(CyCLIPLoss, backend), dense.cyclip)
    siglip = (
        *_on_gpu(_module(SigLIPLoss, backend), dense.siglip),
        Peer("open_clip.SigLipLoss", packages.open_clip("SigLipLoss")),
        Peer("siglip_kernel", packages.siglip_kernel),
    )
    return (
        Family("clip", _true_clip, clip, products=(3, 4)),
        Family("cyclip", _true_cyclip, cyclip, products=(3, 4)),
        Family("siglip", _true_siglip, siglip, products=(3, 4)),
    )


def _on_gpu(ours: WithOptions, loss: Loss) -> tuple[Peer, ...]:
    make = _always(loss)
    return Peer("dense", make), _compiled(make), Peer(OURS, ours(), ours=True)
