"""The whole evaluation: every task is there, and its numbers are those of direct calls."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from cyclip_ext.evaluation import (
    Classified,
    Hierarchy,
    classification_metrics,
    coarse_accuracy,
    fit_baseline,
    retrieval_metrics,
)
from cyclip_ext.evaluation.outcome import Outcome
from cyclip_ext.evaluation.pictures import embed_data, evaluate_pictures, validate_pictures
from cyclip_ext.evaluation.sets import CaptionedImages, ClassifiedImages, Quadruples
from cyclip_ext.evaluation.suite import TASKS, shift
from cyclip_ext.evaluation.suite.data import CaptionedSet, ClassifiedSet, Labelled
from cyclip_ext.evaluation.suite.embeddings import evaluate_embeddings
from cyclip_ext.evaluation.suite.opened import Prompts, evaluate_sets
from cyclip_ext.evaluation.suite.pictures import describe_sets, evaluate_picture_data
from cyclip_ext.evaluation.suite.tasks import of_captions, of_classes

from .tiny import shapes, tiny_encoder

FILES_ONLY = {"image_caption_selection", "caption_completeness"}
CHEAP = set(TASKS) - {"linear_probe"}


def by_key(outcomes: list[Outcome]) -> dict[tuple[str, str], Outcome]:
    found = {(outcome.dataset, outcome.task): outcome for outcome in outcomes}
    assert len(found) == len(outcomes)
    return found


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return evaluate_picture_data(tiny_encoder(), shapes(), CHEAP)


def test_every_task_is_there_in_order(outcomes: list[Outcome]) -> None:
    """Wrong: a task of the report is missing, or the sections come in any order."""
    order = list(dict.fromkeys(outcome.task for outcome in outcomes))
    assert order == [task for task in TASKS if task in CHEAP - FILES_ONLY]
    for outcome in outcomes:
        assert all(map(math.isfinite, outcome.metrics.values())), outcome
        assert outcome.reading.endswith((".", ")"))


def test_every_plot_can_be_drawn(outcomes: list[Outcome]) -> None:
    """Wrong: the report fails at its end."""
    plots = [plot for outcome in outcomes for plot in outcome.plots]
    names = {plot.name for plot in plots}
    assert {"confusion", "accuracies", "spectrum", "corners", "quadrilaterals", "margins"} <= names
    for plot in plots:
        figure = Figure(plot.size)
        plot.draw(figure)
        assert figure.axes, plot.name


def test_numbers_are_those_of_direct_calls(outcomes: list[Outcome]) -> None:
    """Wrong: features of one set are scored with the labels or classes of another."""
    encoder, data = tiny_encoder(), shapes()
    embedded = embed_data(encoder, data)
    found = by_key(outcomes)
    for name, subset in embedded.evaluation.items():
        features, classes = subset.features, subset.class_features
        labels = subset.pictures.labels
        own = found[f"shapes/{name}", "zeroshot_classification"].metrics
        expected = classification_metrics(features, classes, labels)
        assert {key: own[key] for key in expected} == expected
        coarse = coarse_accuracy(
            features, classes, labels, subset.pictures.levels["group"].of_class
        )
        fine_coarse = found[f"shapes/{name}", "fine_coarse_classification"].metrics
        assert fine_coarse["coarse_acc1/group"] == coarse


def test_numbers_are_those_of_the_run(outcomes: list[Outcome]) -> None:
    """Wrong: the report and result.json of one model say different things."""
    results = evaluate_pictures(tiny_encoder(), shapes())
    found = by_key(outcomes)
    assert set(results) == {*shapes().evaluation, "all_shifted"}
    for name in shapes().evaluation:
        own: dict[str, float] = {}
        for task in ("zeroshot_classification", "zeroshot_retrieval", "consistency"):
            if (f"shapes/{name}", task) in found:
                own |= found[f"shapes/{name}", task].metrics
        shared = set(own) & set(results[name])
        assert {"acc1", "acc5", "acc1_all_names", "text_retrieval_recall@5"} <= shared
        assert {key: own[key] for key in shared} == {key: results[name][key] for key in shared}
    assert "consistency@1" in results["shifted"]
    assert "consistency@1" not in results["heldout_shifted"]


def test_validation_of_a_run_is_that_of_its_end() -> None:
    """Wrong: the best checkpoint is chosen by another number than the one reported."""
    quick = validate_pictures(tiny_encoder(), shapes())
    whole = evaluate_pictures(tiny_encoder(), shapes())["validation"]
    assert set(quick) == {"acc1", "acc5", "mean_per_class_recall"}
    assert quick == {key: whole[key] for key in quick}


def test_shift_compares_the_same_classes(outcomes: list[Outcome]) -> None:
    """Wrong: a style looks easier because it has pictures of easier classes."""
    embedded = embed_data(tiny_encoder(), shapes())
    base = embedded.evaluation["in_domain"].pictures.labels.unique()
    subset = embedded.evaluation["shifted"]
    rows = (subset.pictures.domains == 0) & torch.isin(subset.pictures.labels, base)
    expected = classification_metrics(
        subset.features[rows], subset.class_features, subset.pictures.labels[rows], (1,)
    )["acc1"]
    (found,) = [outcome for outcome in outcomes if outcome.task == "distribution_shift"]
    style = subset.pictures.domain_names[0]
    assert found.metrics[f"acc1/{style}"] == expected
    (row,) = [row for row in found.tables[0].rows if row[0] == style]
    assert row[1] == int(rows.sum())
    assert len(found.tables[0].rows) > 2


def test_baselines_give_effective_robustness() -> None:
    style = shapes().evaluation["shifted"].domain_names[0]
    lines = {style: [(0.2, 0.1), (0.6, 0.4)]}
    (found,) = evaluate_picture_data(
        tiny_encoder(), shapes(), {"distribution_shift"}, baselines=lines
    )
    assert f"effective_robustness/{style}" in found.metrics
    assert [plot.name for plot in found.plots] == ["accuracies", f"baselines_{style}"]
    with pytest.raises(ValueError, match=r"baselines are for 'nowhere', but the shifted sets are"):
        evaluate_picture_data(
            tiny_encoder(),
            shapes(),
            {"distribution_shift"},
            baselines={"nowhere": lines[style]},
        )


def test_shift_reports_what_was_measured_beside_a_line() -> None:
    """Wrong: with baselines, 100% reads 87.5%, as half a picture was taken off for the logit."""
    right = Classified(torch.zeros(4, dtype=torch.int64), torch.zeros(4).long(), torch.zeros(4), 2)
    wrong = Classified(right.labels, right.ranks + 1, right.predictions + 1, 2)
    line = {"other": [(0.2, 0.1), (0.6, 0.4)]}
    found = shift.shift("d", ("base", right), {"other": wrong}, line)
    assert found.metrics["acc1/base"] == 1
    assert found.metrics["acc1/other"] == found.metrics["acc1_shifted"] == 0
    assert found.metrics["acc1_drop/other"] == 1
    expected = -fit_baseline(line["other"]).predict(1 - 0.5 / 4)
    assert found.metrics["effective_robustness/other"] == pytest.approx(expected)
    assert "ffective robustness" in found.reading
    plain = shift.shift("d", ("base", right), {"other": wrong})
    assert "ffective robustness" not in plain.reading


def test_sets_are_explained() -> None:
    described = describe_sets(shapes())
    assert set(described) == {f"shapes/{name}" for name in shapes().evaluation}
    assert "never trained on" in described["shapes/shifted"]


class Drawn:
    """Pictures of one colour each."""

    def __init__(self, colours: list[tuple[int, int, int]]) -> None:
        self.colours = colours

    def __len__(self) -> int:
        return len(self.colours)

    def __getitem__(self, index: int, /) -> Image.Image:
        return Image.new("RGB", (20, 16), self.colours[index])


def some_colours(count: int, seed: int = 0) -> Drawn:
    values = np.random.default_rng(seed).integers(0, 256, (count, 3)).tolist()
    return Drawn([tuple(value) for value in values])  # type: ignore[misc]


def classified(name: str, count: int, seed: int = 0) -> ClassifiedImages:
    labels = torch.arange(count) % 3
    return ClassifiedImages(name, some_colours(count, seed), labels, ("red", "green", "blue"))


@pytest.fixture(autouse=True)
def open_clip_or_skip(request: pytest.FixtureRequest) -> None:
    """Sets from files go through open_clip's transform."""
    if "opened" in request.node.name:
        pytest.importorskip("open_clip")


def test_opened_sets_of_every_kind() -> None:
    """Wrong: a kind of set has no section, or the first set is not the base of the shift."""
    pairs = tuple((f"a {i}", f"b {i}") for i in range(4))
    found = by_key(
        evaluate_sets(
            tiny_encoder(),
            [
                classified("base", 12),
                classified("other", 9, seed=1),
                CaptionedImages("captions", some_colours(5), tuple(zip("abcde", strict=True))),
                Quadruples(
                    "quadruples", some_colours(4), some_colours(4, 1), pairs, ("x", "x", "y", "")
                ),
            ],
            CHEAP,
            train=classified("learned", 30, seed=2),
            hierarchy_of=partial(Hierarchy.build, {"red": "warm", "green": "cold", "blue": "cold"}),
        )
    )
    tasks = {task for _, task in found}
    assert tasks == CHEAP - {"caption_completeness"}
    compared = found["base and others", "distribution_shift"].metrics
    assert compared["acc1/base"] == found["base", "zeroshot_classification"].metrics["acc1"]
    assert compared["acc1/other"] == found["other", "zeroshot_classification"].metrics["acc1"]
    assert {row[0] for row in found["quadruples", "image_caption_selection"].tables[0].rows} == {
        *("none", "x", "y")
    }
    assert "consistency@10" in found["other", "consistency"].metrics


def test_opened_sets_take_prompts_by_class() -> None:
    """Wrong: --class-names and --templates change nothing, or the names of other classes."""
    encoder, data = tiny_encoder(), classified("set", 12)
    names = (("crimson", "scarlet"), ("lime",), ("navy",))
    (outcome,) = evaluate_sets(
        encoder,
        [data],
        {"zeroshot_classification"},
        prompts=Prompts(names, ("a {} wall", "{}")),
    )
    assert {row[0] for row in outcome.tables[0].rows} == {"crimson", "lime", "navy"}
    (plain,) = evaluate_sets(encoder, [data], {"zeroshot_classification"})
    rows = Prompts(names, ("a {} wall", "{}")).embedded(encoder, data)
    texts = ["a crimson wall", "crimson", "a scarlet wall", "scarlet"]
    assert torch.allclose(rows[0], normalize(encoder.texts(texts).mean(0), dim=0), atol=1e-6)
    assert {row[0] for row in plain.tables[0].rows} == {"red", "green", "blue"}
    with pytest.raises(ValueError, match="2 class names for the 3 classes of set"):
        evaluate_sets(encoder, [data], prompts=Prompts(names[:2]))


def test_opened_sets_that_do_not_fit_are_named() -> None:
    encoder = tiny_encoder()
    with pytest.raises(ValueError, match="different names, got a, a; rename one"):
        evaluate_sets(encoder, [classified("a", 6), classified("a", 6)])
    with pytest.raises(ValueError, match="none of linear_probe can be measured on a"):
        evaluate_sets(encoder, [classified("a", 6)], {"linear_probe"})
    other = ClassifiedImages("b", some_colours(2), torch.tensor([0, 1]), ("cat", "dog"))
    with pytest.raises(ValueError, match="b and a must have the same classes"):
        evaluate_sets(encoder, [classified("a", 6)], train=other)


def rows(count: int, seed: int) -> Tensor:
    return normalize(torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_geometry_of_captions_pairs_each_picture_with_its_first_own() -> None:
    """Wrong: pictures are paired with captions of others, so alignment and margins mean nothing."""
    images = rows(3, 0)
    # Picture 1 has no caption; those of 2 come before those of 0; all are copies of their picture.
    owners = torch.tensor([2, 0, 0, 2])
    data = CaptionedSet("set", images, images[owners], torch.arange(3), owners)
    found = by_key(of_captions(data, {"geometry", "margins", "four_corners"}))
    assert found["set", "geometry"].metrics["alignment"] == pytest.approx(0, abs=1e-6)
    assert found["set", "margins"].metrics["positive_margin_share@2"] == 1


def test_rare_class_does_not_end_the_report() -> None:
    """Wrong: a batch without a negative, the 17th picture being left over, stops everything."""
    for seed in range(20):
        labels = torch.zeros(17, dtype=torch.int64)
        labels[3] = 1
        data = ClassifiedSet("set", rows(17, 0), rows(2, 1), labels, ("common", "rare"))
        (outcome,) = of_classes(data, {"margins"}, seed=seed)
        assert set(outcome.metrics) in (
            {"positive_margin_share@16", "margin_mean@16"},
            {"positive_margin_share@17", "margin_mean@17"},
        )


def test_one_class_is_measured() -> None:
    """Wrong: chance reads 1e+02%, or probes that have nothing to learn stop the rest."""
    labels = torch.zeros(3, dtype=torch.int64)
    train = Labelled(rows(5, 3), torch.zeros(5, dtype=torch.int64))
    data = ClassifiedSet("set", rows(3, 0), rows(1, 1), labels, ("only",), train)
    found = by_key(of_classes(data, TASKS))
    assert {task for _, task in found} == {"zeroshot_classification", "consistency"}
    note = found["set", "zeroshot_classification"].tables[0].note
    assert note == "Guessing one of 1 classes would be right in 100%."


def test_embeddings_from_a_file(tmp_path: Path) -> None:
    """Wrong: lengths of the rows matter, or owners of captions are not heeded."""
    images, classes, texts = rows(20, 1), rows(4, 2), rows(40, 3)
    labels, owners = torch.arange(20) % 4, torch.arange(40) // 2
    arrays = {
        "image_features": 3 * images.numpy(),
        "class_features": classes.numpy(),
        "class_names": np.array(["a", "b", "c", "d"]),
        "labels": labels.numpy(),
        "text_features": texts.numpy(),
        "text_owners": owners.numpy(),
    }
    np.savez(tmp_path / "set.npz", **arrays)
    np.savez(
        tmp_path / "train.npz",
        **{**arrays, "image_features": rows(20, 4).numpy()},
    )
    found = by_key(
        evaluate_embeddings(
            tmp_path / "set.npz",
            CHEAP,
            train=tmp_path / "train.npz",
            hierarchy_of=partial(Hierarchy.build, {"a": "x", "b": "x", "c": "y", "d": "y"}),
        )
    )
    assert {task for _, task in found} == CHEAP - FILES_ONLY - {"distribution_shift"}
    own = found["set", "zeroshot_classification"].metrics
    assert own == pytest.approx(classification_metrics(images, classes, labels))
    expected = retrieval_metrics(images, texts, torch.arange(20), owners)
    retrieved = found["set", "zeroshot_retrieval"].metrics
    assert {key: retrieved[key] for key in expected} == pytest.approx(expected)

    np.savez(tmp_path / "other.npz", **{**arrays, "class_names": np.array(["b", "a", "c", "d"])})
    with pytest.raises(ValueError, match=r"other.npz: class_names must be those of the tested"):
        evaluate_embeddings(tmp_path / "set.npz", CHEAP, train=tmp_path / "other.npz")
    np.savez(tmp_path / "bare.npz", image_features=images.numpy())
    with pytest.raises(ValueError, match=r"bare.npz: none of .* can be measured; labels with"):
        evaluate_embeddings(tmp_path / "bare.npz")
    with pytest.raises(ValueError, match=r"bare.npz has no labels"):
        evaluate_embeddings(tmp_path / "set.npz", CHEAP, train=tmp_path / "bare.npz")


@pytest.mark.slow
def test_linear_probe_on_the_named_set() -> None:
    """Wrong: the probe learns from the pictures that it is tested on, or from texts."""
    data = shapes()
    (outcome,) = evaluate_picture_data(tiny_encoder(), data, {"linear_probe"})
    assert outcome.dataset == "shapes/shifted"
    assert set(outcome.metrics) == {"lp_acc1", "lp_acc5", "lp_mean_per_class_recall"}
    assert 0 < outcome.metrics["lp_acc1"] < 1
