"""The command line and the settings behind it."""

import pytest

from cyclip_ext.training.compare import comparison
from cyclip_ext.training.config import LossConfig, OptimConfig, TrainConfig, config_from_arguments
from cyclip_ext.training.main import build_parser


def parse(*words: str) -> TrainConfig:
    return config_from_arguments(build_parser().parse_args(words))


def test_defaults_agree_with_the_dataclasses() -> None:
    assert parse() == TrainConfig()


def test_flags_reach_their_settings() -> None:
    config = parse(
        *("--train-data", "shards/{000..009}.tar", "--batch-size", "64", "--lr", "1e-3"),
        *("--in-modal", "0.5", "--loss", "clip", "--logit-scale-fixed", "100"),
        *("--resume", "logs/x", "--name", "y", "--epochs", "3"),
    )
    assert config.data.train_data == "shards/{000..009}.tar"
    assert (config.data.batch_size, config.optim.lr, config.loss.in_modal) == (64, 1e-3, 0.5)
    assert (config.loss.loss, config.optim.logit_scale_fixed) == ("clip", 100.0)
    assert (config.run.resume, config.run.name, config.run.epochs) == ("logs/x", "y", 3)


def test_dictionary_round_trip() -> None:
    config = parse("--margin", "0.1", "--seed", "7")
    assert TrainConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--batch-size", "1"), ("--epochs", "0"), ("--lr", "0"), ("--logit-scale-fixed", "200")],
)
def test_impossible_settings_are_named(flag: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{flag} must be .*{value}"):
        parse(flag, value)


@pytest.mark.parametrize(
    ("loss", "label"),
    [
        (LossConfig(), "CyCLIP"),
        (LossConfig(loss="clip"), "CLIP"),
        (LossConfig(cross_modal=0), "I-CyCLIP"),
        (LossConfig(in_modal=0), "C-CyCLIP"),
        (LossConfig(margin=0.1), "CyCLIP + margin 0.1"),
        (LossConfig(in_modal=0, cross_modal=0, margin=0.1), "CLIP + margin 0.1"),
    ],
)
def test_labels(loss: LossConfig, label: str) -> None:
    assert TrainConfig(loss=loss).label() == label


def test_comparison_carries_the_temperature_control() -> None:
    labels = [c.label() for c in comparison(TrainConfig(optim=OptimConfig(lr=1.0))).values()]
    assert labels == ["CLIP", "CyCLIP", "CyCLIP + margin 0.1", "CLIP, scale held at 100"]
    typed = comparison(TrainConfig(loss=LossConfig(margin=0.3)))
    assert [method.loss.margin for method in typed.values()] == [0, 0, 0.3, 0]
