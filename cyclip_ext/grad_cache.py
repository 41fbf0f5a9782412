"""Gradients of a large batch in the memory of a small one.

A contrastive loss needs the features of all pairs at once, but not their activations. First, each
chunk is encoded without a graph, and the loss is differentiated with respect to all features. Then,
each chunk is encoded again with a graph, and the gradients of its features are propagated back. The
result is the exact gradient of the whole batch, at the cost of one additional forward pass.

Source: Gao et al. 2021, arXiv 2101.06983. Measurements and pitfalls: docs/large_batches.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    images: Any,  # [n, ...], or dictionaries and sequences of such tensors
    tokens: Any,  # likewise
    *,
    chunk_size: int,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    scale: Callable[[Tensor], Tensor] | None = None,
    check: Callable[[Terms], None] | None = None,
    per_chunk_statistics: bool = False,
) -> Terms:
    """Run forward and backward pass of a batch, with the activations of one chunk at a time.

    Accumulates the gradient of `loss(*towers(images, tokens))` into `.grad` of the towers'
    parameters. If chunk_size >= n, this is one ordinary forward and backward pass. Both passes over
    a chunk use the same random numbers, and the generators end in the state after a single pass.

    Args:
        towers: towers(images, tokens) -> image features [n, d], text features [n, d], logit scale
            (exponentiated), logit bias or None. Row i must depend on row i of the inputs only.
            Parts may be frozen. If the towers are wrapped in DistributedDataParallel, gradients are
            synchronized once, in the last chunk. Ranks may use different numbers of chunks, but
            either all of them use one chunk or none does.
        loss: called as loss(image_features, text_features, logit_scale, logit_bias,
            output_dict=True) with all features, in float32 or wider, outside of `autocast`. The
            entries of its dictionary that end in `_loss` are summed; the others are only returned.
            Tensors bound to it, such as additional negatives, receive gradients as well.
        images, tokens: tensors [n, ...] with one row per pair, or dictionaries, lists and tuples of
            such tensors, as tokenizers return. All tensors are split along their first dimension;
            None is passed on.
        chunk_size: number of pairs to encode at a time; the last chunk may be smaller.
        autocast: returns a context in which the towers run; called for each chunk.
        scale: function of the total loss, whose result is differentiated instead, such as
            `GradScaler.scale` or `lambda total: total / accumulation_steps`.
        check: called with the detached terms before the backward pass. If it raises, for example
            because the loss is not finite, no gradient has changed.
        per_chunk_statistics: whether to accept batch norm in training mode, which then normalizes
            each chunk by itself and updates its running statistics once per chunk. The gradient is
            that of this different model.

    Returns: the loss's dictionary, detached.

    Raises:
        ValueError: if chunk_size is not positive, if the tensors differ in their numbers of rows,
            and for layers that normalize over the batch, unless per_chunk_statistics.
        TypeError: for inputs that cannot be split, and if the towers are not a module, because
            their layers could not be inspected.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    leaves_of_inputs = dict(_tensors("images", images)) | dict(_tensors("tokens", tokens))
    n = _rows(leaves_of_inputs)
    if not isinstance(towers, nn.Module):
        raise TypeError(
            f"towers must be an nn.Module, got {type(towers).__name__}: a function hides whether "
            "there is batch norm in it; put its body into a module's forward"
        )

    def encode(chunk: tuple[Any, Any]) -> Outputs:
        with autocast():
            image_features, text_features, logit_scale, logit_bias = towers(*chunk)
        return _widened(image_features), _widened(text_features), logit_scale, logit_bias

    def evaluate(outputs: Outputs) -> tuple[Terms, Tensor]:
        """Return the detached terms, and the value to differentiate."""
        terms = loss(*outputs, output_dict=True)
        detached = {name: term.detach() for name, term in terms.items()}
        if check is not None:
            check(detached)
        total = torch.stack([term for name, term in terms.items() if name.endswith("_loss")]).sum()
        return detached, total if scale is None else scale(total)

    if n <= chunk_size:
        terms, total = evaluate(encode((images, tokens)))
        torch.autograd.backward(total)
        return terms

    if not per_chunk_statistics:
        _require_no_norms_of_batches(towers, chunk_size, n)
    chunks = [
        (_chunk(images, rows), _chunk(tokens, rows))
        for rows in (slice(begin, begin + chunk_size) for begin in range(0, n, chunk_size))
    ]
    generators = _Generators(*leaves_of_inputs.values(), *towers.parameters())
    # DDP averages a gradient when it is touched: in the last chunk, when nothing is left to add.
    no_sync: Callable[[], AbstractContextManager[Any]] = getattr(towers, "no_sync", nullcontext)
    with no_sync():
        leaves, states = _encode_without_graph(encode, chunks, generators)
    terms, total = evaluate(leaves)
    gradients = _gradients(total, leaves)
    del leaves, total  # before the activations take memory

    with generators.undisturbed(), kept_running_statistics(towers):
        for index, (chunk, state) in enumerate(zip(chunks, states, strict=True)):
            generators.set(state)
            rows = slice(index * chunk_size, (index + 1) * chunk_size)
            last = index == len(chunks) - 1
            with nullcontext() if last else no_sync():
                _send_back(encode(chunk), _of_chunk(gradients, rows, last))
    return terms


def _tensors(name: str, inputs: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors among the inputs, each with the expression that selects it."""
    if isinstance(inputs, Tensor) and inputs.dim() > 0:
        yield name, inputs
    elif isinstance(inputs, Mapping):
        for key, value in inputs.items():
            yield from _tensors(f"{name}[{key!r}]", value)
    elif isinstance(inputs, (list, tuple)):
        for index, value in enumerate(inputs):
            yield from _tensors(f"{name}[{index}]", value)
    elif inputs is not None:
        shape = " without dimensions" if isinstance(inputs, Tensor) else ""
        raise TypeError(
            f"{name} must be a tensor [n, ...], which can be split into chunks, or a dictionary, "
            f"list or tuple of such tensors, got {type(inputs).__name__}{shape}"
        )


def _rows(tensors: dict[str, Tensor]) -> int:
    """Return the number of pairs, or raise ValueError if tensors differ in it."""
    rows = {name: len(tensor) for name, tensor in tensors.items()}
    if len(set(rows.values())) != 1:
        got = ", ".join(f"{count} in {name}" for name, count in rows.items()) or "no tensor at all"
        raise ValueError(f"images and tokens must have one row for each pair, got {got}")
    return next(iter(rows.values()))


def _chunk(inputs: Any, rows: slice) -> Any:
    """Return these rows of every tensor, in the same containers."""
    if isinstance(inputs, Tensor):
        return inputs[rows]
    if isinstance(inputs, Mapping):
        chunk = {key: _chunk(value, rows) for key, value in inputs.items()}
        return chunk if type(inputs) is dict else type(inputs)(chunk)  # type: ignore[call-arg]
    if isinstance(inputs, (list, tuple)):
        values = [_chunk(value, rows) for value in inputs]
        return type(inputs)(*values) if hasattr(inputs, "_fields") else type(inputs)(values)
    return inputs


def _widened(features: Tensor) -> Tensor:
    """Widen to float32, because the loss would round its gradients to the dtype of autocast."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


def _require_no_norms_of_batches(towers: nn.Module, chunk_size: int, n: int) -> None:
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


def _encode_without_graph(
    encode: Callable[[tuple[Any, Any]], Outputs],
    chunks: Sequence[tuple[Any, Any]],
    generators: _Generators,
) -> tuple[Outputs, list[_States]]:
    """Return the leaves of all chunks, and the RNG states before each chunk."""
    states: list[_States] = []
    encoded: list[Outputs] = []
    needed: list[bool] = []
    for chunk in chunks:
        states.append(generators.states())
        # The first chunk has a graph, which only shows the outputs that need a gradient.
        with torch.set_grad_enabled(not needed):
            outputs = encode(chunk)
        needed = needed or [output is not None and output.requires_grad for output in outputs]
        encoded.append((outputs[0].detach(), outputs[1].detach(), *outputs[2:]))
        del outputs
    # If the caller uses autocast, older torch would reuse the weights that were cast here without a
    # graph (pytorch issues 112583, 158232).
    torch.clear_autocast_cache()
    return _leaves(encoded, needed), states


def _leaves(encoded: Sequence[Outputs], needed: Sequence[bool]) -> Outputs:
    """Return the whole batch's features and the temperature, detached from the towers.

    needed: the outputs that need a gradient; the loss computes no other.
    """
    image_features, text_features, (logit_scale, *_), (logit_bias, *_) = zip(*encoded, strict=True)
    return (
        torch.cat(image_features).requires_grad_(needed[0]),
        torch.cat(text_features).requires_grad_(needed[1]),
        logit_scale.detach().requires_grad_(needed[2]),
        None if logit_bias is None else logit_bias.detach().requires_grad_(needed[3]),
    )


def _gradients(total: Tensor, leaves: Outputs) -> list[Tensor | None]:
    """Differentiate `total`; return the gradients of those leaves that need one and have one."""
    torch.autograd.backward(total)  # additional negatives, or parameters of the loss, get theirs
    return [None if leaf is None else leaf.grad for leaf in leaves]


def _of_chunk(gradients: list[Tensor | None], rows: slice, last: bool) -> list[Tensor | None]:
    """Return the gradients of these rows' features; the temperature's go to the last chunk."""
    features = [None if gradient is None else gradient[rows] for gradient in gradients[:2]]
    return features + (gradients[2:] if last else [None, None])


def _send_back(outputs: Outputs, gradients: list[Tensor | None]) -> None:
    """Propagate gradients back through the towers; frozen parts get none."""
    pairs = [
        (output, gradient)
        for output, gradient in zip(outputs, gradients, strict=True)
        if output is not None and output.requires_grad and gradient is not None
    ]
    torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])


_States = tuple[Tensor, dict[torch.device, Tensor]]  # of the CPU's generator and the devices'


class _Generators:
    """torch's default generators on the CPU and on the devices of the tensors."""

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
        """Restore the RNG states on exit."""
        states = self.states()
        try:
            yield
        finally:
            self.set(states)
