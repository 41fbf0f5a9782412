"""Composition: two images and two captions of the same words, to be matched.

Source: Thrush et al. 2022 (Winoground): text, image and group score.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..embeddings import Embeddings
from .base import Metric, Table, TaskOptions, TaskResult, Unit

TASK = "image_caption_selection"

METRICS = (
    Metric("text_acc", "text score", Unit.SHARE),
    Metric("image_acc", "image score", Unit.SHARE),
    Metric("acc", "group score", Unit.SHARE, headline=True),  # CLIP_benchmark's key
)
CHANCE = (1 / 4, 1 / 4, 1 / 6)  # of random similarities


def compose(
    images: Tensor,  # [n, 2, d], unit length
    captions: Tensor,  # [n, 2, d], unit length; caption a belongs to image a
) -> Tensor:
    """Return the text, image and group score of each quadruple, bool [n, 3].

    text: both images are nearer to their own caption than to the other one. image: both captions
    are nearer to their own image. group: both. A tie counts against the model.
    """
    # Not a matrix product, which may round equal rows differently: a tie must stay one.
    similarity = (images[:, :, None] * captions[:, None]).sum(3)  # [n, image, caption]
    own = similarity.diagonal(dim1=1, dim2=2)  # [n, 2]
    other_caption = similarity.flip(2).diagonal(dim1=1, dim2=2)  # of image 0, 1
    other_image = similarity.flip(1).diagonal(dim1=1, dim2=2)  # of caption 0, 1
    text, image = (own > other_caption).all(1), (own > other_image).all(1)
    return torch.stack([text, image, text & image], 1)


def run(embeddings: Embeddings, options: TaskOptions) -> TaskResult | None:
    """Measure text_acc, image_acc and acc, the group score, of all quadruples and by tag."""
    tags = embeddings.quadruple_tags
    if tags is None:
        return None
    assert embeddings.text_features is not None
    hits = compose(
        embeddings.image_features.unflatten(0, (-1, 2)),
        embeddings.text_features.unflatten(0, (-1, 2)),
    ).double()
    rows = []
    for tag in sorted(set(tags)):
        own = hits[torch.tensor([each == tag for each in tags])]
        rows.append((tag or "none", len(own), *(100 * score for score in own.mean(0).tolist())))
    table = Table(
        "By tag", ("tag", "quadruples", "text (%)", "image (%)", "group (%)"), tuple(rows)
    )
    text, image, group = (f"{100 * chance:.3g}%" for chance in CHANCE)
    return TaskResult(
        embeddings.name,
        TASK,
        dict(zip(METRICS, hits.mean(0).tolist(), strict=True)),
        "Composition",
        "Text score: both images are nearer to their own caption. Image score: both captions are "
        "nearer to their own image. Group score: both. Random similarities reach "
        f"{text}, {image} and {group} (Winoground).",
        (table,) if any(tags) else (),
    )
