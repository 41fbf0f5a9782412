"""Two pictures and two captions of the same words, to be matched."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..composition import CHANCE, compose, per_tag
from ..outcome import Outcome, Table

TASK = "image_caption_selection"

READING = (
    "Text score: both pictures are nearer to their own caption. Image score: both captions are "
    "nearer to their own picture. Group score: both. Guessing reaches "
    f"{100 * CHANCE['text_acc']:.0f}%, {100 * CHANCE['image_acc']:.0f}% and "
    f"{100 * CHANCE['group_acc']:.1f}% (Winoground)."
)


def composition(dataset: str, similarities: Tensor, tags: Sequence[str]) -> Outcome:
    """text_acc, image_acc and acc, the group score, of all and by tag.

    similarities: [n, 2, 2], `quadruple_similarities`. tags: [n], "" for none.
    """
    composed = compose(similarities)
    results = per_tag(composed, tags) if any(tags) else ()
    table = Table(
        "By tag",
        ("tag", "quadruples", "text (%)", "image (%)", "group (%)"),
        tuple(
            (r.tag or "none", r.count, 100 * r.text_acc, 100 * r.image_acc, 100 * r.group_acc)
            for r in results
        ),
    )
    return Outcome(
        dataset,
        TASK,
        composed.metrics(),
        "Composition",
        READING,
        (table,) if results else (),
    )
