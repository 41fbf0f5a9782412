"""Embeddings of pictures and texts by any model with open_clip's encode_image and encode_text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize


class TwoTowers(Protocol):
    """What evaluation needs of a model: open_clip's CLIP has it."""

    training: bool

    def encode_image(self, image: Tensor) -> Tensor: ...

    def encode_text(self, text: Tensor) -> Tensor: ...

    def train(self, mode: bool = True) -> Any: ...


def embed_images(
    model: TwoTowers,
    batches: Iterable[Tensor],
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """Unit-length embeddings of batches of pictures, [n, d] float32, on the CPU.

    batches: what `encode_image` takes, [b, 3, h, w] each. autocast: makes the context of reduced
    precision to run the tower in; the embeddings are normalized in float32 either way.
    The model is in evaluation mode meanwhile and returns to its former mode.
    """
    rows = []
    with _evaluating(model):
        for batch in batches:
            with autocast():
                features = model.encode_image(batch)
            rows.append(normalize(features.float(), dim=-1).cpu())
    return torch.cat(rows)


def embed_texts(
    model: TwoTowers,
    tokenizer: Callable[[list[str]], Tensor],
    texts: Sequence[str],
    *,
    batch_size: int = 512,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """Unit-length embeddings of texts, [len(texts), d] float32, on the CPU; see embed_images.

    tokenizer: list of texts -> token tensor on the model's device, as open_clip's.
    """
    rows = []
    with _evaluating(model):
        for start in range(0, len(texts), batch_size):
            tokens = tokenizer(list(texts[start : start + batch_size]))
            with autocast():
                features = model.encode_text(tokens)
            rows.append(normalize(features.float(), dim=-1).cpu())
    return torch.cat(rows)


@contextmanager
def _evaluating(model: TwoTowers) -> Iterator[None]:
    training = model.training
    model.train(False)
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
