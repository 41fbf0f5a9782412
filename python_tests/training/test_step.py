"""One optimizer step, and the options that change it."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cyclip_ext import CLIPLoss, MatryoshkaLoss, reference
from cyclip_ext.data import Batch
from cyclip_ext.training import run
from cyclip_ext.training.__main__ import main
from cyclip_ext.training.config import LossConfig, TrainConfig
from cyclip_ext.training.data import RunData
from cyclip_ext.training.logging import MetricsLog
from cyclip_ext.training.objective import Objective, make_loss, term_weights
from cyclip_ext.training.step import DivergedError, Stepper, StepResult
from cyclip_ext.training.trainer import Trainer

from .parts import create_tiny, damage_images, settings, shapes, tiny_trainer, write_shards


def changed(section: str, config: TrainConfig | None = None, **values: Any) -> TrainConfig:
    """Return the tiny run with other settings in one section."""
    config = config or settings(epochs=1)
    return replace(config, **{section: replace(getattr(config, section), **values)})


def take_steps(trainer: Trainer, count: int) -> list[dict[str, float]]:
    """Take the first steps of an epoch, without validation and checkpoints."""
    taken = []
    trainer.model.train()
    for batch in islice(trainer.loader.epoch(trainer.epoch), count):
        assert batch is not None
        trainer.stepper.launch(trainer.feeder(batch), trainer.step, trainer.total_steps)
        result = trainer.stepper.settle()
        assert result is not None
        assert result.wait()
        taken.append(dict(zip(result.names, result.values.tolist(), strict=True)))
        trainer.step_in_epoch += 1
    return taken


def parameters(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_first_step_has_the_first_rate_of_the_warmup(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, settings(lr=1e-2))
    take_steps(trainer, 1)
    rates = {group["lr"] for group in trainer.stepper.optimizer.param_groups}
    assert rates == {1e-2 / 5, 10 * 1e-2 / 5}


def test_accumulated_parts_have_the_loss_of_one_batch(tmp_path: Path) -> None:
    config = changed("data", batch_size=32, accum_freq=2)
    trainer = tiny_trainer(tmp_path, config)
    whole = tiny_trainer(tmp_path, settings(epochs=1))
    assert trainer.global_batch == whole.global_batch == 64
    assert trainer.total_steps == whole.total_steps
    first, expected = take_steps(trainer, 1)[0], take_steps(whole, 1)[0]
    # Batch norm sees halves, so the losses are near, not equal; of 32 pairs it would be ln 2 less.
    assert first["contrastive_loss"] == pytest.approx(expected["contrastive_loss"], abs=0.2)


def test_nested_widths_train_in_parts(tmp_path: Path) -> None:
    def nested(config: TrainConfig, pairs: int, group: Any) -> Objective:
        return Objective(MatryoshkaLoss(CLIPLoss(group=group), (4, 16)), {}, "nested widths")

    config = changed("data", batch_size=32, accum_freq=2)
    data = RunData(shapes().train, "shapes", splits=shapes())
    (tmp_path / "checkpoints").mkdir()
    trainer = Trainer(config, data, create_tiny(), tmp_path, objective=nested)
    first, *_, last = take_steps(trainer, 10)
    for name in ("contrastive_4_loss", "contrastive_16_loss"):
        assert last[name] < first[name]


def test_two_views_are_contrasted_within_the_towers() -> None:
    config = LossConfig(loss="clip", two_views=True)
    generator = torch.Generator().manual_seed(0)
    x, x2, y, y2 = (torch.randn(9, 5, dtype=torch.float64, generator=generator) for _ in range(4))
    scale = torch.tensor(7.0, dtype=torch.float64)
    terms = make_loss(config, 9, statistics=False)(
        torch.cat([x, x2]), torch.cat([y, y2]), scale, None, output_dict=True
    )
    expected = {
        "contrastive_loss": reference.contrastive_loss(x, y, scale) / 2,
        "image_views_loss": reference.contrastive_loss(x, x2, scale) / 4,
        "text_views_loss": reference.contrastive_loss(y, y2, scale) / 4,
    }
    torch.testing.assert_close(terms, expected, rtol=1e-12, atol=0)
    assert term_weights(config) == dict(zip(expected, (0.5, 0.25, 0.25), strict=True))


@pytest.mark.parametrize("loss", ["cyclip", "siglip"])
def test_views_train(tmp_path: Path, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "create_model", create_tiny)
    words = ["--train-data", "shapes", "--epochs", "1", "--batch-size", "64", "--two-views"]
    words += ["--loss", loss, "--logs-dir", str(tmp_path), "--name", "r", "--accum-freq", "2"]
    assert main(words) == 0
    record = MetricsLog(tmp_path / "r/metrics.jsonl").read("train")[0]
    assert record["image_views_loss_raw"] == pytest.approx(4 * record["image_views_loss"])
    assert record["contrastive_loss_raw"] == pytest.approx(2 * record["contrastive_loss"])


def test_gradient_is_clipped_and_its_norm_reported_before(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, changed("optim", grad_clip_norm=1e-3))
    values = take_steps(trainer, 1)[0]
    assert values["grad_norm"] > 0.1
    clipped = torch.stack([p.grad.norm() for p in trainer.model.parameters()]).norm()
    assert clipped == pytest.approx(1e-3, rel=1e-3)


def test_moving_average_is_evaluated_and_saved(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, changed("optim", ema_decay=0.75))
    average: dict[str, Tensor] = {}
    for step in range(4):
        take_steps(trainer, 1)
        now = parameters(trainer.model)
        average = now if step == 0 else {k: 0.75 * average[k] + 0.25 * now[k] for k in now}
    assert trainer.ema is not None
    torch.testing.assert_close(parameters(trainer.ema.module), average)
    assert trainer.assessor.encoder.model is trainer.ema.module
    trainer.validation_due = True
    trainer.step_in_epoch, trainer.epoch = 0, 1
    assert trainer.fit()
    best = torch.load(tmp_path / "checkpoints/best.pt", weights_only=True)["model"]
    torch.testing.assert_close({name: best[name] for name in average}, average)


def with_nan_at(trainer: Trainer, step: int) -> None:
    """Make the loss of that step NaN."""
    loss = trainer.stepper.loss

    def spoilt(*arguments: Any, **options: Any) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = loss(*arguments, **options)
        if trainer.step == step:
            terms["contrastive_loss"] = terms["contrastive_loss"] * math.nan
        return terms

    trainer.stepper.loss = spoilt  # type: ignore[assignment]


@pytest.mark.parametrize("precision", ["fp32", "amp_fp16"])
def test_step_that_is_not_finite_can_be_skipped(tmp_path: Path, precision: str) -> None:
    config = changed("optim", skip_nonfinite=True, ema_decay=0.9)
    config = changed(
        "run", changed("data", config, batch_size=32, accum_freq=2), precision=precision
    )
    trainer = tiny_trainer(tmp_path, config)
    with_nan_at(trainer, 2)
    take_steps(trainer, 2)
    before = copy.deepcopy(trainer.state())
    batch = list(trainer.loader.epoch(0))[2]
    assert batch is not None
    trainer._take_step(batch)
    trainer._settle()
    after = trainer.state()
    # Running statistics as well: they would spoil every later evaluation.
    assert_same_tensors(before["model"], after["model"])
    assert_same_tensors(before["ema"], after["ema"])
    for parameter, moments in before["optimizer"]["state"].items():
        assert_same_tensors(moments, after["optimizer"]["state"][parameter])
    written = json.loads((tmp_path / "nonfinite-step-2.json").read_text())
    assert written["records"] == [{"indices": batch.indices.tolist(), "texts": batch.texts}]
    assert written["values"]["contrastive_loss"] == "nan"
    trainer.step_in_epoch = 0
    assert trainer.fit()
    assert trainer.skipped_steps == 2


def assert_same_tensors(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_skipped_step_leaves_no_trace_although_the_next_one_is_launched(tmp_path: Path) -> None:
    """The moving average and the check of a step both run after the next step was launched."""
    config = changed("optim", skip_nonfinite=True, ema_decay=0.9)
    overlapped, in_turn = (tiny_trainer(tmp_path / name, config) for name in "ab")
    for trainer in (overlapped, in_turn):
        with_nan_at(trainer, 2)
        trainer.model.train()
        for batch in islice(trainer.loader.epoch(0), 5):
            assert batch is not None
            trainer._take_step(batch)
            if trainer is in_turn:
                trainer._settle()
            trainer.step_in_epoch += 1
        trainer._settle()
    for part in ("model", "ema"):
        assert_same_tensors(overlapped.state()[part], in_turn.state()[part])
    assert overlapped.window.record() == pytest.approx(
        in_turn.window.record() | {"images_per_second": ANY, "data_wait": ANY}
    )


class HostReads(TorchDispatchMode):
    """Counts the numbers that are fetched from tensors; on a GPU each fetch waits for it."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_step_reads_nothing_from_the_device(tmp_path: Path) -> None:
    config = changed("optim", skip_nonfinite=True, grad_clip_norm=1.0)
    trainer = tiny_trainer(tmp_path, config)
    text: Any = trainer.model.text
    # The tiny model itself reads the length of the texts.
    text.forward = lambda tokens: text.projection(text.token_embedding(tokens).mean(1))
    for batch in islice(trainer.loader.epoch(0), 3):
        assert batch is not None
        inputs = trainer.feeder(batch)
        with HostReads() as reads:
            trainer.stepper.launch(inputs, trainer.step, trainer.total_steps)
        assert reads.count == 0


def test_verdict_is_read_after_the_next_step_is_launched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tiny_trainer(tmp_path, changed("run", log_every_n_steps=100))
    events: list[tuple[str, int]] = []
    launch, wait = Stepper.launch, StepResult.wait

    def recorded_launch(self: Stepper, inputs: Any, step: int, total: int) -> Any:
        events.append(("launch", step))
        return launch(self, inputs, step, total)

    def recorded_wait(self: StepResult) -> bool:
        events.append(("read", self.step))
        return wait(self)

    monkeypatch.setattr(Stepper, "launch", recorded_launch)
    monkeypatch.setattr(StepResult, "wait", recorded_wait)
    assert trainer.fit()
    assert events[:5] == [*(("launch", 0), ("launch", 1), ("read", 0), ("launch", 2), ("read", 1))]
    assert events[-1] == ("read", trainer.total_steps - 1)


def test_nonfinite_gradient_stops_the_run(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.model.text.projection.weight.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(DivergedError, match=r"step 0 .*contrastive_loss \d.*grad_norm (inf|nan)"):
        trainer.fit()


def test_float16_scales_its_gradients_and_survives_an_overflow(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, changed("run", precision="amp_fp16"))
    trainer.stepper.scaler.load_state_dict(trainer.stepper.scaler.state_dict() | {"scale": 2.0**40})
    before = parameters(trainer.model)
    take_steps(trainer, 1)  # too large a scale is no DivergedError
    assert all(torch.equal(before[k], v) for k, v in parameters(trainer.model).items())
    assert trainer.stepper.scaler.get_scale() == 2.0**39
    trainer.stepper.scaler.load_state_dict(trainer.stepper.scaler.state_dict() | {"scale": 2.0**10})
    take_steps(trainer, 1)
    assert not torch.equal(
        before["visual.projection.weight"], trainer.model.visual.projection.weight
    )
    trainer.save()
    resumed = tiny_trainer(tmp_path, changed("run", precision="amp_fp16"))
    resumed.restore(trainer.state())
    assert resumed.stepper.scaler.get_scale() == 2.0**10


def test_repeated_float16_overflow_stops_the_run(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, changed("run", precision="amp_fp16"))
    trainer.stepper.scaler.load_state_dict(trainer.stepper.scaler.state_dict() | {"scale": 4.0})
    trainer.model.text.projection.weight.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(DivergedError, match="not finite at step 2 in float16"):
        trainer.fit()


def test_batch_of_one_pair_has_a_finite_record(tmp_path: Path) -> None:
    """It has no negatives, so its margins are infinite; its loss and gradient are zero."""
    trainer = tiny_trainer(tmp_path, settings(epochs=1))
    (batch, *_) = trainer.loader.epoch(0)
    assert batch is not None
    lone = Batch(batch.images[:1], batch.texts[:1], batch.indices[:1], batch.tokens[:1])
    trainer._take_step(lone)
    trainer._settle()
    record = trainer.window.record()
    assert record["contrastive_loss"] == 0
    assert all(map(math.isfinite, record.values()))


def test_checkpointed_activations_change_no_bit(tmp_path: Path) -> None:
    plain = tiny_trainer(tmp_path)
    frugal = tiny_trainer(tmp_path, changed("run", settings(), grad_checkpointing=True))
    take_steps(plain, 3)
    take_steps(frugal, 3)
    state = frugal.model.state_dict()
    assert all(torch.equal(value, state[k]) for k, value in plain.model.state_dict().items())


@pytest.mark.slow
def test_compiled_towers_learn_the_same(tmp_path: Path) -> None:
    plain = tiny_trainer(tmp_path)
    compiled = tiny_trainer(tmp_path, changed("run", settings(), torchcompile=True))
    expected, found = take_steps(plain, 2), take_steps(compiled, 2)
    for one, other in zip(expected, found, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    assert set(compiled.state()["model"]) == set(plain.state()["model"])


def test_bad_records_are_reported_and_too_many_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "create_model", create_tiny)
    folder = write_shards(tmp_path / "shards", shapes().train, 1)
    damage_images(folder / "00000.tar", every=8)
    words = ["--train-data", str(folder), "--epochs", "2", "--batch-size", "64", "--warmup", "1"]
    words += ["--logs-dir", str(tmp_path), "--log-every-n-steps", "1", "--name"]
    assert main([*words, "stops"]) == 1
    shown = capsys.readouterr()
    assert "records are bad" in shown.err
    assert "--max-skipped" in shown.err
    assert main([*words, "goes-on", "--max-skipped", "0.3"]) == 0
    records = MetricsLog(tmp_path / "goes-on/metrics.jsonl").read("skipped")
    skipped = [record for record in records if record["part"] == "training"]
    assert [record["epoch"] for record in skipped] == [0, 1]
    assert 80 < skipped[0]["truncated"]["count"] < 115
    counts = json.loads((tmp_path / "goes-on/result.json").read_text())["records"]
    for part in ("training", "validation"):
        found = counts[part]["skipped"]["truncated"]
        assert found["count"] == counts[part]["total"] - counts[part]["used"] > 0
        assert "00000.tar at byte" in found["examples"][0]
        line = f"- {part} records: {counts[part]['used']:,} used, "
        assert line in (tmp_path / "goes-on/report.md").read_text()
        assert any(record["part"] == part for record in records)
