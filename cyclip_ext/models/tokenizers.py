"""Tokenizers from texts to token ids: open_clip's, or hashed words, which need no package."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .._optional import require
from .mini import PAD

Tokenizer = Callable[[list[str]], Tensor]  # texts -> int64 [n, context_length]
TokenizerName = Literal["open_clip", "words"]
TOKENIZERS: tuple[TokenizerName, ...] = get_args(TokenizerName)

_WORD = re.compile(r"\w+|[^\w\s]")


def import_open_clip() -> Any:
    """Import open_clip on first use.

    Raises ImportError, with the extra to install, if open_clip or its torchvision cannot be
    imported.
    """
    purpose = f"open_clip is needed, with a torchvision that matches torch {torch.__version__}"
    return require("open_clip", purpose, "train")


def default_tokenizer() -> TokenizerName:
    """Return "open_clip" if that package can be imported, else "words"."""
    try:
        import_open_clip()
    except ImportError:
        return "words"
    return "open_clip"


class WordTokenizer:
    """Words and punctuation marks of the lower-case text, each hashed to a token id.

    The id is 1 + (8-byte BLAKE2b digest) mod (vocab_size - 1), so that it is the same on every
    machine and needs no vocabulary file. Two words share an id with probability 1 / vocab_size.
    Texts are cut after `context_length` words and padded with 0.
    """

    def __init__(self, context_length: int, vocab_size: int) -> None:
        self.context_length = context_length
        self.vocab_size = vocab_size

    def __call__(self, texts: list[str]) -> Tensor:
        """Return int64 [len(texts), context_length]."""
        tokens = torch.full((len(texts), self.context_length), PAD, dtype=torch.int64)
        for row, text in enumerate(texts):
            words = _WORD.findall(text.lower())[: self.context_length]
            ids = [1 + _digest(word) % (self.vocab_size - 1) for word in words]
            tokens[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return tokens


@lru_cache(maxsize=2**16)
def _digest(word: str) -> int:
    encoded = word.encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(encoded, digest_size=8).digest(), "little")


def make_tokenizer(name: TokenizerName, context_length: int, vocab_size: int) -> Tokenizer:
    """Return the tokenizer of one of this package's own models.

    Args:
        name: "open_clip" for CLIP's byte-pair encoding, whose vocabulary open_clip carries, or
            "words".
        context_length: Number of tokens that the text tower takes.
        vocab_size: Number of rows of its token embedding.

    Raises:
        ImportError: If open_clip is needed and cannot be imported.
        ValueError: If the tokenizer is unknown.
    """
    if name == "words":
        return WordTokenizer(context_length, vocab_size)
    if name == "open_clip":
        tokenizer: Tokenizer = import_open_clip().SimpleTokenizer(context_length=context_length)
        return tokenizer
    raise ValueError(f"tokenizer must be one of {', '.join(TOKENIZERS)}, got {name!r}")
