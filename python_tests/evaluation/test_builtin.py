"""Built-in datasets: report, result.json and validation of one model agree to the bit."""

from __future__ import annotations

import math

import pytest
import torch
from training.parts import shapes

from cyclip_ext.evaluation import TASKS, Prompts, TaskResult, encode, encode_splits, evaluate_splits
from cyclip_ext.training.assess import Assessor
from cyclip_ext.training.data import RunData

from .tiny import tiny_encoder

CHEAP = set(TASKS) - {"linear_probe"}


@pytest.fixture(scope="module")
def results() -> list[TaskResult]:
    return evaluate_splits(*encode_splits(shapes(), tiny_encoder()), tasks=CHEAP)


@pytest.fixture(scope="module")
def assessor() -> Assessor:
    return Assessor(tiny_encoder())


@pytest.fixture
def data() -> RunData:
    return RunData(shapes().train, "", splits=shapes())


def test_every_task_is_run_in_order(results: list[TaskResult]) -> None:
    order = list(dict.fromkeys(result.task for result in results))
    assert order == [task for task in TASKS if task in CHEAP - {"image_caption_selection"}]
    for result in results:
        assert all(map(math.isfinite, result.values.values())), result
    with_tables = {result.dataset for result in results if result.tables}
    assert with_tables == {"shapes/shifted", "shapes/in_domain"}


def test_report_and_run_have_the_same_numbers(
    results: list[TaskResult], assessor: Assessor, data: RunData
) -> None:
    of_run = assessor.evaluate(data)
    assert set(of_run) == {*shapes().evaluation, "all_shifted"}
    for name in shapes().evaluation:
        own = {
            key: value
            for result in results
            if result.dataset == f"shapes/{name}"
            for key, value in result.values.items()
        }
        shared = set(own) & set(of_run[name])
        assert {"acc1", "acc5", "acc1_all_names", "text_retrieval_recall@5"} <= shared
        assert {key: own[key] for key in shared} == {key: of_run[name][key] for key in shared}
        assert own["coarse_acc1/group"] == of_run[name]["group_acc1"]
    assert "consistency@1" in of_run["shifted"]
    assert "consistency@1" not in of_run["heldout_shifted"]
    counts = [len(shapes().evaluation[name]) for name in ("validation", "shifted")]
    joined = sum(
        of_run[name]["acc1"] * count
        for name, count in zip(("validation", "shifted"), counts, strict=True)
    )
    assert of_run["all_shifted"]["acc1"] == pytest.approx(joined / sum(counts))


def test_validation_has_the_numbers_of_the_evaluation(assessor: Assessor, data: RunData) -> None:
    """The best checkpoint is chosen by the number that is reported."""
    quick = assessor.validate(data)
    whole = assessor.evaluate(data)["validation"]
    assert set(quick) == {"acc1", "acc5", "mean_per_class_recall"}
    assert quick == {key: whole[key] for key in quick}


def test_classes_of_equal_names_are_embedded_once() -> None:
    train, sets = encode_splits(shapes(), tiny_encoder(), templates=("a {}",))
    assert train.class_features is not None
    for name, dataset in shapes().evaluation.items():
        features = sets[name].class_features
        alone = encode(dataset, tiny_encoder(), prompts=Prompts(templates=("a {}",)))
        assert torch.equal(features, alone.class_features)
        shared = features.data_ptr() == train.class_features.data_ptr()
        assert shared == (dataset.class_names == shapes().train.class_names)
