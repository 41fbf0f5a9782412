"""`python -m cyclip_ext.evaluation` from a command line to a report, and its errors."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from losses.programs import run_program
from models.tiny import create_tiny
from PIL import Image

from cyclip_ext.analysis import batch_margins, margin_metrics
from cyclip_ext.data import load_named
from cyclip_ext.evaluation import open_set
from cyclip_ext.evaluation.__main__ import main
from cyclip_ext.evaluation.encoder import Encoder
from cyclip_ext.evaluation.suite.checkpoints import embedded_pairs
from cyclip_ext.evaluation.suite.opened import Prompts
from cyclip_ext.models import trained
from cyclip_ext.models.trained import load_trained

from .tiny import write_checkpoint

CHEAP = ["zeroshot_classification", "consistency", "margins", "fine_coarse_classification"]


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained, "create_model", create_tiny)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "run/checkpoints/best.pt")
    return tmp_path / "run"


def write_classes(folder: Path, per_class: int = 4) -> Path:
    for number, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            colour = [20 * index] * 3
            colour[number] = 200
            Image.new("RGB", (18, 18), tuple(colour)).save(folder / name / f"{index}.png")
    return folder


def tasks_of(folder: Path) -> dict[tuple[str, str], dict[str, float]]:
    records = json.loads((folder / "results.json").read_text())
    return {(record["dataset"], record["task"]): record["metrics"] for record in records}


def test_run_is_measured_on_its_own_data(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong: the report is of other data or lies elsewhere than it says."""
    assert main([str(run), "--tasks", *CHEAP]) == 0
    found = tasks_of(run / "evaluation")
    assert {dataset.split("/")[0] for dataset, _ in found} == {"shapes"}
    assert {task for _, task in found} == set(CHEAP)
    shown = capsys.readouterr().out
    assert f"wrote {run / 'evaluation/report.html'}" in shown
    page = (run / "evaluation/report.html").read_text()
    for fact in ("Evaluation of run (tiny)", "3 epochs on shapes, seed 7", "in_modal 0.25"):
        assert fact in page, fact


def test_folder_of_classes(run: Path, tmp_path: Path) -> None:
    """Wrong: options for sets from files are taken and not used."""
    pytest.importorskip("open_clip")
    data, other = write_classes(tmp_path / "colours"), write_classes(tmp_path / "paints", 3)
    (data / "red/broken.png").write_bytes(b"no picture")
    (tmp_path / "t.txt").write_text("a {} wall\n{}\n")
    (tmp_path / "h.json").write_text('{"warm": ["red"], "cold": ["green", "blue"]}')
    (tmp_path / "b.csv").write_text("model,base,paints\nx,0.3,0.2\ny,0.6,0.5\n")
    words = [str(run / "checkpoints/best.pt"), "--output", str(tmp_path / "out")]
    words += ["--data", str(data), "--data", f"folder:{other}", "--train-data", str(other)]
    words += ["--templates", str(tmp_path / "t.txt"), "--hierarchy", str(tmp_path / "h.json")]
    words += ["--baselines", str(tmp_path / "b.csv"), "--batch-size", "5", "--device", "cpu"]
    assert main([*words, "--tasks", *CHEAP, "distribution_shift", "knn_probe"]) == 0
    found = tasks_of(tmp_path / "out")
    assert {dataset for dataset, _ in found} == {"colours", "paints", "colours and others"}
    assert {task for _, task in found} == {*CHEAP, "distribution_shift", "knn_probe"}
    assert found["paints", "knn_probe"]["knn_acc1"] == 1  # it learned these very pictures
    assert "effective_robustness/paints" in found["colours and others", "distribution_shift"]
    with (tmp_path / "out/tables/colours-zeroshot_classification-1.csv").open() as file:
        assert sum(int(line.split(",")[1]) for line in list(file)[1:]) == 12  # without the broken


def test_margins_of_several_checkpoints(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong: models are mixed up, or shown other pictures than the others."""
    write_checkpoint(tmp_path / "warm/checkpoints/best.pt", seed=1)
    data = write_classes(tmp_path / "colours")
    words = ["--tasks", "margins", "--output", str(tmp_path / "out")]
    for spec, name in ((str(data), "colours"), ("shapes", "shapes/shifted")):
        beside = ["--beside", str(tmp_path / "warm")]
        assert main([str(run), "--data", spec, *words, *beside]) == 0
        both = tasks_of(tmp_path / "out")[name, "margins_of_checkpoints"]
        for folder, title in ((run, "run (tiny)"), (tmp_path / "warm", "warm (tiny)")):
            assert main([str(folder), "--data", spec, *words, "--beside", str(folder)]) == 2
            assert "two models called" in capsys.readouterr().err
            model = load_trained(folder).created
            encoder = Encoder(model.model, model.tokenizer, 16, torch.device("cpu"))
            pictures = (
                open_set(spec) if name == "colours" else load_named(spec).evaluation["shifted"]
            )
            images, texts, labels = embedded_pairs(encoder, pictures, Prompts())
            margins = batch_margins(images, texts, min(128, len(labels)), labels=labels)
            expected = margin_metrics(margins.image_to_text)["q50"]
            assert both[f"margin_median/{title}"] == pytest.approx(expected)
    assert both["margin_median/run (tiny)"] != both["margin_median/warm (tiny)"]


def test_superclasses_from_a_graph(tmp_path: Path) -> None:
    """Wrong: WordNet's files cannot be used from the command line, or the depth is another's."""
    (tmp_path / "is_a.txt").write_text("n0 n1\nn0 n2\nn1 n3\nn1 n4\nn2 n5\n")
    names = ["colour", "warm", "cold", "red", "orange", "blue"]
    (tmp_path / "words.txt").write_text("".join(f"n{i}\t{name}\n" for i, name in enumerate(names)))
    image_features = np.eye(3, 4, dtype=np.float32)
    class_features = np.eye(3, 4, dtype=np.float32)[[1, 0, 2]]  # red and orange are mixed up
    np.savez(
        tmp_path / "e.npz",
        image_features=image_features,
        class_features=class_features,
        class_names=np.array(["red", "orange", "blue"]),
        labels=np.arange(3),
    )
    words = ["--embeddings", str(tmp_path / "e.npz"), "--output", str(tmp_path / "out")]
    words += ["--hierarchy", str(tmp_path / "is_a.txt"), "--words", str(tmp_path / "words.txt")]
    tasks = ["--tasks", "fine_coarse_classification"]
    assert main([*words, *tasks, "--depth", "1"]) == 0
    (metrics,) = tasks_of(tmp_path / "out").values()
    assert metrics["fine_acc1/superclass"] == pytest.approx(1 / 3)
    assert metrics["coarse_acc1/superclass"] == 1


def test_embeddings_and_captions_need_no_model(tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((12, 8)).astype(np.float32)
    np.savez(tmp_path / "e.npz", image_features=features, text_features=features)
    instances = {
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [{"image_id": 5, "category_id": 1}, {"image_id": 5, "category_id": 2}],
    }
    captions = {"annotations": [{"image_id": 5, "caption": "A dog."}]}
    (tmp_path / "i.json").write_text(json.dumps(instances))
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    words = ["--completeness", str(tmp_path / "i.json"), str(tmp_path / "captions.json")]
    words += ["--output", str(tmp_path / "out")]
    assert main(["--embeddings", str(tmp_path / "e.npz"), *words]) == 0
    found = tasks_of(tmp_path / "out")
    assert found["e", "zeroshot_retrieval"]["image_retrieval_recall@1"] == 1
    assert found["captions", "caption_completeness"]["missing_per_caption"] == 1
    assert main(words) == 0
    assert set(tasks_of(tmp_path / "out")) == {("captions", "caption_completeness")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to evaluate"),
        (["x", "--embeddings", "y"], "not several"),
        (["--model", "RN50"], "--model and --pretrained belong together"),
        (["--model", "RN50", "--pretrained", "x"], "--data must name"),
        (["--embeddings", "y", "--data", "emoji"], "--data needs a model"),
        (["x", "--depth", "2"], "--depth needs --hierarchy"),
        (["x", "--hierarchy", "y.csv", "--words", "z"], "--words needs --hierarchy and --depth"),
        (["x", "--batch-size", "0"], "--batch-size must be 1 or more, got 0"),
        (["x", "--data", "a", "--data", "a"], "--data must name different sets, got a, a"),
        (["--completeness", "i", "c", "--hierarchy", "h"], "neither --train-data nor --hierarchy"),
        (["x", "--tasks", "guessing"], "invalid choice: 'guessing'"),
    ],
)
def test_options_that_do_not_go_together(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_errors_are_one_line_and_leave_no_report(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong: a traceback, a status of success, or an empty folder that looks like a report."""
    (tmp_path / "bad.npz").write_bytes(b"PK")
    lines = tmp_path / "b.csv"
    lines.write_text("model,base,y\nx,0.3,0.2\nz,0.6,0.5\n")
    out = str(tmp_path / "out")
    for words, message in (
        ([str(tmp_path / "none")], "there is no checkpoint at"),
        ([str(run), "--device", "tpu9"], "--device tpu9 cannot be used"),
        ([str(run), "--data", str(tmp_path / "nowhere")], "does not exist"),
        ([str(run), "--hierarchy", "cifar100"], "--hierarchy is for sets from files"),
        ([str(run), "--templates", str(tmp_path / "none.txt")], "none.txt"),
        (
            [str(run), "--tasks", "image_caption_selection"],
            "none of image_caption_selection can be",
        ),
        ([str(run), "--data", "folder:x", "--split", "val"], "none of folder:x has splits"),
        ([str(run), "--data", "x", "--baselines", str(lines)], "--baselines needs a second --data"),
        (["--embeddings", str(tmp_path / "bad.npz")], "bad.npz"),
    ):
        assert main([*words, "--output", out]) == 2, words
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_output_is_checked_before_anything_is_measured(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong: hours of measuring end with "not a directory"."""

    def measured(*arguments: object) -> None:
        raise AssertionError("it was measured")

    monkeypatch.setattr("cyclip_ext.evaluation.__main__.run_job", measured)
    (run / "file").touch()
    assert main([str(run), "--output", str(run / "file/report")]) == 2
    assert f"{run / 'file'} is no writable folder" in capsys.readouterr().err


def test_splits_of_a_webdataset_without_its_kind(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong: --split is not heeded, or the probes learn from the pictures they are tested on."""
    pytest.importorskip("open_clip")
    data = tmp_path / "shards"
    pictures = write_classes(tmp_path / "colours", 3)
    for split, count in (("test", 3), ("val", 2)):
        (data / split).mkdir(parents=True)
        with tarfile.open(data / split / "0.tar", "w") as archive:
            for label, name in enumerate(("red", "green", "blue")):
                for index in range(count):
                    archive.add(pictures / name / f"{index}.png", f"{label}{index}.png")
                    entry = tarfile.TarInfo(f"{label}{index}.cls")
                    entry.size = 1
                    archive.addfile(entry, io.BytesIO(str(label).encode()))
    (data / "classnames.txt").write_text("red\ngreen\nblue\n")
    words = [str(run), "--data", str(data), "--output", str(tmp_path / "out")]
    words += ["--tasks", "zeroshot_classification"]
    assert main([*words, "--split", "val"]) == 0
    (table,) = (tmp_path / "out/tables").iterdir()
    assert sum(int(line.split(",")[1]) for line in table.read_text().splitlines()[1:]) == 6
    assert main([*words, "--train-data", str(data)]) == 2
    assert "nor train/*.tar" in capsys.readouterr().err


def test_interruption_writes_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cyclip_ext.evaluation.__main__.run_job", interrupted)
    assert main([str(run)]) == 130
    assert "no report was written" in capsys.readouterr().err
    assert not (run / "evaluation").exists()


def test_nothing_of_training_is_imported() -> None:
    """Wrong: who evaluates other trainers' models needs what training needs."""
    program = (
        "import sys, cyclip_ext.evaluation.__main__\n"
        "print([name for name in sys.modules if name.startswith('cyclip_ext.training')])"
    )
    assert run_program(program).strip() == "[]"


def test_example_takes_the_newest_run(tmp_path: Path) -> None:
    """Wrong: without --checkpoint it measures a run of last week."""
    import os
    import runpy

    example = Path(__file__).parents[2] / "examples/evaluate.py"
    if not example.is_file():
        pytest.skip("the examples are not here")
    newest_run = runpy.run_path(str(example))["newest_run"]
    for age, name in enumerate(("new", "old")):
        write_checkpoint(tmp_path / name / "checkpoints/best.pt")
        os.utime(tmp_path / name / "checkpoints/best.pt", (1000 - age, 1000 - age))
    assert newest_run(tmp_path) == tmp_path / "new"
    write_checkpoint(tmp_path / "started/checkpoints/last.pt")
    assert newest_run(tmp_path) == tmp_path / "started"
    with pytest.raises(SystemExit, match="there is no trained run in"):
        newest_run(tmp_path / "old")
