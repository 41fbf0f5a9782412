"""Zero-shot metrics against brute force, scikit-learn and hand-computed values."""

import pytest
import torch
from matplotlib.figure import Figure
from sklearn import metrics as sklearn_metrics
from torch.nn.functional import normalize

from cyclip_ext.data import Superclasses
from cyclip_ext.evaluation import (
    Classified,
    class_embeddings,
    classification_metrics,
    classify,
    confusion_counts,
    per_class,
    plot_confusion,
    zero_shot_predict,
)
from cyclip_ext.evaluation.tasks import zero_shot

from .cases import unit


def random_case(classes: int = 17) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return images that are mostly nearest to their class; the last class has none."""
    class_features = unit(classes, 8, seed=1)
    labels = torch.randint(classes - 1, (301,), generator=torch.Generator().manual_seed(2))
    return normalize(class_features[labels] + unit(301, 8), dim=-1), class_features, labels


def test_accuracy_equals_brute_force() -> None:
    images, classes, labels = random_case()
    metrics = classification_metrics(images, classes, labels, (1, 5, 20))
    order = (images @ classes.T).argsort(1, descending=True)
    for k in (1, 5, 20):
        expected = sum(int(labels[i]) in order[i, :k].tolist() for i in range(301)) / 301
        assert metrics[f"acc{k}"] == pytest.approx(expected)
    assert metrics["acc20"] == 1  # more than there are classes


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
    assert torch.equal(confusion_counts(classified), torch.from_numpy(expected))


def test_block_size_does_not_change_results(monkeypatch: pytest.MonkeyPatch) -> None:
    images, classes, labels = random_case()
    whole = classify(images, classes, labels)
    monkeypatch.setattr(zero_shot, "BLOCK", 3 * 17 + 5)  # three images at a time
    parts = classify(images, classes, labels)
    assert torch.equal(whole.ranks, parts.ranks)
    assert torch.equal(whole.predictions, parts.predictions)
    assert torch.equal(zero_shot_predict(images, classes), whole.predictions)


def test_ties_count_against_the_model() -> None:
    # Towers that collapsed to one point must not look perfect.
    images, classes = torch.ones(4, 2) / 2**0.5, torch.ones(3, 2) / 2**0.5
    classified = classify(images, classes, torch.tensor([0, 1, 2, 0]))
    metrics = classified.metrics((1, 2, 3))
    assert (metrics["acc1"], metrics["acc2"], metrics["acc3"]) == (0, 0, 1)
    # A prediction must be one class: there the first wins, right or not.
    assert confusion_counts(classified).tolist() == [[2, 0, 0], [1, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize(("classes", "width"), [(5, 37), (5, 129), (17, 129), (101, 512)])
def test_equal_classes_tie_to_the_last_bit(classes: int, width: int) -> None:
    for dtype in (torch.float32, torch.float64):
        rows = unit(2, width).to(dtype)
        images, texts = rows[:1].repeat(203, 1), rows[1:].repeat(classes, 1)
        classified = classify(images, texts, torch.arange(203) % classes)
        assert classified.metrics((1,))["acc1"] == 0
        assert not zero_shot_predict(images, texts).any()


def test_classes_of_equal_prompts_tie_to_the_last_bit() -> None:

    def embed(texts: list[str]) -> torch.Tensor:
        return torch.eye(len(texts), 8)

    first, _, third = class_embeddings(embed, ["missile", "cat", "missile"], ("a {}", "the {}"))
    assert torch.equal(first, third)


def test_recall_weights_classes_equally_and_ignores_empty_ones() -> None:
    classes = torch.eye(3)
    images = classes[[0, 0, 0, 0]]
    labels = torch.tensor([0, 0, 0, 1])  # class 0 all right, class 1 wrong, class 2 has none
    metrics = classification_metrics(images, classes, labels)
    assert metrics["acc1"] == 0.75
    assert metrics["mean_per_class_recall"] == 0.5


def test_per_class_by_hand() -> None:
    # Class 0: two right, two predicted as 2, one as 1. Class 1: one each as 0, 2. Class 2: right.
    # Class 3 has no image.
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])
    predictions = torch.tensor([0, 0, 2, 1, 2, 2, 0, 2])
    ranks = torch.tensor([0, 0, 1, 5, 4, 1, 1, 0])
    first, second, third, empty = per_class(Classified(labels, ranks, predictions, 4))
    assert (first.count, first.acc1, first.acc5) == (5, 0.4, 0.8)
    assert (first.confused_with, first.confused) == (2, 2)
    assert (second.acc1, second.confused_with, second.confused) == (0, 0, 1)  # of equals the first
    assert (third.acc1, third.confused_with, third.confused) == (1, None, 0)
    assert (empty.label, empty.count, empty.acc1, empty.acc5) == (3, 0, None, None)


def test_per_class_agrees_with_the_whole() -> None:
    classified = classify(*random_case())
    results = per_class(classified)
    wrong = confusion_counts(classified).fill_diagonal_(0)
    for result in results:
        assert result.confused == wrong[result.label].max()
    metrics = classified.metrics()
    hits = sum(result.count * (result.acc5 or 0) for result in results)
    assert hits / len(classified) == pytest.approx(metrics["acc5"])


def test_subset_equals_classification_of_its_rows() -> None:
    images, classes, labels = random_case()
    rows = torch.arange(301) % 3 == 0
    part = classify(images, classes, labels).subset(rows)
    assert part.metrics() == classification_metrics(images[rows], classes, labels[rows])
    with pytest.raises(ValueError, match="no images to score"):
        part.subset(torch.zeros(101, dtype=torch.bool)).metrics()


def test_one_image_of_one_class() -> None:
    metrics = classification_metrics(torch.ones(1, 2), torch.ones(1, 2), torch.tensor([0]))
    assert set(metrics.values()) == {1.0}


def test_confusions_by_superclass_add_up_cells() -> None:
    labels, predictions = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 2, 0, 1, 2])
    classified = Classified(labels, labels, predictions, 3)
    superclasses = Superclasses.build(["a", "b", "a"])
    assert confusion_counts(classified, superclasses).tolist() == [[3, 1], [1, 0]]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_features_are_refused(value: float) -> None:
    # NaN compares false with everything: counted as ranks it would be a perfect score.
    broken, labels = torch.full((10, 4), value), torch.zeros(10, dtype=torch.long)
    with pytest.raises(ValueError, match="image_features must be finite"):
        classification_metrics(broken, torch.ones(3, 4), labels)
    with pytest.raises(ValueError, match="class_features must be finite"):
        classification_metrics(torch.ones(10, 4), broken, labels)


def test_class_embeddings_average_prompts_and_normalize() -> None:
    table = {
        "a cat": [1.0, 0.0],
        "the cat": [0.0, 1.0],
        "a dog": [0.0, -1.0],
        "the dog": [0.0, -1.0],
    }

    def embed(texts: list[str]) -> torch.Tensor:
        return torch.tensor([table[text] for text in texts])

    result = class_embeddings(embed, ["cat", ("dog",)], ("a {}", "the {}"))
    torch.testing.assert_close(result, torch.tensor([[2**-0.5, 2**-0.5], [0.0, -1.0]]))
    with pytest.raises(ValueError, match="names is empty"):
        class_embeddings(embed, [])


def test_classes_without_a_prompt_are_refused() -> None:

    def embed(texts: list[str]) -> torch.Tensor:
        return torch.ones(len(texts), 2)

    with pytest.raises(ValueError, match="1 classes, the first of them 1, have no prompt"):
        class_embeddings(embed, [("cat",), (), ("dog",)])
    with pytest.raises(ValueError, match="2 classes, the first of them 0"):
        class_embeddings(embed, ["cat", "dog"], ())
    for names, templates in (("cat", ("{}",)), (["cat"], "a {}")):
        with pytest.raises(ValueError, match="must be lists of texts"):
            class_embeddings(embed, names, templates)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"\[4, 3\] and \[2, 5\]"):
        zero_shot_predict(torch.ones(4, 3), torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"\[4, 3\] and \[0, 3\]"):
        zero_shot_predict(torch.ones(4, 3), torch.ones(0, 3))
    features = torch.ones(4, 3), torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"labels must be int64 \[4\].*got torch.int64 \[2\]"):
        classify(*features, torch.tensor([0, 1]))
    for labels in (torch.zeros(4, dtype=torch.uint8), torch.zeros(4), torch.zeros(4, 1).long()):
        with pytest.raises(ValueError, match=r"labels must be int64 \[4\]"):
            classify(*features, labels)
    with pytest.raises(ValueError, match="have one dtype, got"):
        classify(features[0].half(), features[1], torch.zeros(4).long())
    with pytest.raises(ValueError, match=r"0 .. 1, the rows of class_features, got -1 .. 2"):
        classify(*features, torch.tensor([0, 2, -1, 1]))
    with pytest.raises(ValueError, match="ks must be 1 or more, got 0"):
        classification_metrics(*features, torch.tensor([0, 0, 1, 1]), (0,))


def test_confusion_of_few_classes_is_a_matrix_of_shares() -> None:
    figure = Figure()
    plot_confusion(figure, torch.tensor([[3, 1], [0, 0]]), ["cat", "dog"])
    axes = figure.axes[0]
    assert axes.images[0].get_array().tolist() == [[0, 25], [0, 0]]
    assert [text.get_text() for text in axes.texts] == ["75%"]  # there is no dog
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    with pytest.raises(ValueError, match=r"\[C, C\] for 3 names, got \[2, 2\]"):
        plot_confusion(figure, torch.ones(2, 2), ["a", "b", "c"])


def test_confusions_of_many_classes_are_the_most_frequent_pairs() -> None:
    counts = torch.zeros(30, 30, dtype=torch.long).fill_diagonal_(9)
    counts[3, 7], counts[4, 2] = 5, 6
    figure = Figure()
    plot_confusion(figure, counts, [f"c{i}" for i in range(30)])
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["c4 → c2", "c3 → c7"]
    assert [bar.get_width() for bar in axes.patches] == [6, 5]
    figure = Figure()
    plot_confusion(figure, torch.eye(30), [f"c{i}" for i in range(30)])
    assert figure.axes[0].texts[0].get_text() == "no confusions"
