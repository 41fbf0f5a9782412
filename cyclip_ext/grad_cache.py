"""Gradients of a large batch in the memory of a small one.

A contrastive loss needs the features of all pairs at once, yet not the activations of all pairs.
So chunks are encoded without a graph, the loss is differentiated with respect to the features, and
each chunk is encoded once more, with a graph, and the features' gradients are sent through it. The
result is the gradient of the whole batch, not an approximation, for one more forward pass.

Source: Gao et al. 2021, arXiv 2101.06983. Measurements and pitfalls: docs/large_batches.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .models.batch_norm import kept_running_statistics, norms_of_batches

Terms = dict[str, Tensor]
Outputs = tuple[Tensor, Tensor, Tensor, Tensor | None]  # of the towers


def cached_backward(
    towers: nn.Module,
    loss: Callable[..., Terms],
    images: Tensor,  # [n, ...]
    tokens: Tensor,  # [n, ...]
    *,
    chunk_size: int,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    scale: Callable[[Tensor], Tensor] | None = None,
    check: Callable[[Terms], None] | None = None,
    per_chunk_statistics: bool = False,
) -> Terms:
    """Forward and backward of a batch, with the activations of `chunk_size` pairs at a time.

    Adds to `.grad` of the towers' parameters what `loss(*towers(images, tokens))` and a backward
    pass would. With chunk_size >= n that is what is done. Random numbers are the same in both
    passes over a chunk, and the generators end where one pass leaves them.

    Args:
        towers: towers(images, tokens) -> image features [n, d], text features [n, d], logit scale
            (exponentiated), logit bias or None; row i must depend on row i of the inputs alone.
            Parts may be frozen. DistributedDataParallel around it synchronizes once, in the last
            chunk. Ranks may differ in their numbers of chunks, but not in having a single one.
        loss: called loss(image_features, text_features, logit_scale, logit_bias, output_dict=True)
            with all features, in float32 or wider, outside of `autocast`. Entries of its dictionary
            that end in `_loss` are summed; others are passed on.
        images, tokens: rows of one pair each.
        chunk_size: pairs encoded at a time; the last chunk may be smaller.
        autocast: makes the context that the towers run in, anew for each chunk.
        scale: what is differentiated instead of the total loss, e.g. `GradScaler.scale`, or
            `lambda total: total / accumulation_steps`.
        check: is shown the detached terms before anything is differentiated. Where it raises (the
            loss is not finite, say), gradients are as they were before the call.
        per_chunk_statistics: accept that batch norm in training mode normalizes each chunk by
            itself: the gradient is then that of this other model. Running statistics move once per
            chunk.

    Returns: the loss's dictionary, detached.

    Raises: ValueError where chunk_size is not positive, where images and tokens differ in number,
        and for layers that normalize over the batch, unless per_chunk_statistics. TypeError where
        the towers are no module: what is in them could not be seen.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {chunk_size}")
    if len(images) != len(tokens):
        raise ValueError(
            f"images and tokens must be rows of one pair each, not {len(images)} and {len(tokens)}"
        )
    if not isinstance(towers, nn.Module):
        raise TypeError(
            f"towers must be an nn.Module, not {type(towers).__name__}: a function hides whether "
            "there is batch norm in it; put its body into a module's forward"
        )

    def encode(chunk: tuple[Tensor, Tensor]) -> Outputs:
        with autocast():
            image_features, text_features, logit_scale, logit_bias = towers(*chunk)
        return _widened(image_features), _widened(text_features), logit_scale, logit_bias

    def evaluate(outputs: Outputs) -> tuple[Terms, Tensor]:
        """The detached terms, and what is to be differentiated."""
        terms = loss(*outputs, output_dict=True)
        detached = {name: term.detach() for name, term in terms.items()}
        if check is not None:
            check(detached)
        total = torch.stack([term for name, term in terms.items() if name.endswith("_loss")]).sum()
        return detached, total if scale is None else scale(total)

    if len(images) <= chunk_size:
        terms, total = evaluate(encode((images, tokens)))
        torch.autograd.backward(total)
        return terms

    if not per_chunk_statistics:
        _refuse_norms_of_batches(towers, chunk_size, len(images))
    chunks = list(zip(images.split(chunk_size), tokens.split(chunk_size), strict=True))
    generators = _Generators(images, tokens, *towers.parameters())
    states: list[_States] = []
    encoded: list[Outputs] = []
    with torch.no_grad():
        for chunk in chunks:
            states.append(generators.states())
            encoded.append(encode(chunk))
    # Where the caller is under autocast, older torch would use weights cast here, without a graph,
    # again (pytorch issues 112583, 158232).
    torch.clear_autocast_cache()
    leaves = _leaves(encoded)
    terms, total = evaluate(leaves)
    gradients = _gradients(total, leaves)
    # What is no longer needed while the activations take their memory.
    del encoded, leaves, total

    # DDP averages a gradient when it is touched: in the last chunk, when nothing is left to add.
    no_sync: Callable[[], AbstractContextManager[Any]] = getattr(towers, "no_sync", nullcontext)
    with generators.undisturbed(), kept_running_statistics(towers):
        for index, (chunk, state) in enumerate(zip(chunks, states, strict=True)):
            generators.set(state)
            rows = slice(index * chunk_size, (index + 1) * chunk_size)
            last = index == len(chunks) - 1
            with nullcontext() if last else no_sync():
                _send_back(encode(chunk), _of_chunk(gradients, rows, last))
    return terms


def _widened(features: Tensor) -> Tensor:
    """In float32 at least: the loss would otherwise round its gradients as autocast does."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


def _refuse_norms_of_batches(towers: nn.Module, chunk_size: int, n: int) -> None:
    norms = norms_of_batches(towers)
    if norms:
        name, module = next(iter(norms.items()))
        others = f" and {len(norms) - 1} more" if len(norms) > 1 else ""
        raise ValueError(
            f"towers: {name} ({type(module).__name__}){others} would see chunks of {chunk_size} of "
            f"the {n} pairs, and normalize or learn differently than with all of them. Put such "
            "layers into eval mode, build the towers with another norm (layer or group norm), or "
            "accept this with per_chunk_statistics=True"
        )


def _leaves(encoded: Sequence[Outputs]) -> Outputs:
    """The whole batch's features and the temperature, cut off from the towers."""
    image_features, text_features, (logit_scale, *_), (logit_bias, *_) = zip(*encoded, strict=True)
    return (
        torch.cat(image_features).requires_grad_(),
        torch.cat(text_features).requires_grad_(),
        logit_scale.detach().requires_grad_(),
        None if logit_bias is None else logit_bias.detach().requires_grad_(),
    )


def _gradients(total: Tensor, leaves: Outputs) -> list[Tensor | None]:
    """Of `total`, for each of the leaves; None where it does not depend on one."""
    given = [leaf for leaf in leaves if leaf is not None]
    gradients: list[Tensor | None] = list(torch.autograd.grad(total, given, allow_unused=True))
    return gradients + [None] * (len(leaves) - len(given))


def _of_chunk(gradients: list[Tensor | None], rows: slice, last: bool) -> list[Tensor | None]:
    """Of the features in these rows; the temperature's belong to the last chunk."""
    features = [None if gradient is None else gradient[rows] for gradient in gradients[:2]]
    return features + (gradients[2:] if last else [None, None])


def _send_back(outputs: Outputs, gradients: list[Tensor | None]) -> None:
    """Backward through the towers; what is frozen takes no gradient."""
    pairs = [
        (output, gradient)
        for output, gradient in zip(outputs, gradients, strict=True)
        if output is not None and output.requires_grad and gradient is not None
    ]
    torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])


_States = tuple[Tensor, dict[torch.device, Tensor]]  # of the CPU's generator and the devices'


class _Generators:
    """torch's default generators on the CPU and wherever the tensors are."""

    def __init__(self, *tensors: Tensor) -> None:
        self.devices = {tensor.device for tensor in tensors if tensor.device.type != "cpu"}

    def states(self) -> _States:
        return torch.get_rng_state(), {
            device: torch.get_device_module(device).get_rng_state(device) for device in self.devices
        }

    def set(self, states: _States) -> None:
        of_cpu, of_devices = states
        torch.set_rng_state(of_cpu)
        for device, state in of_devices.items():
            torch.get_device_module(device).set_rng_state(state, device)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """What is drawn inside the block is not missed after it."""
        states = self.states()
        try:
            yield
        finally:
            self.set(states)
