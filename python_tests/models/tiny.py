"""Towers of a few thousand parameters, for tests of what is done with a model."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from cyclip_ext.models import CreatedModel, ImageConfig, MiniCLIP, TextConfig

CONTEXT, VOCABULARY = 12, 509


def tokenizer(texts: list[str]) -> Tensor:
    """Words by checksum: open_clip's tokenizer is not importable everywhere."""
    tokens = torch.zeros(len(texts), CONTEXT, dtype=torch.long)
    for row, text in enumerate(texts):
        for column, word in enumerate(text.split()[:CONTEXT]):
            tokens[row, column] = 1 + zlib.crc32(word.encode()) % (VOCABULARY - 1)
    return tokens


def create_tiny(name: str = "tiny", *, sigmoid: bool = False) -> CreatedModel:
    """In place of cyclip_ext.models.create_model."""
    model = MiniCLIP(
        16,
        ImageConfig(image_size=16, widths=(8, 16)),
        TextConfig(context_length=CONTEXT, vocab_size=VOCABULARY, width=16, heads=2),
        init_logit_scale=2.0,
        init_logit_bias=-10.0 if sigmoid else None,
    )
    return CreatedModel(name, model, tokenizer, 16)
