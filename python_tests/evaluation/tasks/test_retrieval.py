"""Retrieval with several captions per image, several images per caption, and ties."""

import statistics
import sys
from collections.abc import Callable

import pytest
import torch

from cyclip_ext.evaluation import retrieve

from .cases import unit


def brute_force_ranks(
    queries: torch.Tensor, candidates: torch.Tensor, ql: list[int], cl: list[int]
) -> list[int]:
    """Return the position of the first match, from 0, of the queries that have one."""
    ranks = []
    for query, label in zip(queries, ql, strict=True):
        order = (candidates @ query).argsort(descending=True).tolist()
        if label in cl:
            ranks.append([cl[j] == label for j in order].index(True))
    return ranks


def random_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        unit(30, 6, seed=1),
        unit(71, 6, seed=2),
        torch.randint(20, (30,), generator=generator),  # several images per label
        torch.randint(22, (71,), generator=generator),  # and captions without an image
    )


def test_recalls_and_median_ranks_equal_brute_force() -> None:
    images, texts, image_labels, text_labels = random_case()
    found = retrieve(images, texts, image_labels, text_labels)
    il, tl = image_labels.tolist(), text_labels.tolist()
    for name, ranks in (
        ("image_retrieval", brute_force_ranks(texts, images, tl, il)),
        ("text_retrieval", brute_force_ranks(images, texts, il, tl)),
    ):
        expected = {k: sum(rank < k for rank in ranks) / len(ranks) for k in (1, 5, 10)}
        assert found[name].recalls() == pytest.approx(expected)
        assert found[name].median_rank() == 1 + statistics.median(ranks)


def test_ties_count_against_the_model() -> None:
    same = torch.ones(5, 1)
    for found in retrieve(same, same, torch.arange(5), torch.arange(5)).values():
        assert found.recalls((4, 5)) == {4: 0, 5: 1}
        assert found.median_rank() == 5


def test_texts_of_other_labels_are_rejected() -> None:
    with pytest.raises(ValueError, match="no text shares a label"):
        retrieve(torch.ones(2, 1), torch.ones(2, 1), torch.arange(2), torch.arange(2) + 2)


MANY = """
import resource
import torch
from cyclip_ext.evaluation import retrieve

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB

# Pairs of points on a circle, each a quarter of the distance to the next image from its own:
# every rank is known. Half of the captions are turned to the next but one instead.
n, d = 30_000, 16
angles = torch.arange(n, dtype=torch.float64) * (2 * torch.pi / n)
def at(turned):
    rows = torch.zeros(n, d, dtype=torch.float64)
    rows[:, 0], rows[:, 1] = turned.cos(), turned.sin()
    return rows
images = at(angles)
steps = 0.25 + 2.0 * (torch.arange(n) % 2)
texts = at(angles + steps * (2 * torch.pi / n))
labels = torch.arange(n)
small = slice(0, 100)
retrieve(images[small], texts[small], labels[small], labels[small])  # loads what there is to load
before = peak()
retrieved = retrieve(images, texts, labels, labels)
grown = (peak() - before) / 2**20  # GiB
print(grown, *retrieved["image_retrieval"].recalls((1, 4, 5)).values())
"""


@pytest.mark.native
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
@pytest.mark.slow
def test_memory_of_many_pairs_is_linear(run_program: Callable[..., str]) -> None:
    """In float64: neighbours differ by 2e-8 in cosine. A mask of all pairs would take 0.8 GiB."""
    grown, *recalls = map(float, run_program(MANY).split())
    assert grown < 0.5
    # Captions at a distance of 2.25 images have those at 0, 1, 2, 3 and 4 nearer: -0.25 .. 1.75.
    assert recalls == [0.5, 0.5, 1.0]
