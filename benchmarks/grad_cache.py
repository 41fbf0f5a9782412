"""A large batch in chunks: peak memory, time, and whose gradient comes out.

Three ways to the gradient of one batch: with all activations at once, by GradCache, and by
accumulation as open_clip documents its --accum-freq: features of all chunks without a graph, then
for each chunk the towers once more with one, and the loss of all features with the chunk's own in
their places. Each is measured in a process of its own. Memory is the peak beyond model, batch and
the parameters' gradients.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cyclip_ext import CyCLIPLoss
from cyclip_ext.grad_cache import cached_backward
from cyclip_ext.models import create_model

from .machine import describe
from .measure import cpu_peak_of, in_fresh_process

Backward = Callable[[nn.Module, Tensor, Tensor], Any]

_LOSS = CyCLIPLoss()
_CHUNKS = (512, 128)
_VOCABULARY = 49408  # of CLIP's tokenizer


class _Towers(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        image_features = self.model.encode_image(images)
        return image_features, self.model.encode_text(tokens), self.model.logit_scale.exp(), None


def _at_once(towers: nn.Module, images: Tensor, tokens: Tensor) -> None:
    cached_backward(towers, _LOSS, images, tokens, chunk_size=len(images))


def _grad_cache(chunk_size: int, towers: nn.Module, images: Tensor, tokens: Tensor) -> None:
    cached_backward(towers, _LOSS, images, tokens, chunk_size=chunk_size, per_chunk_statistics=True)


def _accumulation(chunk_size: int, towers: nn.Module, images: Tensor, tokens: Tensor) -> None:
    chunks = list(zip(images.split(chunk_size), tokens.split(chunk_size), strict=True))
    with torch.no_grad():
        encoded = [towers(*chunk)[:2] for chunk in chunks]
    for index, chunk in enumerate(chunks):
        image_features, text_features, *temperature = towers(*chunk)
        rows = [*encoded[:index], (image_features, text_features), *encoded[index + 1 :]]
        x, y = (torch.cat(features) for features in zip(*rows, strict=True))
        _LOSS(x, y, *temperature).backward()


@dataclass(frozen=True)
class Variant:
    name: str
    chunk_size: int | None
    backward: Backward


VARIANTS = (
    Variant("all at once", None, _at_once),
    *(Variant("GradCache", size, partial(_grad_cache, size)) for size in _CHUNKS),
    *(Variant("accumulation", size, partial(_accumulation, size)) for size in _CHUNKS),
)


class Figures(NamedTuple):
    peak_bytes: int
    spent_ms: float
    error: float  # of the towers' gradients, relative to the whole batch's
    temperature: float  # its gradient, as a multiple of the whole batch's


def measured(index: int, model: str, n: int, rounds: int) -> Iterator[Figures]:
    """Yield the figures of one variant. Call it in a process that has measured nothing else."""
    variant = VARIANTS[index]
    towers, images, tokens = _setting(model, n)
    variant.backward(towers, images[:256], tokens[:256])
    peaks, times = [], []
    for _ in range(rounds):
        towers.zero_grad()
        _, peak, spent_ms = cpu_peak_of(partial(variant.backward, towers, images, tokens))
        peaks.append(peak - sum(gradient.nbytes for gradient in _gradients(towers)))
        times.append(spent_ms)
    towers.eval()  # batch norm sees the same in chunks and in the whole batch
    outcomes = []
    for backward in variant.backward, _at_once:
        towers.zero_grad()
        backward(towers, images, tokens)
        temperature = towers.model.logit_scale.grad.item()
        towers.model.logit_scale.grad = None
        outcomes.append((torch.cat([g.flatten() for g in _gradients(towers)]), temperature))
    (actual, temperature), (expected, whole_temperature) = outcomes
    error = (actual - expected).norm() / expected.norm()
    # The first peak: what a later one finds freed by an earlier one is not there to be counted.
    yield Figures(peaks[0], median(times), error.item(), temperature / whole_temperature)


def _gradients(towers: nn.Module) -> list[Tensor]:
    return [p.grad.detach() for p in towers.parameters() if p.grad is not None]


def _setting(name: str, n: int) -> tuple[_Towers, Tensor, Tensor]:
    torch.manual_seed(0)
    created = create_model(name)
    length = created.tokenizer(["a caption"]).shape[1]
    images = torch.randn(n, 3, created.image_size, created.image_size)
    return _Towers(created.model), images, torch.randint(1, _VOCABULARY, (n, length))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks grad_cache",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batch", type=int, default=4096, help="pairs (default: 4096)")
    parser.add_argument("--model", default="mini", help="of cyclip_ext.models (default: mini)")
    parser.add_argument("--rounds", type=int, default=3, help="calls timed (default: 3)")
    options = parser.parse_args(arguments)
    facts = describe(torch.device("cpu"))
    print(
        f"{options.model}, {options.batch} pairs, {facts['threads']} threads of {facts['device']}, "
        f"torch {facts['torch']}, {facts['date']}\n"
    )
    print("| way | pairs per chunk | peak memory | time | error | temperature's gradient |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for index, variant in enumerate(VARIANTS):
        (figures,) = in_fresh_process(measured, index, options.model, options.batch, options.rounds)
        print(
            f"| {variant.name} | {variant.chunk_size or options.batch} "
            f"| {figures.peak_bytes / 2**20:,.0f} MiB | {figures.spent_ms / 1e3:.1f} s "
            f"| {figures.error:.0g} | {figures.temperature:.3f} |",
            flush=True,
        )
    return 0
