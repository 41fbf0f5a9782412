"""The reproduction: how settings are chosen, which runs follow, and the page."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from reproduction import reproduce as module
from reproduction import runs
from reproduction.__main__ import main
from reproduction.claims import CLAIMS
from reproduction.reproduce import OBJECTIVES, SELECTION_SEED, reproduce
from reproduction.reproduction_page import NAMES, write_reproduction

from cyclip_ext.training.config import TrainConfig

from .made_up import Accuracy, Pretender


def pretend(monkeypatch: pytest.MonkeyPatch, accuracy: Accuracy, stop_at: str = "") -> Pretender:
    pretender = Pretender(accuracy, stop_at)
    monkeypatch.setattr(module, "complete", pretender)
    monkeypatch.setattr(runs, "complete", pretender)
    return pretender


def accuracy(name: str, config: TrainConfig) -> dict[str, float]:
    """Rate 0.004, cycle 0.5 and margin 0.03 are best on validation and worst on test data."""
    good = (config.optim.lr == 4e-3) + (config.loss.margin == 0.03)
    good += max(config.loss.in_modal, config.loss.cross_modal) == 0.5
    return {"validation": 0.1 * good, "shifted": 0.5 - 0.1 * good}


def test_settings_are_chosen_by_validation_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretender = pretend(monkeypatch, accuracy)
    found = reproduce(TrainConfig(), tmp_path, seeds=(0, 1))
    chosen = {choice.objective: choice.value for choice in found.choices}
    assert chosen["all"] == 4e-3
    assert chosen["cyclip"] == chosen["c-cyclip"] == chosen["i-cyclip"] == 0.5
    assert chosen["clip-margin"] == chosen["cyclip-margin"] == chosen["clip-both-sided"] == 0.03
    for name, config in pretender.configs.items():
        assert (config.run.seed == SELECTION_SEED) == name.startswith("select-"), name
        if not name.startswith(("select-", "square")):
            assert config.optim.lr == 4e-3, name
    asked, labels = pretender.configs, pretender.labels
    assert {f"{name}-seed{seed}" for name in OBJECTIVES for seed in (0, 1)} <= set(asked)
    cyclip, both = asked["cyclip-seed1"].loss, asked["cyclip-margin-seed1"].loss
    assert (cyclip.in_modal, cyclip.cross_modal, cyclip.margin) == (0.5, 0.5, 0.0)
    assert (both.in_modal, both.cross_modal, both.margin) == (0.5, 0.5, 0.03)
    assert labels["c-cyclip-seed0"] == "C-CyCLIP"
    assert labels["i-cyclip-seed0"] == "I-CyCLIP"
    assert labels["clip-both-sided-seed0"] == "CLIP + both-sided margin 0.03"
    assert labels["clip-negative-only-seed0"] == "CLIP + negative-only margin 0.03"
    assert labels["clip-scale-100-seed0"] == "CLIP, scale held at 100"
    assert labels["sweep-scale-10-margin-0.3-seed1"] == "CLIP + margin 0.3, scale held at 10"
    assert len([name for name in asked if name.startswith("sweep")]) == 2 * 3 * 4


@pytest.mark.parametrize(
    "stop_at", ["select-clip-lr-0.001", "select-cyclip-margin-weight-0.1", "clip-seed0"]
)
def test_interruption_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: str
) -> None:
    pretend(monkeypatch, accuracy, stop_at)
    words = ["--folder", str(tmp_path), "--page", str(tmp_path / "p.md"), "--train-data", "emoji"]
    assert main(["reproduce", *words]) == 130
    assert not (tmp_path / "p.md").exists()


def test_page_has_every_objective_and_differences_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tops = {"clip": (0.20, 0.22), "cyclip": (0.26, 0.27), "square": (0.01, 0.01)}

    def top1(name: str, config: TrainConfig) -> dict[str, float]:
        own = tops.get(name.split("-seed")[0])
        return {} if own is None else {"shifted": own[config.run.seed]}

    pretend(monkeypatch, top1)
    found = reproduce(TrainConfig(), tmp_path, seeds=(0, 1))
    write_reproduction(tmp_path / "page.md", found)
    text = (tmp_path / "page.md").read_text()
    for name in NAMES.values():
        assert f"| {name} |" in text
    assert "trains 73 small models" in text  # 29 to choose by, 20, 24
    # Differences of 6 and 5: mean 5.5, t interval of two values 12.7 * 0.5.
    assert "| CyCLIP - CLIP | +6.0 | +5.0 | +5.5 (-0.9 to +11.9) |" in text
    assert "| CLIP | 21.0 ± 1.4 |" in text
    line = next(line for line in text.splitlines() if line.startswith("| CyCLIP's zero-shot"))
    assert line.endswith("| every seed |")
    line = next(line for line in text.splitlines() if line.startswith("| the square loss fails"))
    assert line.endswith("| shown |")
    assert "## Reading" not in text
    (tmp_path / "page.md").write_text(
        text.replace("## Accuracy", "## Reading\n\nSo it is.\n\n## Accuracy")
    )
    write_reproduction(tmp_path / "page.md", found)
    again = (tmp_path / "page.md").read_text()
    assert again.replace("## Reading\n\nSo it is.\n\n", "") == text
    assert "So it is." in again
    for plot in ("differences", "margins", "sweep"):
        assert f"](images/page/{plot}.png)" in text
        assert (tmp_path / "images" / "page" / f"{plot}.png").is_file()


def test_claims_are_not_judged_on_the_data_that_chose_the_settings() -> None:
    assert "validation" not in {claim.value.dataset for claim in CLAIMS}


def test_page_names_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, accuracy)
    page = tmp_path / "page.md"
    own = ["--folder", str(tmp_path), "--page", str(page), "--train-data", "emoji", "--seeds", "4"]
    assert main(["reproduce", *own, "--epochs", "3"]) == 0
    assert "that command with train data emoji, epochs 3, which trains" in page.read_text()


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [("pairs.csv", 1, "reproduce takes the default data"), ("emoji", 2, "cyclip_ext[eval]")],
)
def test_study_that_cannot_end_is_rejected_before_training(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    data: str,
    status: int,
    message: str,
) -> None:
    """Other data, and the default data without SciPy."""
    pretender = pretend(monkeypatch, accuracy)
    if data == "emoji":
        monkeypatch.setitem(sys.modules, "scipy.stats", None)
    assert main(["reproduce", "--folder", str(tmp_path), "--train-data", data]) == status
    assert message in capsys.readouterr().err
    assert not pretender.methods
