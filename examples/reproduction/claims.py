"""The claims of both papers as differences between runs, and a verdict on each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cyclip_ext.evaluation.tasks import Table

from .runs import Result
from .values import Value, difference_cells, verdict

GOEL, CHEN, OURS = "Goel et al. 2022", "Chen et al. 2024", "-"

SHIFTED = Value("top-1 on shifted vendors", "shifted", "acc1")
IN_DOMAIN = Value("top-1 inside the training vendors", "in_domain", "acc1")
HELD_OUT = Value("top-1 on held-out concepts", "heldout_shifted", "acc1")
CONSISTENCY = Value("consistency with 1-NN", "shifted", "consistency@1")
FINE = Value("fine: within the true subgroup", "shifted", "fine_acc1")
COARSE = Value("coarse: the right subgroup", "shifted", "coarse_acc1")
RETRIEVAL = Value("text to image R@5", "shifted", "image_retrieval_recall@5")
MARGIN = Value("median margin", "shifted", "margin_q50", percent=False)
POSITIVE = Value("cosine of positives", "shifted", "cyclip_alignment", percent=False)
NEGATIVE = Value("cosine of negatives", "shifted", "negative_cosine", percent=False)
GAP = Value("modality gap", "shifted", "modality_gap", percent=False)
UNIFORM_IMAGE = Value("uniformity, images", "shifted", "uniformity_image", percent=False)
UNIFORM_TEXT = Value("uniformity, texts", "shifted", "uniformity_text", percent=False)
RANK_IMAGE = Value("effective rank, images", "shifted", "effective_rank_image", percent=False)
RANK_TEXT = Value("effective rank, texts", "shifted", "effective_rank_text", percent=False)
SCALE = Value("logit scale", "", "logit_scale", percent=False)


@dataclass(frozen=True)
class Claim:
    """That `value` of `first` is above (direction +1) or below (-1) that of `second`.

    source: the paper that makes the claim, or OURS if neither does.
    """

    text: str
    source: str
    first: str
    second: str
    value: Value
    direction: int = 1


CLAIMS = (
    Claim("CyCLIP's zero-shot accuracy is above CLIP's", GOEL, "cyclip", "clip", SHIFTED),
    Claim("also on concepts that were not trained on", OURS, "cyclip", "clip", HELD_OUT),
    Claim("also inside the training vendors", OURS, "cyclip", "clip", IN_DOMAIN),
    Claim(
        "(control) and above that of CLIP with its scale held at 100",
        OURS,
        "cyclip",
        "clip-scale-100",
        SHIFTED,
    ),
    Claim("cross-modal consistency alone helps", GOEL, "c-cyclip", "clip", SHIFTED),
    Claim("in-modal consistency alone helps", GOEL, "i-cyclip", "clip", SHIFTED),
    Claim("image space and text space agree more often", GOEL, "cyclip", "clip", CONSISTENCY),
    Claim("fine-grained accuracy rises", GOEL, "cyclip", "clip", FINE),
    Claim("coarse-grained accuracy rises", GOEL, "cyclip", "clip", COARSE),
    Claim("retrieval improves", OURS, "cyclip", "clip", RETRIEVAL),
    Claim("the one-sided margin improves zero-shot transfer", CHEN, "clip-margin", "clip", SHIFTED),
    Claim("it increases the margin", CHEN, "clip-margin", "clip", MARGIN),
    Claim("it helps on top of CyCLIP", OURS, "cyclip-margin", "cyclip", SHIFTED),
    Claim(
        "it is better than pushing negatives apart as well",
        OURS,
        "clip-margin",
        "clip-both-sided",
        SHIFTED,
    ),
    Claim(
        "and than pushing them apart instead",
        OURS,
        "clip-margin",
        "clip-negative-only",
        SHIFTED,
    ),
    Claim("the square loss fails in zero-shot transfer", CHEN, "square", "clip", SHIFTED, -1),
)


def claims_table(
    claims: Sequence[Claim], objectives: Mapping[str, Sequence[Result]], names: Mapping[str, str]
) -> Table:
    """Return the claims, each with the mean difference, its interval and the verdict."""
    rows = []
    for claim in claims:
        first, second = objectives[claim.first], objectives[claim.second]
        both = zip(claim.value.of_all(first), claim.value.of_all(second), strict=True)
        difference = difference_cells(claim.value, first, second)[-1]
        rows.append(
            (
                claim.text,
                claim.source,
                f"{names[claim.first]} - {names[claim.second]}",
                claim.value.heading,
                difference,
                verdict([a - b for a, b in both], claim.direction),
            )
        )
    header = ("claim", "source", "difference", "measured as", "mean (95% interval)", "here")
    return Table("", header, tuple(rows))
