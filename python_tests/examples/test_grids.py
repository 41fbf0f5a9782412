"""Data size, batch size and temperature: which runs, and their page."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pytest
from reproduction import runs
from reproduction.__main__ import main
from reproduction.grids import batch_and_temperature, batch_weights, data_size
from reproduction.pages import write_page

from cyclip_ext.evaluation.tasks import Plot
from cyclip_ext.training.config import TrainConfig

from .made_up import Pretender


@pytest.fixture
def pretender(monkeypatch: pytest.MonkeyPatch) -> Pretender:
    made = Pretender(lambda name, config: {"shifted": config.data.train_fraction / 2})
    monkeypatch.setattr(runs, "complete", made)
    return made


@pytest.mark.parametrize("same_steps", [False, True])
def test_fractions(tmp_path: Path, pretender: Pretender, same_steps: bool) -> None:
    base = TrainConfig().updated({"epochs": 10})
    assert data_size(
        base, tmp_path, fractions=(0.25, 1.0), objectives=("clip", "square"), same_steps=same_steps
    )
    assert len(pretender.configs) == 2 * 2 * 3
    quarter = pretender.configs["square-loss-0.25-seed2"]
    assert quarter.data.train_fraction == 0.25
    assert quarter.run.epochs == (40 if same_steps else 10)
    assert pretender.labels["square-loss-0.25-seed2"] == "square loss"
    page = (tmp_path / "report.md").read_text()
    assert "| CLIP | 12.5 ± 0.0 | 50.0 ± 0.0 |" in page
    assert (tmp_path / "images" / "report" / "lines.png").is_file()


def test_batches_and_temperatures(tmp_path: Path, pretender: Pretender) -> None:
    assert batch_and_temperature(
        TrainConfig(), tmp_path, batch_sizes=(32, 64), scales=(10.0, 100.0), seeds=(5,)
    )
    assert set(pretender.configs) == {
        *("batch-32-10-seed5", "batch-32-100-seed5", "batch-64-10-seed5", "batch-64-100-seed5")
    }
    one = pretender.configs["batch-32-100-seed5"]
    assert (one.data.batch_size, one.optim.logit_scale_fixed) == (32, 100.0)
    page = (tmp_path / "report.md").read_text()
    assert "One run each, seed 5." in page
    assert "±" not in page


def test_weights_follow_the_batch_size(tmp_path: Path, pretender: Pretender) -> None:
    base = TrainConfig().updated({"in_modal": 0.5, "cross_modal": 0.25})
    assert batch_weights(base, tmp_path, batch_sizes=(64, 128), seeds=(0,))
    losses = {name: config.loss for name, config in pretender.configs.items()}
    assert losses["clip-64-seed0"].loss == "clip"
    assert losses["cyclip-64-seed0"] == losses["cyclip-128-seed0"] == base.loss
    assert "cyclip-for-batch-128-seed0" not in losses  # the same settings, trained once
    carried = losses["cyclip-for-batch-64-seed0"]
    assert 63 * carried.in_modal == pytest.approx(127 * 0.5)
    assert 63 * carried.cross_modal == pytest.approx(127 * 0.25)


def test_command_line_passes_settings_on(tmp_path: Path, pretender: Pretender) -> None:
    words = ["data-size", "--folder", str(tmp_path), "--fractions", "0.5", "--seeds", "3"]
    assert main([*words, "--objectives", "cyclip", "--lr", "0.01", "--epochs", "7"]) == 0
    (config,) = pretender.configs.values()
    assert (config.optim.lr, config.run.epochs, config.run.seed) == (0.01, 7, 3)
    assert not config.run.tensorboard


@pytest.mark.parametrize(("words", "weight"), [([], 0.1), (["--margin", "0.3"], 0.3)])
def test_objectives_have_the_margins_of_their_names(
    tmp_path: Path, pretender: Pretender, words: list[str], weight: float
) -> None:
    own = ["--objectives", "cyclip", "clip-margin", "clip-both-sided", "--fractions", "1"]
    line = ["data-size", "--folder", str(tmp_path), *own, "--seeds", "0", *words]
    assert main(line) == 0
    assert [*pretender.labels.values()] == [
        *("CyCLIP", f"CLIP + margin {weight}", f"CLIP + both-sided margin {weight}")
    ]
    assert list(pretender.configs)[1] == "clip-margin-1-seed0"


def test_help_lists_only_settings_that_the_study_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["batch-weights", "--help"])
    shown = capsys.readouterr().out
    assert all(f"{flag} " in shown for flag in ("--batch-sizes", "--lr", "--epochs"))
    assert not any(f"{flag} " in shown for flag in ("--batch-size", "--seed", "--loss"))


@pytest.mark.parametrize(
    ("study", "words", "message"),
    [
        ("reproduce", ["--lr", "0.1"], "reproduce varies --lr itself; omit it"),
        ("reproduce", ["--margin", "0.1"], "reproduce varies --margin itself"),
        ("data-size", ["--train-fraction", "0.5"], "data-size varies --train-fraction itself"),
        ("batch-temperature", ["--batch-size", "8"], "batch-temperature varies --batch-size"),
        ("data-size", ["--seed", "1"], "--seed applies to a single run; a study has --seeds"),
        ("data-size", ["--fractions", "0", "--same-steps"], "--train-fraction must be in (0, 1]"),
        ("data-size", ["--fractions", "1.5"], "--train-fraction must be in (0, 1]"),
    ],
)
def test_settings_that_a_study_cannot_have_are_rejected(
    tmp_path: Path, study: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([study, "--folder", str(tmp_path), "--jobs", "0", *words]) == 1
    assert message in capsys.readouterr().err


def test_auto_is_resolved_when_a_study_starts(
    tmp_path: Path, pretender: Pretender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cyclip_ext.data.open.emoji_available", lambda: False)
    assert main(["data-size", "--folder", str(tmp_path), "--seeds", "0"]) == 0
    assert {config.data.train_data for config in pretender.configs.values()} == {"shapes"}


def test_ctrl_c_between_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "complete", interrupted)
    assert main(["data-size", "--folder", str(tmp_path)]) == 130
    assert "run the same command again" in capsys.readouterr().out


def test_plots_of_a_page_with_spaces_in_its_name(tmp_path: Path) -> None:
    plot = Plot("p", "caption", lambda figure: None)
    write_page(tmp_path / "my ü page.md", "title", {"": [plot]})
    text = (tmp_path / "my ü page.md").read_text()
    address = text.split("](")[1].split(")")[0]
    assert " " not in address
    assert (tmp_path / unquote(address)).is_file()
