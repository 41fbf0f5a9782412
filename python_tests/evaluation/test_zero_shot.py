"""Zero-shot metrics against brute force and hand-computed values."""

import pytest
import torch
from torch.nn.functional import normalize

from cyclip_ext.evaluation import (
    class_embeddings,
    classification_metrics,
    coarse_accuracy,
    zero_shot_predict,
)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_accuracy_equals_brute_force() -> None:
    images, classes = unit(301, 8), unit(17, 8, seed=1)
    labels = torch.randint(17, (301,), generator=torch.Generator().manual_seed(2))
    metrics = classification_metrics(images, classes, labels, (1, 5, 20))
    order = (images @ classes.T).argsort(1, descending=True)
    for k in (1, 5, 20):
        expected = sum(int(labels[i]) in order[i, :k].tolist() for i in range(301)) / 301
        assert metrics[f"acc{k}"] == pytest.approx(expected)
    assert metrics["acc20"] == 1  # more than there are classes


def test_ties_count_against_the_model() -> None:
    # Towers that collapsed to one point must not look perfect.
    images, classes = torch.ones(4, 2) / 2**0.5, torch.ones(3, 2) / 2**0.5
    metrics = classification_metrics(images, classes, torch.tensor([0, 1, 2, 0]), (1, 2, 3))
    assert (metrics["acc1"], metrics["acc2"], metrics["acc3"]) == (0, 0, 1)


def test_recall_weighs_classes_equally_and_leaves_empty_ones_out() -> None:
    classes = torch.eye(3)
    images = classes[[0, 0, 0, 0]]
    labels = torch.tensor([0, 0, 0, 1])  # class 0 all right, class 1 wrong, class 2 has none
    metrics = classification_metrics(images, classes, labels)
    assert metrics["acc1"] == 0.75
    assert metrics["mean_per_class_recall"] == 0.5


def test_coarse_is_the_maximum_over_a_superclass() -> None:
    # Of superclass 0 both classes are fairly near, of superclass 1 one class is nearest: a sum or
    # mean over the superclass would choose 0.
    classes = normalize(torch.tensor([[1.0, 0.9], [1.0, 0.8], [1.0, 0.0], [-1.0, 0.0]]), dim=-1)
    images = torch.tensor([[1.0, 0.0]])
    coarse = torch.tensor([0, 0, 1, 1])
    assert coarse_accuracy(images, classes, torch.tensor([3]), coarse) == 1
    assert coarse_accuracy(images, classes, torch.tensor([0]), coarse) == 0


def test_coarse_tie_counts_against_the_model() -> None:
    # Collapsed towers score 0, whichever class comes first; ties within a superclass are no error.
    same, coarse = torch.ones(4, 2), torch.tensor([0, 0, 1, 1])
    assert coarse_accuracy(same, same, torch.arange(4), coarse) == 0
    assert coarse_accuracy(same, same, torch.arange(4), torch.zeros(4, dtype=torch.long)) == 1


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    # NaN compares false with everything: counted as ranks it would be a perfect score.
    broken, labels = torch.full((10, 4), value), torch.zeros(10, dtype=torch.long)
    with pytest.raises(ValueError, match="image_features must be finite"):
        classification_metrics(broken, torch.ones(3, 4), labels)
    with pytest.raises(ValueError, match="class_features must be finite"):
        coarse_accuracy(torch.ones(10, 4), broken, labels, labels)


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


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\[4, 3\] and \[2, 5\]"):
        zero_shot_predict(torch.ones(4, 3), torch.ones(2, 5))
    with pytest.raises(ValueError, match="labels has 2 entries for 4"):
        classification_metrics(torch.ones(4, 3), torch.ones(2, 3), torch.tensor([0, 1]))
