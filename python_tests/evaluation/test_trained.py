"""Which weights a run folder stands for, and what is said of those that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models.tiny import create_tiny
from torch import Tensor

from cyclip_ext.models import trained
from cyclip_ext.models.checkpoint import FORMAT
from cyclip_ext.models.trained import load_pretrained, load_trained

from .tiny import write_checkpoint


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained, "create_model", create_tiny)


def equal(loaded: trained.TrainedModel, weights: dict[str, Tensor]) -> bool:
    state = loaded.created.model.state_dict()
    return all(torch.equal(state[name], value) for name, value in weights.items())


def test_run_folder_is_its_best_checkpoint_else_its_last(tmp_path: Path) -> None:
    """Wrong: the report is of other weights than the ones that were chosen."""
    last = write_checkpoint(tmp_path / "checkpoints/last.pt", seed=1)
    assert equal(load_trained(tmp_path), last)
    best = write_checkpoint(tmp_path / "checkpoints/best.pt", seed=2)
    loaded = load_trained(tmp_path)
    assert equal(loaded, best)
    assert not equal(loaded, last)
    assert loaded.weights == str(tmp_path / "checkpoints/best.pt")
    assert loaded.settings["run"]["seed"] == 7
    assert equal(load_trained(tmp_path / "checkpoints/last.pt"), last)


def test_moving_average_is_what_training_measures(tmp_path: Path) -> None:
    """Wrong: last.pt of a run with --ema-decay is measured with the weights of the last step."""
    torch.manual_seed(5)
    averaged = create_tiny().model.state_dict()
    ema = {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in averaged.items()}}
    raw = write_checkpoint(tmp_path / "last.pt", seed=1, ema=ema)
    loaded = load_trained(tmp_path / "last.pt")
    assert equal(loaded, averaged)
    assert not equal(loaded, raw)


def test_average_of_a_real_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong: what training writes and what is read here have drifted apart."""
    pytest.importorskip("jsonargparse")
    pytest.importorskip("tqdm")
    from training.parts import settings, tiny_trainer

    trainer = tiny_trainer(tmp_path, settings(ema_decay=0.5))
    trainer.save()
    with torch.no_grad():
        next(trainer.model.parameters()).add_(1.0)
    trainer.ema.update_parameters(trainer.model)  # the first one copies
    with torch.no_grad():
        next(trainer.model.parameters()).add_(1.0)
    trainer.ema.update_parameters(trainer.model)
    trainer.save()
    loaded = load_trained(tmp_path)
    assert equal(loaded, trainer.assessor.created.model.state_dict())
    assert not equal(loaded, trainer.model.state_dict())


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    """Wrong: a flipped bit is measured as a weight, or last.pt is taken without a word."""
    write_checkpoint(tmp_path / "checkpoints/last.pt", seed=1)
    best = tmp_path / "checkpoints/best.pt"
    weights = write_checkpoint(best, seed=2)
    largest = max(weights.values(), key=lambda value: value.numel())
    content = bytearray(best.read_bytes())
    content[bytes(content).index(largest.contiguous().numpy().tobytes()) + 100] ^= 1
    best.write_bytes(content)
    with pytest.raises(ValueError, match=r"best.pt cannot be read as a checkpoint: the checksum"):
        load_trained(tmp_path)


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither checkpoints/best.pt nor"):
        load_trained(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint at"):
        load_trained(tmp_path / "x.pt")
    torch.save({"format": FORMAT, "model": {}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x.pt has no weights and settings of a run, but format"):
        load_trained(tmp_path / "x.pt")
    torch.manual_seed(0)
    state: dict[str, Any] = create_tiny().model.state_dict()
    name = next(iter(state))
    write_checkpoint(tmp_path / "less.pt", model={k: v for k, v in state.items() if k != name})
    with pytest.raises(ValueError, match=r"less\.pt does not fit the model tiny"):
        load_trained(tmp_path / "less.pt")
    write_checkpoint(tmp_path / "nan.pt", model={**state, name: state[name] * torch.nan})
    with pytest.raises(ValueError, match=f"{name} is not finite"):
        load_trained(tmp_path / "nan.pt")


def test_open_clip_by_name_and_file(tmp_path: Path) -> None:
    """Wrong: weights are not those of the file, or pictures go through another transform."""
    open_clip = pytest.importorskip("open_clip")
    name = "ViT-S-16-alt" if "ViT-S-16-alt" in open_clip.list_models() else "RN50"
    with pytest.raises(ValueError, match=r"none of open_clip.list_models"):
        load_pretrained("no such model", "x")
    with pytest.raises(ValueError, match="neither a file nor a tag"):
        load_pretrained(name, str(tmp_path / "x.pt"))
    (tmp_path / "x.pt").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="cannot take the weights"):
        load_pretrained(name, str(tmp_path / "x.pt"))


@pytest.mark.slow
def test_open_clip_weights_are_those_of_the_file(tmp_path: Path) -> None:
    """Wrong: the model is a freshly initialized one, or pictures go through another transform."""
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(3)
    model, _, transform = open_clip.create_model_and_transforms("ViT-S-32-alt")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    loaded = load_pretrained("ViT-S-32-alt", str(tmp_path / "weights.pt"))
    assert equal(loaded, model.state_dict())
    assert loaded.created.image_size == 224
    assert str(loaded.transform) == str(transform)
