"""`cyclip-eval` from a command line to a report, and its errors."""

from __future__ import annotations

import io
import json
import os
import runpy
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from models.tiny import create_tiny, write_checkpoint
from PIL import Image

from cyclip_ext.data import DatasetSplits, ImageDataset, load_builtin
from cyclip_ext.evaluation import Encoder, encode, open_evaluation_dataset
from cyclip_ext.evaluation.__main__ import main
from cyclip_ext.evaluation.tasks.margins import batch_margins, margin_metrics
from cyclip_ext.models import trained
from cyclip_ext.models.trained import load_trained

CHEAP = ["zeroshot_classification", "consistency", "margins", "fine_coarse_classification"]


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained, "create_model", create_tiny)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "run/checkpoints/best.pt")
    return tmp_path / "run"


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "colours")


def write_classes(folder: Path, per_class: int = 4) -> Path:
    for number, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            colour = [20 * index] * 3
            colour[number] = 200
            Image.new("RGB", (18, 18), tuple(colour)).save(folder / name / f"{index}.png")
    return folder


def values_of(folder: Path) -> dict[tuple[str, str], dict[str, float]]:
    records = json.loads((folder / "results.json").read_text())
    return {(record["dataset"], record["task"]): record["metrics"] for record in records}


def test_run_is_measured_on_its_own_data(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(run), "--tasks", *CHEAP]) == 0
    found = values_of(run / "evaluation")
    assert {dataset.split("/")[0] for dataset, _ in found} == {"shapes"}
    assert {task for _, task in found} == set(CHEAP)
    shown = capsys.readouterr().out
    assert f"wrote {run / 'evaluation/report.html'}" in shown
    page = (run / "evaluation/report.html").read_text()
    for fact in ("Evaluation of run (tiny)", "3 epochs on shapes, seed 7", "in_modal 0.25"):
        assert fact in page, fact


@pytest.mark.parametrize("same", [True, False])
def test_default_data_must_be_those_of_the_run(
    same: bool, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the packages of the default dataset, "auto" is another one."""
    fingerprint = load_builtin("shapes").evaluation["validation"].fingerprint()
    fingerprints = {"training": "x", "validation": fingerprint if same else "y"}
    write_checkpoint(run / "checkpoints/best.pt", fingerprints=fingerprints)
    words = ["run", str(run), "--tasks", "zeroshot_classification"]
    assert main(words) == (0 if same else 2)
    assert ("pass --data shapes" in capsys.readouterr().err) != same
    assert main([*words, "--data", "shapes"]) == 0


def test_datasets_from_files(run: Path, colours: Path, tmp_path: Path) -> None:
    """Every option for datasets from files changes the report."""
    other = write_classes(tmp_path / "paints", 3)
    (colours / "red/broken.png").write_bytes(b"not an image")
    (tmp_path / "t.txt").write_text("a {} wall\n{}\n")
    (tmp_path / "h.json").write_text('{"warm": ["red"], "cold": ["green", "blue"]}')
    (tmp_path / "b.csv").write_text("model,base,paints\nx,0.3,0.2\ny,0.6,0.5\n")
    words = ["run", str(run / "checkpoints/best.pt"), "--output", str(tmp_path / "out")]
    words += ["--data", str(colours), "--data", f"folder:{other}", "--train-data", str(other)]
    words += ["--templates", str(tmp_path / "t.txt"), "--hierarchy", str(tmp_path / "h.json")]
    words += ["--baselines", str(tmp_path / "b.csv"), "--batch-size", "5", "--device", "cpu"]
    assert main([*words, "--tasks", *CHEAP, "distribution_shift", "knn_probe"]) == 0
    found = values_of(tmp_path / "out")
    assert {dataset for dataset, _ in found} == {"colours", "paints"}
    assert {task for _, task in found} == {*CHEAP, "distribution_shift", "knn_probe"}
    assert found["paints", "knn_probe"]["knn_acc1"] == 1  # it learned from these images
    assert "effective_robustness/paints" in found["colours", "distribution_shift"]
    assert "coarse_acc1/superclass" in found["colours", "fine_coarse_classification"]
    with (tmp_path / "out/tables/colours-zeroshot_classification-1.csv").open() as file:
        assert sum(int(line.split(",")[1]) for line in list(file)[1:]) == 12


def test_unreadable_images_are_counted_on_the_screen_and_in_every_report(
    run: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("red", "green"):
        for index in (0, 1):
            (colours / name / f"{index}.png").write_bytes(b"\x89PNG")
    words = ["run", str(run), "--data", str(colours), "--output", str(tmp_path)]
    assert main([*words, "--tasks", "zeroshot_classification"]) == 0
    counts = "8 images used, 4 skipped: 4 "
    assert counts in capsys.readouterr().out
    assert counts in (tmp_path / "report.md").read_text()
    assert counts in (tmp_path / "report.html").read_text()
    (record,) = json.loads((tmp_path / "results.json").read_text())
    data = record["data"]["colours"]
    assert (data["used"], data["total"]) == (8, 12)
    assert sum(entry["count"] for entry in data["skipped"].values()) == 4


@pytest.mark.parametrize("spec", ["colours", "shapes"])
def test_margins_of_several_checkpoints(
    spec: str, run: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "warm/checkpoints/best.pt", seed=1)
    data = str(colours) if spec == "colours" else spec
    words = ["--data", data, "--tasks", "margins", "--output", str(tmp_path / "out")]
    assert main(["run", str(run), *words, "--beside", str(tmp_path / "warm")]) == 0
    name = "colours" if spec == "colours" else "shapes/shifted"
    both = values_of(tmp_path / "out")[name, "margins_of_checkpoints"]
    for folder, title in ((run, "run (tiny)"), (tmp_path / "warm", "warm (tiny)")):
        encoder = Encoder.of(load_trained(folder), torch.device("cpu"))
        dataset = open_evaluation_dataset(data)
        if isinstance(dataset, DatasetSplits):
            dataset = dataset.evaluation["shifted"]
        assert isinstance(dataset, ImageDataset)
        pairs = encode(dataset, encoder).pairs()
        images, texts, labels = pairs
        margins = batch_margins(images, texts, min(128, len(labels)), labels=labels)
        expected = margin_metrics(margins.image_to_text)["q50"]
        assert both[f"margin_median/{title}"] == pytest.approx(expected)
    assert both["margin_median/run (tiny)"] != both["margin_median/warm (tiny)"]
    assert main(["run", str(run), *words, "--beside", str(run)]) == 2
    assert "two models called run (tiny)" in capsys.readouterr().err


def test_embeddings_need_no_model(tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((12, 8)).astype(np.float32)
    labels = np.arange(12) % 3
    arrays = {"image_features": features, "class_features": features[:3], "labels": labels}
    np.savez(tmp_path / "e.npz", text_features=features, **arrays)
    np.savez(tmp_path / "train.npz", **arrays)
    (tmp_path / "h.csv").write_text("class,superclass\nclass 0,a\nclass 1,a\nclass 2,b\n")
    words = ["embeddings", str(tmp_path / "e.npz"), "--output", str(tmp_path / "out")]
    words += ["--train-data", str(tmp_path / "train.npz"), "--hierarchy", str(tmp_path / "h.csv")]
    assert main(words) == 0
    found = values_of(tmp_path / "out")
    assert found["e", "zeroshot_retrieval"]["image_retrieval_recall@1"] == 1
    assert {"consistency", "fine_coarse_classification", "knn_probe"} <= {task for _, task in found}
    np.savez(tmp_path / "e.npz", image_features=features)
    assert main(words) == 2


def test_completeness_of_captions(tmp_path: Path) -> None:
    instances = {
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [{"image_id": 5, "category_id": 1}, {"image_id": 5, "category_id": 2}],
    }
    captions = {"annotations": [{"image_id": 5, "caption": "A dog."}]}
    (tmp_path / "i.json").write_text(json.dumps(instances))
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    words = ["completeness", str(tmp_path / "i.json"), str(tmp_path / "captions.json")]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    ((key, values),) = values_of(tmp_path / "out").items()
    assert key == ("captions", "caption_completeness")
    assert values["missing_per_caption"] == 1


def test_class_names_and_training_data_go_together(
    run: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names.txt").write_text("azure|blue\nlime\ncrimson\n")
    words = ["run", str(run), "--data", str(colours), "--train-data", str(colours)]
    words += ["--class-names", str(tmp_path / "names.txt"), "--tasks", "knn_probe"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    assert values_of(tmp_path / "out")["colours", "knn_probe"]["knn_acc1"] == 1
    assert f"--train-data {colours} has the images of colours themselves" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected"),
        (["run"], "path"),
        (["run", "x", "--embeddings", "y"], "--embeddings"),
        (["run", "x", "--pretrained", "y"], "--pretrained"),
        (["open-clip", "RN50", "--beside", "y"], "--beside"),
        (["embeddings", "y", "--data", "emoji"], "--data"),
        (["completeness", "i", "c", "--hierarchy", "h"], "--hierarchy"),
        (["run", "x", "--tasks", "guessing"], "guessing"),
        (["run", "x", "--batch-size", "many"], "many"),
        (["run", "x", "--no-such-flag"], "--no-such-flag"),
    ],
)
def test_options_that_do_not_go_together_cannot_be_typed(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_errors_are_one_line_before_anything_is_measured(
    run: Path,
    colours: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def measured(*arguments: object, **options: object) -> None:
        raise AssertionError("it was measured")

    monkeypatch.setattr("cyclip_ext.evaluation.__main__.encode", measured)
    (tmp_path / "two.txt").write_text("one\ntwo\n")
    (tmp_path / "h.csv").write_text("class,superclass\nred,warm\n")
    other = write_classes(tmp_path / "other")
    (other / "red").rename(other / "yellow")
    (run / "file").touch()
    (tmp_path / "bad.npz").write_bytes(b"PK")
    lines = tmp_path / "b.csv"
    lines.write_text("model,base,y\nx,0.3,0.2\nz,0.6,0.5\n")
    (tmp_path / "more/colours").mkdir(parents=True)
    (tmp_path / "Colours").symlink_to(colours)
    captions = {"images": [], "annotations": []}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    (tmp_path / "c.csv").write_text(f"filepath,caption\n{colours}/red/0.png,a wall\n")
    captioned = ["--data", str(tmp_path / "c.csv")]
    out, data = str(tmp_path / "out"), ["--data", str(colours)]
    for words, message in (
        (["run", str(tmp_path / "none")], "there is no checkpoint at"),
        (["run", str(run), "--device", "tpu9"], "--device tpu9 cannot be used"),
        (["run", str(run), "--batch-size", "0"], "--batch-size must be 1 or more, got 0"),
        (["run", str(run), "--data", str(tmp_path / "nowhere")], "does not exist"),
        (["run", str(run), "--hierarchy", "cifar100"], "--hierarchy only applies to datasets from"),
        (["run", str(run), "--split", "val"], "--split only applies to datasets from files"),
        (["run", str(run), "--templates", str(tmp_path / "none.txt")], "none.txt"),
        (["run", str(run), "--prompts-key", "x"], "--prompts-key only applies to --templates"),
        (["run", str(run), "--tasks", "image_caption_selection"], "none of image_caption_selectio"),
        (["run", str(run), *data, "--split", "val"], f"--split val does not apply to {colours}"),
        (["run", str(run), *data, "--images", "x"], f"--images x does not apply to {colours}"),
        (["run", str(run), *data, "--baselines", str(lines)], "--baselines needs a second --data"),
        (["run", str(run), *data, *data], "would have the same file names"),
        (["run", str(run), *data, "--data", str(tmp_path / "Colours")], "would have the same file"),
        (["run", str(run), *data, "--csv-quoting", "none"], "--csv-quoting none does not apply"),
        (["run", str(run), "--train-data", "shapes", *data], "shapes has no classes to learn"),
        (["run", str(run), *data, "--hierarchy", str(tmp_path / "h.csv")], "green"),
        (["run", str(run), *data, "--class-names", str(tmp_path / "two.txt")], "2 class names for"),
        (["run", str(run), *data, "--train-data", str(other)], "must have the same classes"),
        (
            ["run", str(run), *captioned, "--train-data", str(other)],
            "only applies to datasets with",
        ),
        (
            ["run", str(run), *data, "--output", str(run / "file/report")],
            f"{run / 'file'} is not a writable folder",
        ),
        (["embeddings", str(tmp_path / "bad.npz")], "bad.npz"),
        (["open-clip", "RN50", "--pretrained", "x"], "--data must name the datasets"),
    ):
        if "--output" not in words:
            words = [*words, "--output", out]
        assert main(words) == 2, words
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == error.startswith("error: ") == 1 or "accepted are" in error
    assert not (tmp_path / "out").exists()


def test_split_of_a_webdataset_given_by_its_path(
    run: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Probes must not learn from the images that they are tested on."""
    data = tmp_path / "shards"
    for split, count in (("test", 3), ("val", 2)):
        (data / split).mkdir(parents=True)
        with tarfile.open(data / split / "0.tar", "w") as archive:
            for label, name in enumerate(("red", "green", "blue")):
                for index in range(count):
                    archive.add(colours / name / f"{index}.png", f"{label}{index}.png")
                    entry = tarfile.TarInfo(f"{label}{index}.cls")
                    entry.size = 1
                    archive.addfile(entry, io.BytesIO(str(label).encode()))
    (data / "classnames.txt").write_text("red\ngreen\nblue\n")
    words = ["run", str(run), "--data", str(data), "--output", str(tmp_path / "out")]
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

    monkeypatch.setattr("cyclip_ext.evaluation.__main__.encode_splits", interrupted)
    assert main(["run", str(run)]) == 130
    assert "no report was written" in capsys.readouterr().err
    assert not (run / "evaluation").exists()


def test_evaluation_imports_neither_training_nor_optional_packages(
    run_program: Callable[..., str],
) -> None:
    program = (
        "import sys\n"
        "for name in 'torchvision', 'open_clip', 'timm', 'sklearn', 'scipy', 'pyarrow':\n"
        "    sys.modules[name] = None  # import raises ImportError\n"
        "import cyclip_ext.evaluation.__main__\n"
        "print([name for name in sys.modules if name.startswith('cyclip_ext.training')])"
    )
    assert run_program(program).strip() == "[]"


def test_example_takes_the_newest_run(tmp_path: Path) -> None:
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
