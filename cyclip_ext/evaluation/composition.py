"""Composition: two pictures and two captions of the same words, to be matched.

Source: Thrush et al. 2022 (Winoground): text, image and group score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import require_finite

CHANCE = {"text_acc": 1 / 4, "image_acc": 1 / 4, "group_acc": 1 / 6}  # as TagResult has them


@dataclass(frozen=True)
class Composed:
    """Whether each quadruple of two pictures and two captions was matched, bool [n] each.

    text: both pictures are nearer to their own caption than to the other one. image: both captions
    are nearer to their own picture. group: both. A tie counts against the model.
    """

    text: Tensor
    image: Tensor

    @property
    def group(self) -> Tensor:
        """Bool [n]."""
        return self.text & self.image

    def __len__(self) -> int:
        return len(self.text)

    def metrics(self) -> dict[str, float]:
        """text_acc, image_acc, and acc, CLIP_benchmark's key of the group score.

        Random similarities score 1/4, 1/4 and 1/6, CHANCE.
        """
        if not len(self):
            raise ValueError("no quadruples to score: the set is empty")
        return {
            "text_acc": self.text.double().mean().item(),
            "image_acc": self.image.double().mean().item(),
            "acc": self.group.double().mean().item(),
        }


def compose(similarities: Tensor) -> Composed:  # [n, 2, 2]: [i, a, b] picture a, caption b
    """Match the pictures and captions of each quadruple; caption a belongs to picture a.

    Raises: ValueError for another shape, and for similarities that are not finite.
    """
    if similarities.ndim != 3 or similarities.shape[1:] != (2, 2):
        raise ValueError(
            "similarities must be [n, 2, 2], pictures by captions, got "
            f"{[*similarities.shape]}; see quadruple_similarities"
        )
    require_finite(similarities=similarities)
    own = similarities.diagonal(dim1=1, dim2=2)  # [n, 2]
    other_caption = similarities.flip(2).diagonal(dim1=1, dim2=2)  # of picture 0, 1
    other_picture = similarities.flip(1).diagonal(dim1=1, dim2=2)  # of caption 0, 1
    return Composed((own > other_caption).all(1), (own > other_picture).all(1))


def quadruple_similarities(
    first_images: Tensor,  # [n, d], unit length
    second_images: Tensor,  # [n, d]
    first_captions: Tensor,  # [n, d]
    second_captions: Tensor,  # [n, d]
) -> Tensor:
    """Cosines of the pictures and captions of each quadruple, [n, 2, 2], for `compose`."""
    shapes = {
        tuple(rows.shape) for rows in (first_images, second_images, first_captions, second_captions)
    }
    if len(shapes) > 1 or first_images.ndim != 2:
        raise ValueError(
            "images and captions must be [n, d] with one n and one d, got "
            + ", ".join(str(list(shape)) for shape in sorted(shapes))
        )
    # Not as a product of matrices, which may round equal rows differently: a tie must be one.
    cosines = [
        (images * captions).sum(1)
        for images in (first_images, second_images)
        for captions in (first_captions, second_captions)
    ]
    return torch.stack(cosines, dim=1).view(-1, 2, 2)


@dataclass(frozen=True)
class TagResult:
    """Scores of the quadruples of one tag; the tag's chance levels are those of all, CHANCE."""

    tag: str
    count: int
    text_acc: float
    image_acc: float
    group_acc: float


def per_tag(composed: Composed, tags: Sequence[str]) -> tuple[TagResult, ...]:
    """Scores of each tag, tags in alphabetical order.

    tags: one per quadruple, [n]. Raises ValueError for another number of them.
    """
    if len(tags) != len(composed):
        raise ValueError(f"tags has {len(tags)} entries for {len(composed)} quadruples")
    results = []
    for tag in sorted(set(tags)):
        rows = torch.tensor([each == tag for each in tags])
        part = Composed(composed.text[rows], composed.image[rows])
        scores = part.metrics()
        results.append(
            TagResult(tag, len(part), scores["text_acc"], scores["image_acc"], scores["acc"])
        )
    return tuple(results)
