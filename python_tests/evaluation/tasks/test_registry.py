"""Every task on one dataset: which tasks run, their order, numbers, tables and plots."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from cyclip_ext.data import SkipReport, Superclasses
from cyclip_ext.evaluation import (
    batch_margins,
    classify,
    compare_models,
    consistency_metrics,
    fine_and_coarse,
    margin_metrics,
    retrieve,
)
from cyclip_ext.evaluation.embeddings import Embeddings
from cyclip_ext.evaluation.tasks import (
    SHORT,
    TASKS,
    TaskResult,
    Unit,
    in_order,
    run_tasks,
    training_metrics,
)
from cyclip_ext.evaluation.tasks.shift import fit_baseline

from .cases import unit

NAMES = tuple(f"class {letter}" for letter in "abcdef")
LEVELS = {"group": Superclasses.build(["x", "x", "x", "y", "y", "z"])}


def dataset(name: str = "set", count: int = 60, seed: int = 0, **options: Any) -> Embeddings:
    """Return images of six classes in two domains, with captions that belong to classes."""
    labels = torch.arange(count) % 6
    classes = unit(6, 8, seed=50)
    values: dict[str, Any] = {
        "labels": labels,
        "class_names": NAMES,
        "class_features": classes,
        "synonym_features": unit(6, 8, seed=51),
        "text_features": unit(12, 8, seed=52),
        "text_labels": torch.arange(12) // 2,
        "domains": torch.arange(count) // 7 % 2,
        "domain_names": ("photo", "sketch"),
        "levels": LEVELS,
    }
    images = classes[labels] + 1.5 * unit(count, 8, seed=seed)
    return Embeddings(images, name=name, **(values | options))


def by_task(results: list[TaskResult]) -> Mapping[str, TaskResult]:
    found = {result.task: result for result in results}
    assert len(found) == len(results)
    return found


@pytest.fixture(scope="module")
def results() -> list[TaskResult]:
    train, shifted = dataset("learned", seed=1), dataset("other", seed=2)
    return run_tasks(dataset(), train=train, shifted=[shifted])


def test_tasks_run_in_the_order_of_the_registry(results: list[TaskResult]) -> None:
    expected = [task for task in TASKS if task != "image_caption_selection"]
    assert [result.task for result in results] == expected
    for result in results:
        assert all(map(math.isfinite, result.values.values())), result
        assert result.explanation.endswith((".", ")"))
        assert all(metric.label and metric.unit in Unit for metric in result.measured)
    assert in_order(reversed(results)) == results


def test_every_plot_is_drawn(results: list[TaskResult], render: Any) -> None:
    plots = {plot.name: plot for result in results for plot in result.plots}
    names = {"confusion", "accuracies", "spectrum", "corners", "quadrilaterals", "margins"}
    assert names | {"fine_coarse_group", "linear_probe_choice", "knn_probe_choice"} == set(plots)
    for plot in plots.values():
        assert render(plot.draw).axes, plot.name
        assert plot.caption.endswith(".")


def test_results_name_every_dataset_they_are_computed_from(results: list[TaskResult]) -> None:
    data = {r.task: [each.name for each in r.data] for r in results}
    assert data["zeroshot_classification"] == ["set"]
    assert data["consistency"] == data["knn_probe"] == ["set", "learned (train)"]
    assert data["distribution_shift"] == ["set", "other"]


def test_numbers_equal_direct_calls(results: list[TaskResult]) -> None:
    found, data, train = by_task(results), dataset(), dataset("learned", seed=1)
    classification = data.classification()
    images, classes, labels = classification
    own = found["zeroshot_classification"].values
    expected = classify(images, classes, labels).metrics()
    assert {key: own[key] for key in expected} == expected
    by_all_names = classify(images, data.synonym_features, labels)
    assert own["acc1_all_names"] == by_all_names.accuracy()
    sketch = data.domains == 1
    assert own["acc1/sketch"] == classify(images[sketch], classes, labels[sketch]).accuracy()
    coarse = fine_and_coarse(images, classes, labels, LEVELS["group"]).metrics((1,))
    assert found["fine_coarse_classification"].values["coarse_acc1/group"] == coarse["coarse_acc1"]
    expected = consistency_metrics(images, classes, train.image_features, train.labels)
    assert found["consistency"].values == expected
    retrieved = found["zeroshot_retrieval"].values
    for name, direct in retrieve(images, data.text_features, labels, data.text_labels).items():
        for k, recall in direct.recalls().items():
            assert retrieved[f"{name}_recall@{k}"] == recall
        assert retrieved[f"{name}_median_rank"] == direct.median_rank()


def test_training_metrics_are_a_selection_of_the_same_numbers(results: list[TaskResult]) -> None:
    found = by_task(results)
    short = run_tasks(dataset(), train=dataset("learned", seed=1), tasks=SHORT, details=False)
    assert not any(result.tables or result.plots for result in short)
    logged = training_metrics(short)
    assert set(logged) == {
        *("acc1", "acc5", "mean_per_class_recall", "acc1_all_names", "acc1/photo", "acc1/sketch"),
        *("group_acc1", "consistency@1"),
        *(f"{way}_retrieval_recall@{k}" for way in ("image", "text") for k in (1, 5, 10)),
    }
    assert logged["acc1"] == found["zeroshot_classification"].values["acc1"]
    coarse = found["fine_coarse_classification"].values["coarse_acc1/group"]
    assert logged["group_acc1"] == coarse
    validation = training_metrics(run_tasks(dataset(), tasks=(SHORT[0],), details=False))
    assert {key: logged[key] for key in validation} == validation


def test_shift_compares_domains_on_the_classes_of_the_base() -> None:
    base = dataset("base", labels=torch.arange(60) % 4)  # no image of the last two classes
    other = dataset("other", seed=2)
    (found,) = run_tasks(base, shifted=[other], tasks=("distribution_shift",))
    classification = other.classification()
    images, classes, labels = classification
    rows = (other.domains == 1) & (labels < 4)
    expected = classify(images[rows], classes, labels[rows]).accuracy()
    assert found.values["acc1/sketch"] == expected
    assert [row[:2] for row in found.tables[0].rows] == [
        ("base", 60),
        ("photo", int(((other.domains == 0) & (labels < 4)).sum())),
        ("sketch", int(rows.sum())),
    ]
    assert "4 classes of which base has images" in found.tables[0].note


def test_shift_compares_datasets_without_domains_whole() -> None:
    plain = [dataset(name, seed=seed, domains=None) for seed, name in enumerate("abc")]
    (found,) = run_tasks(plain[0], shifted=plain[1:], tasks=("distribution_shift",))
    whole = run_tasks(plain[1], tasks=("zeroshot_classification",))[0].values["acc1"]
    assert found.values["acc1/b"] == whole
    assert {"acc1/base", "acc1/c", "acc1_drop/b", "acc1_shifted"} <= set(found.values)
    assert found.tables[0].note == ""
    assert run_tasks(plain[0], tasks=("distribution_shift",)) == []
    unlabelled = Embeddings(unit(3, 8))
    assert run_tasks(plain[0], shifted=[unlabelled], tasks=("distribution_shift",)) == []


def test_baselines_give_effective_robustness_of_the_measured_accuracies(render: Any) -> None:
    # All right on the base, all wrong on the other: half an image is taken off for the logit only.
    classes, labels = torch.eye(4), torch.arange(4)
    base = Embeddings(classes, name="all right", labels=labels, class_features=classes)
    other = replace(base, image_features=classes.roll(1, 0), name="other")
    points = [(0.2, 0.1), (0.6, 0.4)]
    task = ("distribution_shift",)
    (found,) = run_tasks(base, shifted=[other], baselines={"other": points}, tasks=task)
    assert found.values["acc1/base"] == found.values["acc1_drop/other"] == 1
    assert found.values["acc1/other"] == found.values["acc1_shifted"] == 0
    expected = -fit_baseline(points).predict(1 - 0.5 / 4)
    assert found.values["effective_robustness/other"] == pytest.approx(expected)
    assert "Effective robustness" in found.explanation
    assert [plot.name for plot in found.plots] == ["accuracies", "baselines_other"]
    for plot in found.plots:
        render(plot.draw)
    with pytest.raises(ValueError, match="baselines are for 'nowhere', but the"):
        run_tasks(base, shifted=[other], baselines={"nowhere": points}, tasks=task)
    with pytest.raises(ValueError, match='must not be called "base"'):
        run_tasks(base, shifted=[replace(other, name="base")], tasks=task)


def test_geometry_of_captions_pairs_each_image_with_its_first_own() -> None:
    images = unit(3, 8)
    # Image 1 has no caption; those of 2 come before those of 0; all are copies of their image.
    owners = torch.tensor([2, 0, 0, 2])
    data = Embeddings(images, text_features=images[owners], text_owners=owners)
    found = by_task(run_tasks(data))
    assert set(found) == {"zeroshot_retrieval", "geometry", "four_corners", "margins"}
    assert found["geometry"].values["alignment"] == pytest.approx(0, abs=1e-6)
    assert found["margins"].values["positive_margin_share@2"] == 1


def test_margins_use_the_whole_dataset_if_batches_have_no_negative() -> None:
    # Batches of 16 do not use one of 17 images, which may be the only one of its class.
    labels = torch.zeros(17, dtype=torch.int64)
    labels[3] = 1
    data = Embeddings(unit(17, 8), labels=labels, class_features=unit(2, 8, seed=1))
    sizes = set()
    for seed in range(20):
        (found,) = run_tasks(data, tasks=("margins",), seed=seed)
        (size,) = {key.split("@")[1] for key in found.values}
        sizes.add(size)
    assert sizes == {"16", "17"}


def test_one_class_is_measured() -> None:
    labels = torch.zeros(3, dtype=torch.int64)
    data = Embeddings(unit(3, 8), labels=labels, class_features=unit(1, 8, seed=1))
    train = Embeddings(unit(5, 8, seed=3), labels=torch.zeros(5).long(), class_names=("class 0",))
    found = by_task(run_tasks(data, train=train))
    assert set(found) == {"zeroshot_classification", "consistency"}
    note = found["zeroshot_classification"].tables[0].note
    assert note == "Guessing one of 1 classes is right in 100% of the cases."


@pytest.mark.parametrize(
    ("module", "task"),
    [("sklearn.linear_model", "linear_probe"), ("scipy.stats", "distribution_shift")],
)
def test_missing_packages_are_named_in_the_result(
    monkeypatch: pytest.MonkeyPatch, module: str, task: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    train, shifted = dataset("learned", seed=1), [dataset("other", seed=2)]
    (found,) = run_tasks(dataset(), train=train, shifted=shifted, tasks=(task,))
    assert found.values == {}
    assert "pip install 'cyclip_ext[eval]'" in found.explanation


def test_training_data_of_other_classes_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"tasks must be among zeroshot_class.*, got probes"):
        run_tasks(dataset(), tasks=("probes",))
    data = dataset()
    for train, message in (
        (Embeddings(unit(3, 8), name="bare"), "bare has no labels"),
        (dataset("other", class_names=NAMES[::-1]), "other and set must have the same classes"),
        (
            Embeddings(unit(2, 5), labels=torch.tensor([0, 1]), class_names=NAMES),
            "must have 8 columns, as those of set, got 5",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            run_tasks(data, train=train)
    unnamed = replace(data, class_names=None)
    train = Embeddings(unit(9, 8), labels=torch.arange(9), class_features=unit(9, 8))
    with pytest.raises(ValueError, match="labels go up to 8, but set has 6 classes"):
        run_tasks(unnamed, train=train)


def test_models_are_compared_by_their_margins_on_the_same_batches(render: Any) -> None:
    warm, cold = dataset(seed=3), dataset(seed=4)
    found = compare_models({"warm": warm, "cold": cold}, seed=7)
    for name, model in (("warm", warm), ("cold", cold)):
        pairs = model.pairs()
        margins = batch_margins(*pairs[:2], 60, labels=pairs[2], seed=7)
        expected = margin_metrics(margins.image_to_text)
        assert found.values[f"margin_median/{name}"] == expected["q50"]
        assert found.values[f"positive_margin_share/{name}"] == expected["share_positive"]
    render(found.plots[0].draw)
    one = Embeddings(unit(3, 8), labels=torch.zeros(3).long(), class_features=unit(1, 8))
    with pytest.raises(ValueError, match="no pairs of different labels"):
        compare_models({"one": one})


def test_skipped_records_of_every_dataset_reach_the_result() -> None:
    skipped = SkipReport()
    skipped.add("truncated", "a.jpg", 3)
    train = dataset("learned", seed=1, skipped=skipped)
    (found,) = run_tasks(dataset(), train=train, tasks=("consistency",))
    assert [(data.name, data.used, data.total) for data in found.data] == [
        ("set", 60, 60),
        ("learned (train)", 60, 63),
    ]
