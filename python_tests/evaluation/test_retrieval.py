"""Retrieval with several captions per picture, several pictures per caption, and ties."""

import pytest
import torch
from torch.nn.functional import normalize

from cyclip_ext.evaluation import retrieval_metrics


def brute_force(
    queries: torch.Tensor, candidates: torch.Tensor, ql: list[int], cl: list[int], k: int
) -> float:
    hits = []
    for query, label in zip(queries, ql, strict=True):
        if label not in cl:
            continue
        order = (candidates @ query).argsort(descending=True)[:k]
        hits.append(any(cl[j] == label for j in order.tolist()))
    return sum(hits) / len(hits)


def test_equals_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    images = normalize(torch.randn(30, 6, generator=generator), dim=-1)
    texts = normalize(torch.randn(71, 6, generator=generator), dim=-1)
    image_labels = torch.randint(20, (30,), generator=generator)  # several pictures per label
    text_labels = torch.randint(22, (71,), generator=generator)  # and captions without a picture
    metrics = retrieval_metrics(images, texts, image_labels, text_labels)
    for k in (1, 5, 10):
        assert metrics[f"image_retrieval_recall@{k}"] == pytest.approx(
            brute_force(texts, images, text_labels.tolist(), image_labels.tolist(), k)
        )
        assert metrics[f"text_retrieval_recall@{k}"] == pytest.approx(
            brute_force(images, texts, image_labels.tolist(), text_labels.tolist(), k)
        )


def test_every_caption_is_scored() -> None:
    # Two captions per picture, the second ones all wrong: scoring only the first would give 1.
    images = torch.eye(2)
    texts = torch.eye(2)[[0, 1, 1, 0]]
    metrics = retrieval_metrics(images, texts, torch.arange(2), torch.tensor([0, 0, 1, 1]), (1,))
    assert metrics["image_retrieval_recall@1"] == 0.5


def test_ties_count_against_the_model() -> None:
    same = torch.ones(5, 1)
    metrics = retrieval_metrics(same, same, torch.arange(5), torch.arange(5), (1, 4, 5))
    assert metrics["image_retrieval_recall@4"] == 0
    assert metrics["image_retrieval_recall@5"] == 1


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to retrieve"):
        retrieval_metrics(torch.ones(2, 1), torch.ones(2, 1), torch.arange(2), torch.arange(2) + 2)


def test_features_that_are_not_finite_are_refused() -> None:
    good, broken, labels = torch.ones(2, 1), torch.full((2, 1), torch.nan), torch.arange(2)
    with pytest.raises(ValueError, match="text_features must be finite"):
        retrieval_metrics(good, broken, labels, labels)
