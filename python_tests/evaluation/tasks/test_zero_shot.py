"""Zero-shot metrics against brute force, scikit-learn and hand-computed values."""

from typing import Any

import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch.nn.functional import normalize

from cyclip_ext.data import Superclasses
from cyclip_ext.evaluation import Embeddings, class_embeddings, classify
from cyclip_ext.evaluation.tasks import zero_shot
from cyclip_ext.evaluation.tasks.zero_shot import Classified, class_table, confusion_plot

from .cases import unit


def random_case(classes: int = 17) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return images that are mostly nearest to their class; the last class has none."""
    class_features = unit(classes, 8, seed=1)
    labels = torch.randint(classes - 1, (301,), generator=torch.Generator().manual_seed(2))
    return normalize(class_features[labels] + unit(301, 8), dim=-1), class_features, labels


def test_metrics_and_confusions_equal_scikit_learn() -> None:
    images, classes, labels = random_case()
    scores, names = (images @ classes.T).numpy(), range(17)
    classified = classify(images, classes, labels)
    metrics = classified.metrics()
    assert set(metrics) == {"acc1", "acc3", "acc5", "acc10", "mean_per_class_recall"}
    for k in (1, 3, 5, 10):
        assert metrics[f"acc{k}"] == pytest.approx(
            sklearn_metrics.top_k_accuracy_score(labels, scores, k=k, labels=names)
        )
    present = labels.unique()
    assert metrics["mean_per_class_recall"] == pytest.approx(
        sklearn_metrics.recall_score(
            labels, scores.argmax(1), labels=present, average="macro", zero_division=0
        ),
        rel=1e-12,  # not as rounded to float32
    )
    expected = sklearn_metrics.confusion_matrix(labels, scores.argmax(1), labels=names)
    confusions = classified.confusions()
    assert {(true, wrong): count for true, wrong, count in confusions} == {
        (true, wrong): expected[true, wrong]
        for true, wrong in zip(*expected.nonzero(), strict=True)
        if true != wrong
    }
    assert confusions == sorted(confusions, key=lambda each: (-each[2], *each[:2]))


def test_block_size_does_not_change_results(monkeypatch: pytest.MonkeyPatch) -> None:
    images, classes, labels = random_case()
    whole = classify(images, classes, labels)
    monkeypatch.setattr(zero_shot, "BLOCK", 3 * 17 + 5)  # three images at a time
    parts = classify(images, classes, labels)
    assert torch.equal(whole.ranks, parts.ranks)
    assert torch.equal(whole.predictions, parts.predictions)


def test_ties_count_against_the_model() -> None:
    # Towers that collapsed to one point must not look perfect.
    images, classes = torch.ones(4, 2) / 2**0.5, torch.ones(3, 2) / 2**0.5
    classified = classify(images, classes, torch.tensor([0, 1, 2, 0]))
    assert [classified.accuracy(k) for k in (1, 2, 3)] == [0, 0, 1]
    # A prediction must be one class: there the first wins, right or not.
    assert classified.confusions() == [(1, 0, 1), (2, 0, 1)]


@pytest.mark.parametrize(("classes", "width"), [(5, 37), (5, 129), (17, 129), (101, 512)])
def test_equal_classes_tie_to_the_last_bit(classes: int, width: int) -> None:
    for dtype in (torch.float32, torch.float64):
        rows = unit(2, width).to(dtype)
        images, texts = rows[:1].repeat(203, 1), rows[1:].repeat(classes, 1)
        classified = classify(images, texts, torch.arange(203) % classes)
        assert classified.accuracy() == 0
        assert not classified.predictions.any()


def test_subset_equals_classification_of_its_rows() -> None:
    images, classes, labels = random_case()
    rows = torch.arange(301) % 3 == 0
    part = classify(images, classes, labels).subset(rows)
    assert part.metrics() == classify(images[rows], classes, labels[rows]).metrics()


def test_table_of_classes_by_hand() -> None:
    # Class 0: two right, two predicted as 2, one as 1. Class 1: one each as 0, 2. Class 2: right.
    # Class 3 has no image.
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])
    predictions = torch.tensor([0, 0, 2, 1, 2, 2, 0, 2])
    ranks = torch.tensor([0, 0, 1, 5, 4, 1, 1, 0])
    table = class_table(Classified(labels, ranks, predictions, 4), "abcd")
    assert table.rows == (
        ("c", 1, 100, 100, "", 0),
        ("a", 5, 40, 80, "c", 2),
        ("b", 2, 0, 100, "a", 1),  # of equally frequent confusions the first
    )
    assert table.note == "Guessing one of 4 classes is right in 25% of the cases."


def test_class_embeddings_average_prompts_and_normalize() -> None:
    table = {"a cat": [1.0, 0.0], "the cat": [0.0, 1.0], "a dog": [0.0, -1.0]}
    table["the dog"] = table["a dog"]

    def embed(texts: list[str]) -> torch.Tensor:
        return torch.tensor([table[text] for text in texts])

    result = class_embeddings(embed, ["cat", ("dog",)], ("a {}", "the {}"))
    torch.testing.assert_close(result, torch.tensor([[2**-0.5, 2**-0.5], [0.0, -1.0]]))


def embed_as_units(texts: list[str]) -> torch.Tensor:
    return torch.eye(len(texts), 8)


def test_classes_of_equal_prompts_tie_to_the_last_bit() -> None:
    names, templates = ["missile", "cat", "missile"], ("a {}", "the {}")
    first, _, third = class_embeddings(embed_as_units, names, templates)
    assert torch.equal(first, third)


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ([], ("{}",), "names must have at least one class"),
        ([("cat",), (), ("dog",)], ("{}",), "1 classes, the first of them 1, have no prompt"),
        (["cat", "dog"], (), "2 classes, the first of them 0"),
        ("cat", ("{}",), "must be lists of texts"),
        (["cat"], "a {}", "must be lists of texts"),
    ],
)
def test_classes_without_a_prompt_are_rejected(names: Any, templates: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_embeddings(embed_as_units, names, templates)


def confusion_axes(
    render: Any, pairs: dict[tuple[int, int], int], names: Any, **fields: Any
) -> Any:
    """Plot images of which count have the true and the predicted class of each pair."""
    labels, predictions = (
        torch.tensor([pair[i] for pair, count in pairs.items() for _ in range(count)])
        for i in (0, 1)
    )
    classified = Classified(labels, labels, predictions, len(names))
    embeddings = Embeddings(torch.eye(2), class_names=tuple(names), **fields)
    return render(confusion_plot(classified, embeddings).draw).axes[0]


def test_confusion_of_few_classes_is_a_matrix_of_shares(render: Any) -> None:
    axes = confusion_axes(render, {(0, 0): 3, (0, 1): 1}, ("cat", "$_$"))
    assert axes.images[0].get_array().tolist() == [[0, 25], [0, 0]]
    assert [text.get_text() for text in axes.texts] == ["75%"]  # the other class has no image
    # Dollar signs in names are not formulas.
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", r"\$_\$"]


def test_confusions_of_many_classes_are_the_most_frequent_pairs(render: Any) -> None:
    names = [f"c{i}" for i in range(30)]
    axes = confusion_axes(render, {(0, 0): 9, (3, 7): 5, (4, 2): 6}, names)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["c4 → c2", "c3 → c7"]
    assert [bar.get_width() for bar in axes.patches] == [6, 5]
    axes = confusion_axes(render, {(0, 0): 9}, names)
    assert axes.texts[0].get_text() == "no confusions"


def test_confusions_of_many_classes_are_added_up_by_the_coarsest_level(render: Any) -> None:
    levels = {
        "fine": Superclasses.build([f"f{i // 2}" for i in range(30)]),
        "coarse": Superclasses.build(["a"] * 10 + ["b"] * 20),
    }
    pairs = {(0, 0): 1, (1, 2): 2, (3, 29): 1, (12, 13): 2}
    axes = confusion_axes(render, pairs, [f"c{i}" for i in range(30)], levels=levels)
    assert axes.images[0].get_array().tolist() == [[0, 25], [0, 0]]
    assert [text.get_text() for text in axes.texts] == ["75%", "100%"]
