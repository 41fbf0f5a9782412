"""FusedRankingLoss equals MultipleNegativesRankingLoss and its cached form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from losses.ranks import World
from torch import Tensor

import cyclip_ext

pytest.importorskip("sentence_transformers")

import sentence_transformers
import transformers
from sentence_transformers.sentence_transformer import losses

from cyclip_ext.integrations.sentence_transformers import FusedRankingLoss

WORDS = ["a", "the", "cat", "dog", "sits", "runs", "on", "in", "house", "tree", "red", "green"]
SYMMETRIC = "query_to_doc", "doc_to_query"


def bert(folder: Path) -> str:
    """Write a BERT of one layer over a dozen words, and its tokenizer."""
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=4 + len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the BERT with dropout, in float64."""
    folder = bert(tmp_path_factory.mktemp("bert"))
    return sentence_transformers.SentenceTransformer(folder, device="cpu").double()


def texts(columns: int, rows: int = 7) -> list[list[str]]:
    """Return sentences of one to six words."""
    torch.manual_seed(1)
    lengths = torch.randint(1, 7, (columns, rows)).tolist()
    pick = lambda n: " ".join(WORDS[k] for k in torch.randint(len(WORDS), (n,)).tolist())  # noqa: E731
    return [[pick(n) for n in row] for row in lengths]


def loss_and_gradients(model: Any, loss: Any, columns: int, *, dropout: bool) -> list[Tensor]:
    """Return the loss and the gradient of every parameter, for an upstream gradient of 2."""
    model.train(dropout)
    model.zero_grad()
    torch.manual_seed(2)
    value = loss([model.preprocess(column) for column in texts(columns)], torch.empty(0))
    (2 * value).backward()
    return [value.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("columns", [2, 3, 5], ids=["pairs", "triplets", "3_negatives"])
@pytest.mark.parametrize("directions", [None, SYMMETRIC], ids=["one", "both"])
@pytest.mark.parametrize("mini_batch_size", [None, 3], ids=["whole", "cached"])
def test_equals_multiple_negatives_ranking_loss(
    model: Any, columns: int, directions: Any, mini_batch_size: int | None
) -> None:
    mode: Any = {"directions": directions, "partition_mode": "per_direction"} if directions else {}
    theirs = losses.MultipleNegativesRankingLoss(model, scale=15.0, **mode)
    ours = FusedRankingLoss(
        model, scale=15.0, directions=directions, mini_batch_size=mini_batch_size
    )
    expected = loss_and_gradients(model, theirs, columns, dropout=False)
    actual = loss_and_gradients(model, ours, columns, dropout=False)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("negatives", [1, 3])
def test_contrastive_loss_is_their_loss_to_float32_rounding(model: Any, negatives: int) -> None:
    """Without a model: anchors, positives and hard negatives of float32, and their gradients."""
    torch.manual_seed(3)
    columns = [torch.randn(9, 24, requires_grad=True) for _ in range(2 + negatives)]
    theirs = losses.MultipleNegativesRankingLoss(model, scale=20.0)
    expected = theirs.compute_loss_from_embeddings(columns, torch.empty(0))
    actual = cyclip_ext.functional.contrastive_loss(
        *columns[:2],
        20.0,
        directions="image_to_text",
        negative_text_features=torch.cat(columns[2:]),
    )
    torch.testing.assert_close(actual, expected)
    gradients = [torch.autograd.grad(loss, columns) for loss in (actual, expected)]
    torch.testing.assert_close(*gradients)


def test_cached_loss_equals_theirs_with_dropout(model: Any) -> None:
    """The mini-batches draw the same masks in both passes."""
    theirs = losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=3)
    ours = FusedRankingLoss(model, mini_batch_size=3)
    expected = loss_and_gradients(model, theirs, 3, dropout=True)
    actual = loss_and_gradients(model, ours, 3, dropout=True)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def _on_a_rank(rank: int) -> list[list[Tensor | None]]:
    """Return loss and gradients of their loss and of ours, for columns of three texts."""
    theirs = losses.MultipleNegativesRankingLoss(torch.nn.Identity(), gather_across_devices=True)
    results = []
    for fused in False, True:
        torch.manual_seed(3)
        columns = [c[3 * rank :][:3].requires_grad_() for c in torch.randn(3, 6, 5).double()]
        if fused:
            loss = FusedRankingLoss(torch.nn.Identity(), group="world")._loss(columns)
        else:
            loss = theirs.compute_loss_from_embeddings(columns, torch.empty(0))
        loss.backward()
        results.append([loss.detach(), *(column.grad for column in columns)])
    return results


def test_group_is_gather_across_devices(world: World) -> None:
    """Their loss is that of a rank's anchors; its mean over the ranks is ours."""
    ranks = world.results(_on_a_rank)
    for theirs, ours in ranks:
        torch.testing.assert_close(ours[1:], theirs[1:], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(ours[0], (ranks[0][0][0] + ranks[1][0][0]) / 2)


@pytest.mark.parametrize("mini_batch_size", [None, 3], ids=["whole", "cached"])
def test_matryoshka_loss_wraps_it(model: Any, mini_batch_size: int | None) -> None:
    """It decorates the model, or the loss if that embeds in the backward pass."""
    theirs = losses.MultipleNegativesRankingLoss(model)
    ours = FusedRankingLoss(model, mini_batch_size=mini_batch_size)
    expected, actual = (
        loss_and_gradients(model, losses.MatryoshkaLoss(model, loss, [16, 8]), 3, dropout=False)
        for loss in (theirs, ours)
    )
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mini_batch_size", [None, 3], ids=["whole", "cached"])
def test_criterion_is_called_with_anchors_and_positives(
    model: Any, mini_batch_size: int | None
) -> None:
    criterion = cyclip_ext.CyCLIPLoss(0.3, 0.2)
    loss = FusedRankingLoss(model, criterion, mini_batch_size=mini_batch_size)
    actual = loss_and_gradients(model, loss, 3, dropout=False)
    with torch.no_grad():
        anchors, positives, negatives = (
            model(model.preprocess(column))["sentence_embedding"] for column in texts(3)
        )
    expected = criterion(anchors, positives, 20.0, negative_text_features=negatives)
    torch.testing.assert_close(actual[0], expected)


def test_documented_usage_trains(
    model: Any, run_documented: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    anchor, positive = texts(2, rows=12)
    arguments = sentence_transformers.SentenceTransformerTrainingArguments(
        str(tmp_path), max_steps=3, per_device_train_batch_size=4, use_cpu=True, report_to="none"
    )
    before = [parameter.clone() for parameter in model.parameters()]
    trainer = run_documented(
        "sentence-transformers",
        SentenceTransformerTrainer=sentence_transformers.SentenceTransformerTrainer,
        model=model,
        args=arguments,
        pairs=datasets.Dataset.from_dict({"anchor": anchor, "positive": positive}),
    )["trainer"]
    assert 0 < trainer.train().training_loss < 10
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert any(moved)
    assert "FusedRankingLoss" in (tmp_path / "checkpoint-3" / "README.md").read_text()


@pytest.mark.parametrize("directions", [("doc_to_query",), ("query_to_query", "query_to_doc"), ()])
def test_other_directions_raise(model: Any, directions: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="directions must be") as error:
        FusedRankingLoss(model, directions=directions)
    assert repr(directions) in str(error.value)


def test_static_embedding_is_not_split(tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert(tmp_path))
    modules = sentence_transformers.sentence_transformer.modules
    static = modules.StaticEmbedding(tokenizer, embedding_dim=8)
    model = sentence_transformers.SentenceTransformer(modules=[static], device="cpu")
    theirs = losses.MultipleNegativesRankingLoss(model)
    expected = loss_and_gradients(model, theirs, 2, dropout=False)
    actual = loss_and_gradients(model, FusedRankingLoss(model), 2, dropout=False)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"mini_batch_size must be None for .*, got 4"):
        FusedRankingLoss(model, mini_batch_size=4)


def test_options_beside_a_criterion_raise(model: Any) -> None:
    with pytest.raises(ValueError, match="directions, precision only applies to the default"):
        FusedRankingLoss(model, cyclip_ext.CLIPLoss(), directions=SYMMETRIC, precision="bf16")
