"""The command line, YAML files, and the settings behind them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from cyclip_ext.training.__main__ import build_parser
from cyclip_ext.training.compare import comparison
from cyclip_ext.training.config import LossConfig, OptimConfig, TrainConfig


def typed(*words: str) -> dict[str, object]:
    """Parse a command line without defaults."""
    return vars(build_parser().parse_args(words, defaults=False))


def parse(*words: str) -> TrainConfig:
    return TrainConfig().updated(typed(*words))


def test_defaults_agree_with_the_dataclasses() -> None:
    shown = vars(build_parser().parse_args([]))
    assert TrainConfig().updated(shown) == TrainConfig()
    settings = {key for section in TrainConfig().to_dict().values() for key in section}
    assert settings < set(shown)


def test_flags_reach_their_settings() -> None:
    config = parse(
        *("--train-data", "shards/{000..009}.tar", "--batch-size", "64", "--lr", "1e-3"),
        *("--in-modal", "0.5", "--loss", "clip", "--logit-scale-fixed", "100"),
        *("--resume", "logs/x", "--name", "y", "--epochs", "3", "--two-views", "--no-tensorboard"),
    )
    assert config.data.train_data == "shards/{000..009}.tar"
    assert (config.data.batch_size, config.optim.lr, config.loss.in_modal) == (64, 1e-3, 0.5)
    assert (config.loss.loss, config.optim.logit_scale_fixed) == ("clip", 100.0)
    assert (config.run.resume, config.run.name, config.run.epochs) == ("logs/x", "y", 3)
    assert (config.loss.two_views, config.run.tensorboard) == (True, False)


def test_setting_equal_to_its_default_counts_as_given() -> None:
    """A typed setting is compared with the checkpoint's, even if it equals the default."""
    assert typed("--lr", "0.002", "--no-two-views") == {"lr": 0.002, "two_views": False}


def test_yaml_gives_settings_and_the_line_after_it_wins(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    # 1e-3 is a string to YAML 1.1; null is "not set".
    file.write_text("lr: 1e-3\nmargin: 0.1\ngrad_checkpointing: true\ngrad_clip_norm: null\n")
    config = parse("--config", str(file), "--margin", "0.2")
    assert (config.optim.lr, config.loss.margin) == (1e-3, 0.2)
    assert (config.run.grad_checkpointing, config.optim.grad_clip_norm) == (True, None)
    assert parse("--margin", "0.2", "--config", str(file)).loss.margin == 0.1


@pytest.mark.parametrize("content", ["learning_rate: 1\n", "lr: fast\n", "loss: clap\n"])
def test_yaml_with_a_mistake_is_rejected(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(SystemExit) as exit_info:
        parse("--config", str(file))
    assert exit_info.value.code == 2
    assert content.split(":")[0] in capsys.readouterr().err


def test_dictionary_round_trip() -> None:
    config = parse("--margin", "0.1", "--seed", "7")
    assert TrainConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--batch-size", "1"),
        ("--epochs", "0"),
        ("--accum-freq", "0"),
        ("--lr", "0.0"),
        ("--grad-clip-norm", "-1.0"),
        ("--max-skipped", "5.0"),
        ("--logit-scale-fixed", "200.0"),
        ("--train-fraction", "0.0"),
        ("--evaluate-frequency", "0"),
        ("--wd", "-1.0"),
        ("--eps", "0.0"),
        ("--beta1", "1.0"),
        ("--beta2", "-0.5"),
        ("--ema-decay", "1.0"),
        ("--logit-scale-lr", "-3.0"),
        ("--seed", "-1"),
        ("--seed", str(2**64)),
        ("--name", ""),
        ("--name", "../other"),
        ("--name", "/other"),
    ],
)
def test_impossible_settings_are_named(flag: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{flag} must be .*{value}"):
        parse(flag, value)


@pytest.mark.parametrize("name", ["lr", "wd", "beta1", "eps", "grad_clip_norm", "ema_decay"])
def test_settings_from_python_must_not_be_nan(name: str) -> None:
    with pytest.raises(ValueError, match=r"must be .*, got nan"):
        TrainConfig().updated({name: math.nan})


@pytest.mark.parametrize(
    ("loss", "label"),
    [
        (LossConfig(), "CyCLIP"),
        (LossConfig(loss="clip"), "CLIP"),
        (LossConfig(cross_modal=0), "I-CyCLIP"),
        (LossConfig(in_modal=0), "C-CyCLIP"),
        (LossConfig(margin=0.1), "CyCLIP + margin 0.1"),
        (LossConfig(in_modal=0, cross_modal=0, margin=0.1), "CLIP + margin 0.1"),
        (LossConfig(loss="clip", two_views=True), "CLIP + views"),
    ],
)
def test_labels(loss: LossConfig, label: str) -> None:
    assert TrainConfig(loss=loss).label() == label


def test_comparison_carries_the_temperature_control() -> None:
    labels = [c.label() for c in comparison(TrainConfig(optim=OptimConfig(lr=1.0))).values()]
    assert labels == ["CLIP", "CyCLIP", "CyCLIP + margin 0.1", "CLIP, scale held at 100"]
    margins = comparison(TrainConfig(loss=LossConfig(margin=0.3)))
    assert [method.loss.margin for method in margins.values()] == [0, 0, 0.3, 0]


def test_torchrun_passes_every_flag_on() -> None:
    """torchrun also reads the arguments of the script, and abbreviates its own flags."""
    from torch.distributed.run import get_args_parser

    for section in TrainConfig().to_dict().values():
        for key in section:
            words = ["script.py", "--" + key.replace("_", "-"), "value"]
            assert get_args_parser().parse_args(words).training_script_args == words[1:]
