"""Which annotated objects captions leave out."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ...analysis import caption_completeness, plot_completeness
from ..outcome import Outcome, Plot, Table

TASK = "caption_completeness"
EXAMPLES = 10

READING = (
    "Of the kinds of objects annotated in a picture, how many its caption does not name. It says "
    "something about the captions, not about the model: what a caption leaves out, training calls "
    "absent (arXiv 2310.00927, figures 4 and 5)."
)


def completeness(instances: Path, captions: Path) -> Outcome:
    """Of COCO's instances_*.json and captions_*.json; see caption_completeness for errors."""
    found = caption_completeness(instances, captions)
    examples = tuple(
        (" / ".join(entry.captions), ", ".join(entry.missing), len(entry.annotated))
        for entry in found.least_complete(EXAMPLES)
    )
    return Outcome(
        captions.stem,
        TASK,
        dict(found.metrics),
        "Completeness of captions",
        READING,
        (
            Table(
                "The least complete captions",
                ("caption", "not named", "annotated"),
                examples,
                f"{found.without_objects:,} captioned pictures have no annotated object and "
                f"{found.without_captions:,} annotated ones no caption; both are left out.",
            ),
        ),
        (
            Plot(
                "completeness",
                "How many annotated kinds of objects a caption leaves out, and all captions of a "
                "picture together.",
                partial(plot_completeness, completeness=found),
            ),
        ),
    )
