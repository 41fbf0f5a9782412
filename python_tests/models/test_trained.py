"""The choice of weights in a run folder, and the errors for files that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from cyclip_ext.models import create_model, trained
from cyclip_ext.models.checkpoint import FORMAT, load_checkpoint
from cyclip_ext.models.trained import load_pretrained, load_trained, load_weights, unwrapped

from .tiny import ARCHITECTURE, SETTINGS, create_tiny, write_checkpoint


@pytest.fixture
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained, "create_model", create_tiny)


def equal(loaded: trained.TrainedModel, weights: dict[str, Tensor]) -> bool:
    state = loaded.created.model.state_dict()
    return all(torch.equal(state[name], value) for name, value in weights.items())


@pytest.mark.usefixtures("tiny_models")
def test_run_folder_is_its_best_checkpoint_else_its_last(tmp_path: Path) -> None:
    last = write_checkpoint(tmp_path / "checkpoints/last.pt", seed=1)
    assert equal(load_trained(tmp_path), last)
    best = write_checkpoint(tmp_path / "checkpoints/best.pt", seed=2)
    loaded = load_trained(tmp_path)
    assert equal(loaded, best)
    assert not equal(loaded, last)
    assert loaded.weights == str(tmp_path / "checkpoints/best.pt")
    assert loaded.settings["run"]["seed"] == 7
    assert equal(load_trained(tmp_path / "checkpoints/last.pt"), last)


@pytest.mark.usefixtures("tiny_models")
def test_moving_average_is_taken_if_there_is_one(tmp_path: Path) -> None:
    torch.manual_seed(5)
    averaged = create_tiny().model.state_dict()
    ema = {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in averaged.items()}}
    raw = write_checkpoint(tmp_path / "last.pt", seed=1, ema=ema)
    loaded = load_trained(tmp_path / "last.pt")
    assert equal(loaded, averaged)
    assert not equal(loaded, raw)


@pytest.mark.usefixtures("tiny_models")
def test_average_of_a_real_run(tmp_path: Path) -> None:
    from training.parts import settings, tiny_trainer

    trainer = tiny_trainer(tmp_path, settings(ema_decay=0.5))
    trainer.save()
    for _ in range(2):
        with torch.no_grad():
            next(trainer.model.parameters()).add_(1.0)
        trainer.ema.update_parameters(trainer.model)  # the first call copies
    with torch.no_grad():
        next(trainer.model.parameters()).add_(1.0)
    trainer.save()
    loaded = load_trained(tmp_path)
    assert equal(loaded, trainer.ema.module.state_dict())
    assert not equal(loaded, trainer.model.state_dict())


@pytest.mark.usefixtures("tiny_models")
def test_flipped_bit_is_found(tmp_path: Path) -> None:
    """torch.load does not compare checksums: the bit would be measured as part of a weight."""
    write_checkpoint(tmp_path / "checkpoints/last.pt", seed=1)
    best = tmp_path / "checkpoints/best.pt"
    weights = write_checkpoint(best, seed=2)
    largest = max(weights.values(), key=lambda value: value.numel())
    content = bytearray(best.read_bytes())
    content[bytes(content).index(largest.contiguous().numpy().tobytes()) + 100] ^= 1
    best.write_bytes(content)
    message = r"best\.pt is damaged: the checksum of .* is wrong; other checkpoints .*: last\.pt"
    with pytest.raises(ValueError, match=message):
        load_trained(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"x\.pt is empty; there is no other checkpoint"),
        (b"<html>", r"x\.pt is cut short or is not a file of torch.save"),
        (["a", "b"], "holds a list, not a dictionary"),
        ({"format": 1}, "has format 1, but this version reads format 2"),
        ({"format": FORMAT, "model": {}}, "lacks the weights or settings .* entries format, model"),
        ({"format": FORMAT, "model": {}, "config": {"run": {}}}, "lacks the weights or settings"),
        (
            {"format": FORMAT, "model": 5, "config": {"run": {"model": "x"}, "loss": {"loss": ""}}},
            "lacks the weights or settings",
        ),
        ({"epoch": 3}, "is not a checkpoint of this package: it has the entries epoch"),
        ({"a": torch.ones(1)}, r"weights alone \(a\).*cyclip-eval open-clip MODEL --pretrained"),
        (
            {"epoch": 3, "state_dict": {}, "optimizer": {}},
            r"of another trainer \(it has epoch, .*cyclip-eval open-clip MODEL --pretrained FILE",
        ),
        ({"format": FORMAT, "model": create_tiny}, "holds Python objects besides tensors"),
    ],
)
def test_unusable_files_give_one_line(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message) as caught:
        load_trained(path)
    assert "\n" not in str(caught.value)


def test_truncated_checkpoint_names_the_others(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "previous.pt")
    write_checkpoint(tmp_path / "last.pt")
    content = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "last.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"last\.pt is cut short .*in its folder: previous\.pt"):
        load_checkpoint(tmp_path / "last.pt")


@pytest.mark.usefixtures("tiny_models")
def test_missing_and_misfit_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither checkpoints/best.pt nor"):
        load_trained(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint at"):
        load_trained(tmp_path / "x.pt")
    torch.manual_seed(0)
    state: dict[str, Any] = create_tiny().model.state_dict()
    name = next(iter(state))
    less = {k: v for k, v in state.items() if k != name}
    more = {**less, **{f"extra{i}": torch.ones(1) for i in range(12)}}
    for model, message in (
        (less, f"does not fit the model tiny, .*: missing: {name}$"),
        (more, rf"missing: {name}; unknown: extra0, .*extra9 and 2 more$"),
        ({**state, name: torch.ones(2)}, rf"of another shape: {name} \(\[2\] instead of"),
        ({**state, name: state[name] * torch.nan}, f"{name} holds NaN or infinity"),
    ):
        write_checkpoint(tmp_path / "x.pt", model=model)
        with pytest.raises(ValueError, match=message):
            load_trained(tmp_path / "x.pt")


def test_prefixes_and_containers_are_removed() -> None:
    weights = {"visual.a": torch.ones(1), "text.b": torch.zeros(1)}
    for prefix in ("module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module."):
        wrapped = {prefix + key: value for key, value in weights.items()}
        assert unwrapped(wrapped) == weights
        assert unwrapped({"epoch": 1, "state_dict": wrapped}) == weights
        assert unwrapped({"model": wrapped, "optimizer": {}}) == weights
    assert unwrapped({"module.a": weights["text.b"], "b": weights["text.b"]}).keys() == {
        *("module.a", "b")
    }


def test_tokenizer_of_the_run_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another tokenizer, every text would be embedded as a random one."""

    def missing() -> None:
        raise ImportError("open_clip is not installed")

    monkeypatch.setattr("cyclip_ext.models.tokenizers.import_open_clip", missing)
    created = create_model("mini")
    assert created.tokenizer_name == "words"
    run = {**SETTINGS["run"], "model": "mini"}
    for tokenizer, old in (("words", False), ("open_clip", False), ("open_clip", True)):
        own = {key: value for key, value in run.items() if not old or key != "tokenizer"}
        config = {**SETTINGS, "run": own if old else {**run, "tokenizer": tokenizer}}
        path = tmp_path / "x.pt"
        torch.save({"format": FORMAT, "config": config, "model": created.model.state_dict()}, path)
        if tokenizer == "words":
            assert load_trained(path).created.tokenizer_name == "words"
        else:
            with pytest.raises(ImportError, match=r"x\.pt was trained with mini and its tokenizer"):
                load_trained(path)


@pytest.mark.usefixtures("open_clip")
def test_unknown_model_of_a_run_is_named_with_the_file(tmp_path: Path) -> None:
    config = {**SETTINGS, "run": {**SETTINGS["run"], "model": "nonesuch"}}
    write_checkpoint(tmp_path / "x.pt", config=config)
    with pytest.raises(ValueError, match=r"x\.pt: model 'nonesuch' is unknown"):
        load_trained(tmp_path / "x.pt")


def test_unknown_names_and_weights_of_open_clip(
    architecture: Path, open_clip: ModuleType, tmp_path: Path
) -> None:
    own = write_checkpoint(tmp_path / "own.pt")
    (tmp_path / "html.pt").write_bytes(b"<html>")
    torch.save({"state_dict": own}, tmp_path / "other.pt")
    (tmp_path / "none.json").write_text('{"model_cfg": {}}')
    for name, weights, message in (
        ("no such model", "x", r"not one of open_clip.list_models\(\)"),
        ("RN50", str(tmp_path / "x.pt"), "neither a file nor a tag of RN50; its tags are: openai"),
        ("RN50", None, "RN50 needs pretrained weights, a file or one of its tags; its tags are: o"),
        ("local-dir:x", "y", "its own weights, got pretrained 'y'; omit"),
        (f"local-dir:{tmp_path}/x", None, "open_clip cannot load local-dir:"),
        (str(tmp_path / "x.json"), "y", "does not exist"),
        (str(tmp_path / "none.json"), "y", f"must be an object with .*local-dir:{tmp_path}"),
        (architecture.stem, str(tmp_path / "html.pt"), r"html\.pt is cut short or is not"),
        (architecture.stem, str(tmp_path / "own.pt"), "evaluate it with `cyclip-eval run"),
        (architecture.stem, str(tmp_path / "other.pt"), r"other\.pt does not fit tiny-ViT: missin"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            load_pretrained(name, weights)
        assert "\n" not in str(caught.value)


def test_everything_open_clip_opens_is_opened(
    architecture: Path, open_clip: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights must be those of the file, and images take open_clip's preprocessing."""
    hub = pytest.importorskip("huggingface_hub").constants  # hf-hub: reads the cache if offline
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    torch.manual_seed(3)
    model, _, transform = open_clip.create_model_and_transforms(architecture.stem)
    state = model.state_dict()
    folder = tmp_path / "models--tiny--vit/snapshots/0"
    folder.mkdir(parents=True)
    (tmp_path / "models--tiny--vit/refs").mkdir()
    (tmp_path / "models--tiny--vit/refs/main").write_text("0")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": ARCHITECTURE}))
    with pytest.raises(ValueError, match="open_clip cannot load"):  # no weights: not a random model
        load_pretrained(f"local-dir:{folder}")
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    torch.save(
        {"model": {f"module._orig_mod.{key}": value for key, value in state.items()}},
        tmp_path / "wrapped.pt",
    )
    plain = folder / "open_clip_pytorch_model.bin"
    for name, weights in (
        (architecture.stem, str(plain)),
        (str(architecture), str(plain)),
        (architecture.stem, str(tmp_path / "wrapped.pt")),
        (f"local-dir:{folder}", None),
        ("hf-hub:tiny/vit", None),
    ):
        loaded = load_pretrained(name, weights)
        assert equal(loaded, state)
        assert loaded.created.image_size == 16
        assert loaded.created.tokenizer(["a cat"]).shape == (1, 8)
        assert str(loaded.transform) == str(transform)
        assert loaded.weights == (weights or name)


def test_new_model_takes_weights_of_runs_and_of_other_trainers(tmp_path: Path) -> None:
    torch.manual_seed(5)
    averaged = create_tiny().model.state_dict()
    ema = {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in averaged.items()}}
    last = write_checkpoint(tmp_path / "checkpoints/last.pt", seed=1)
    write_checkpoint(tmp_path / "ema.pt", seed=2, ema=ema)
    torch.save({"state_dict": {f"module.{k}": v for k, v in last.items()}}, tmp_path / "other.pt")
    for name, expected in ((".", last), ("ema.pt", averaged), ("other.pt", last)):
        created = create_tiny()
        assert load_weights(created, str(tmp_path / name)) == {}
        state = created.model.state_dict()
        assert all(torch.equal(state[key], value) for key, value in expected.items())
    with pytest.raises(ValueError, match="must be a file or run folder that exists, got 'openai'"):
        load_weights(create_tiny(), "openai")
    torch.save({**last, "more": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt do not fit tiny: unknown: more"):
        load_weights(create_tiny(), str(tmp_path / "other.pt"))


def test_bias_that_only_one_of_model_and_weights_has(tmp_path: Path) -> None:
    of_softmax, of_sigmoid = create_tiny(), create_tiny(sigmoid=True)
    for created, path in ((of_softmax, tmp_path / "a.pt"), (of_sigmoid, tmp_path / "b.pt")):
        torch.save(created.model.state_dict(), path)
    load_weights(of_softmax, str(tmp_path / "b.pt"))
    assert of_softmax.model.logit_bias is None
    load_weights(of_sigmoid, str(tmp_path / "a.pt"))
    assert of_sigmoid.model.logit_bias == -10


def test_new_model_of_open_clip_takes_files_and_runs(
    architecture: Path, open_clip: ModuleType, tmp_path: Path
) -> None:
    created = create_model(architecture.stem)
    state = open_clip.create_model(architecture.stem).state_dict()
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "wrapped.pt")
    write_checkpoint(tmp_path / "run.pt", model=state)
    for name in ("wrapped.pt", "run.pt"):
        created = create_model(architecture.stem)
        stated = load_weights(created, str(tmp_path / name))
        assert bool(stated.get("mean")) == (name == "wrapped.pt")
        found = created.model.state_dict()
        assert all(torch.equal(found[key], value) for key, value in state.items())
    with pytest.raises(ValueError, match="'nonesuch' are neither a file nor a tag of tiny-ViT"):
        load_weights(created, "nonesuch")
