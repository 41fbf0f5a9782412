"""Every record of an epoch is used in a step or counted, also if the run is interrupted."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models.tiny import create_tiny

from cyclip_ext.data import Batch
from cyclip_ext.training import run
from cyclip_ext.training.assess import Assessor
from cyclip_ext.training.checkpoint import load_checkpoint
from cyclip_ext.training.config import DataConfig, TrainConfig
from cyclip_ext.training.data import open_data
from cyclip_ext.training.folder import state_to_resume
from cyclip_ext.training.ranks import ALONE, Ranks
from cyclip_ext.training.trainer import UNEVEN, Trainer

from .parts import settings, write_table

BAD = range(3, 40, 8)  # five images


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """Return the settings of two epochs of 4 steps; some images and captions are not whole."""
    table = Path(write_table(tmp_path / "data", range(40)))
    lines = table.read_text().splitlines()
    for index in (1, 9, 17):
        lines[1 + index] += " " + "x" * 600
    table.write_text("\n".join(lines))
    for index in BAD:
        (table.parent / f"{index}.png").write_bytes(b"")
    data = DataConfig(train_data=str(table), batch_size=9, max_skipped=0.14)
    return replace(settings(), data=data)


def make(config: TrainConfig, folder: Path, ranks: Ranks = ALONE) -> Trainer:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    return Trainer(config, open_data(config.data), create_tiny(), folder, ranks)


def counts(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] in ("skipped", "shortened")]


@pytest.mark.parametrize("save_frequency", [None, 1])
def test_interrupted_epochs_count_each_record_once(
    tmp_path: Path, config: TrainConfig, save_frequency: int | None
) -> None:
    """Ctrl-C stops after a step whose successor is already loaded; SIGKILL after a checkpoint."""
    whole = make(config, tmp_path / "whole")
    assert whole.fit()
    expected = counts(whole.folder)
    assert [record["kind"] for record in expected] == ["skipped", "shortened"] * 2
    config = replace(config, run=replace(config.run, save_frequency=save_frequency))
    for stop_at in range(1, whole.total_steps):
        broken = make(config, tmp_path / f"broken-{stop_at}")
        take_step, save = broken._take_step, broken.save

        def interrupted(batch: Batch) -> None:
            take_step(batch)  # noqa: B023
            if save_frequency is None and broken.step == stop_at - 1:  # noqa: B023
                signal.raise_signal(signal.SIGINT)

        def killed() -> None:
            save()  # noqa: B023
            if save_frequency is not None and broken.step == stop_at:  # noqa: B023
                raise KeyboardInterrupt

        broken._take_step, broken.save = interrupted, killed  # type: ignore[method-assign]
        with suppress(KeyboardInterrupt):
            assert not broken.fit()
        resumed = make(config, broken.folder)
        resumed.restore(load_checkpoint(broken.folder / "checkpoints/last.pt"))
        assert resumed.step == stop_at
        assert resumed.fit()
        assert counts(broken.folder) == expected, stop_at
        assert (resumed.skipped.to_dict(), resumed.shortened) == (
            whole.skipped.to_dict(),
            whole.shortened,
        )


def test_run_killed_in_its_final_evaluation_reports_the_counts_of_its_last_epoch(
    tmp_path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "create_model", create_tiny)
    data = open_data(config.data)

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Assessor, "evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            run.run_training(config, data, tmp_path / "broken")
    state = state_to_resume(tmp_path / "broken", "auto", ALONE)
    results = [
        run.run_training(config, data, tmp_path / "broken", state),
        run.run_training(config, data, tmp_path / "whole"),
    ]
    first, second = (result["records"]["training"] for result in results if result is not None)
    assert first == second
    assert first["skipped"]["empty file"]["count"] > 2
    assert first["shortened_captions"] > 0


def test_parts_of_few_pairs_do_not_lose_steps(tmp_path: Path, config: TrainConfig) -> None:
    """One bad record of 9 leaves the last part of a pair empty."""
    config = replace(config, data=replace(config.data, batch_size=1, accum_freq=9))
    trainer = make(config, tmp_path / "run")
    sizes: list[int] = []
    take_step = trainer._take_step

    def recorded(batch: Batch) -> None:
        sizes.append(len(batch))
        take_step(batch)

    trainer._take_step = recorded  # type: ignore[method-assign]
    assert trainer.fit()
    assert len(sizes) == trainer.total_steps
    assert min(sizes) < 9
    assert trainer.skipped.counts.keys() == {"empty file"}


class Beside(Ranks):
    """Rank 0 beside another one, of which only the number of parts is known."""

    parts = 3

    def sums(self, numbers: Sequence[int]) -> list[int]:
        summed = list(numbers)
        summed[3 + self.parts] += 1
        return summed


@pytest.mark.parametrize(
    ("parts", "synchronized", "taken"),
    [(3, True, True), (2, False, True), (2, True, False), (1, False, False), (0, False, False)],
)
def test_pairs_of_a_step_that_the_ranks_cannot_take_together_are_counted(
    tmp_path: Path, config: TrainConfig, parts: int, synchronized: bool, taken: bool
) -> None:
    """This rank has three parts; synchronized batch norm needs as many of the other."""
    config = replace(
        config,
        data=replace(config.data, batch_size=5, accum_freq=3, max_skipped=1.0),
        run=replace(config.run, epochs=1, use_bn_sync=synchronized),
    )
    ranks = Beside(0, 2)
    object.__setattr__(ranks, "parts", parts)
    trainer = make(config, tmp_path / "run", ranks)
    sizes: list[int] = []
    trainer._take_step = lambda batch: sizes.append(len(batch))  # type: ignore[method-assign]
    assert trainer.fit()
    assert trainer.total_steps == 1
    assert len(sizes) == taken
    used = sum(sizes)
    assert used + trainer.skipped.total == 15
    assert (UNEVEN in trainer.skipped.counts) != taken
