"""Composition: two images and two captions of the same words, to be matched.

Source: Thrush et al. 2022 (Winoground): text, image and group score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..embeddings import Embeddings, require_finite
from .base import Metric, Table, TaskOptions, TaskResult, Unit

TASK = "image_caption_selection"

CHANCE = {"text_acc": 1 / 4, "image_acc": 1 / 4, "acc": 1 / 6}
METRICS = (
    Metric("text_acc", "text score", Unit.SHARE),
    Metric("image_acc", "image score", Unit.SHARE),
    Metric("acc", "group score", Unit.SHARE, headline=True),
)


@dataclass(frozen=True)
class Composed:
    """Whether each quadruple of two images and two captions was matched, bool [n] each.

    text: both images are nearer to their own caption than to the other one. image: both captions
    are nearer to their own image. group: both. A tie counts against the model.
    """

    text: Tensor
    image: Tensor

    @property
    def group(self) -> Tensor:
        """Both scores, bool [n]."""
        return self.text & self.image

    def __len__(self) -> int:
        return len(self.text)

    def subset(self, rows: Tensor) -> Composed:  # bool [n]
        """Return the same of some of the quadruples."""
        return Composed(self.text[rows], self.image[rows])

    def metrics(self) -> dict[str, float]:
        """Return text_acc, image_acc, and acc, CLIP_benchmark's key of the group score.

        Random similarities score CHANCE.
        """
        if not len(self):
            raise ValueError("no quadruples to score: the dataset is empty")
        return {
            "text_acc": self.text.double().mean().item(),
            "image_acc": self.image.double().mean().item(),
            "acc": self.group.double().mean().item(),
        }


def compose(similarities: Tensor) -> Composed:  # [n, 2, 2]: [i, a, b] image a, caption b
    """Match the images and captions of each quadruple; caption a belongs to image a.

    Raises ValueError for another shape, and for similarities that are not finite.
    """
    if similarities.ndim != 3 or similarities.shape[1:] != (2, 2):
        raise ValueError(
            "similarities must be [n, 2, 2], images by captions, got "
            f"{[*similarities.shape]}; see quadruple_similarities"
        )
    require_finite(similarities=similarities)
    own = similarities.diagonal(dim1=1, dim2=2)  # [n, 2]
    other_caption = similarities.flip(2).diagonal(dim1=1, dim2=2)  # of image 0, 1
    other_image = similarities.flip(1).diagonal(dim1=1, dim2=2)  # of caption 0, 1
    return Composed((own > other_caption).all(1), (own > other_image).all(1))


def quadruple_similarities(
    images: Tensor,  # [n, 2, d], unit length
    captions: Tensor,  # [n, 2, d], unit length
) -> Tensor:
    """Return the cosines of the images and captions of each quadruple, [n, 2, 2]."""
    if images.ndim != 3 or images.shape[1] != 2 or images.shape != captions.shape:
        raise ValueError(
            "images and captions must be [n, 2, d] with one n and one d, got "
            f"{[*images.shape]} and {[*captions.shape]}"
        )
    # Not a matrix product, which may round equal rows differently: a tie must stay one.
    return (images[:, :, None] * captions[:, None]).sum(3)


def per_tag(composed: Composed, tags: Sequence[str]) -> dict[str, Composed]:
    """Group the quadruples by tag, tags in alphabetical order.

    tags: one per quadruple, [n]. Raises ValueError for another number of them.
    """
    if len(tags) != len(composed):
        raise ValueError(f"tags has {len(tags)} entries for {len(composed)} quadruples")
    return {
        tag: composed.subset(torch.tensor([each == tag for each in tags]))
        for tag in sorted(set(tags))
    }


def run(embeddings: Embeddings, options: TaskOptions) -> TaskResult | None:
    """Measure text_acc, image_acc and acc, the group score, of all quadruples and by tag."""
    tags = embeddings.quadruple_tags
    if tags is None:
        return None
    assert embeddings.text_features is not None
    images, captions = (
        rows.unflatten(0, (-1, 2)) for rows in (embeddings.image_features, embeddings.text_features)
    )
    composed = compose(quadruple_similarities(images, captions))
    table = Table(
        "By tag",
        ("tag", "quadruples", "text (%)", "image (%)", "group (%)"),
        tuple(
            (tag or "none", len(own), *(100 * value for value in own.metrics().values()))
            for tag, own in per_tag(composed, tags).items()
        ),
    )
    chance = [f"{100 * CHANCE[metric.key]:.3g}%" for metric in METRICS]
    return TaskResult(
        embeddings.name,
        TASK,
        composed.metrics(),
        METRICS,
        "Composition",
        "Text score: both images are nearer to their own caption. Image score: both captions are "
        "nearer to their own image. Group score: both. Random similarities reach "
        f"{chance[0]}, {chance[1]} and {chance[2]} (Winoground).",
        (table,) if options.details and any(tags) else (),
    )
