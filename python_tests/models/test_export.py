"""Traced and exported models give the features of eager ones, for any batch and any caption."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cyclip_ext.data import file_transform
from cyclip_ext.models import MiniCLIP, create_model
from cyclip_ext.models.export import ExportFormat, export_run
from cyclip_ext.models.trained import load_trained
from cyclip_ext.training.__main__ import main

from .tiny import CONTEXT, VOCABULARY, create_tiny, write_run

Inputs = tuple[Tensor, Tensor]
Features = Callable[[Tensor, Tensor], Any]


def make_inputs(rows: int, longest: int) -> Inputs:
    """Return images, and captions of 0 to `longest` tokens, one of them the longest."""
    torch.manual_seed(longest)
    images = torch.randn(rows, 3, 16, 16)
    texts = torch.randint(1, VOCABULARY, (rows, CONTEXT))
    lengths = torch.randint(0, longest + 1, (rows,))
    lengths[0] = longest
    return images, texts * (torch.arange(CONTEXT) < lengths[:, None])


def export(model: nn.Module, inputs: Inputs) -> Features:
    rows = {0: torch.export.Dim("images")}, {0: torch.export.Dim("captions")}
    return torch.export.export(model, inputs, dynamic_shapes=rows).module()


def compile(model: nn.Module, inputs: Inputs) -> Features:
    torch._dynamo.reset()
    return torch.compile(model, backend="aot_eager", fullgraph=True)


def trace(model: nn.Module, inputs: Inputs) -> Features:
    return torch.jit.trace(model, inputs, check_inputs=[make_inputs(5, CONTEXT)])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", [export, compile, trace])
def test_traced_default_model_matches_eager(way: Callable[[nn.Module, Inputs], Features]) -> None:
    """The length of the captions at hand must not become a constant of the graph."""
    torch.manual_seed(0)
    model = create_tiny().model.eval()
    assert isinstance(model, MiniCLIP)
    model.output_dict = False
    with torch.no_grad():
        traced = way(model, make_inputs(3, 4))
        for rows, longest in ((2, 0), (3, 1), (4, 4), (7, CONTEXT)):
            inputs = make_inputs(rows, longest)
            for actual, expected in zip(traced(*inputs), model(*inputs), strict=True):
                torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def features(model: Any, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
    model.eval()
    with torch.no_grad():
        return {
            "image": model.encode_image(images, normalize=True),
            "text": model.encode_text(texts, normalize=True),
        }


CAPTIONS = ["a red circle", "", "word " * 24]


def test_safetensors_restores_the_averaged_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_file = pytest.importorskip("safetensors.torch").load_file
    run = write_run(tmp_path / "run", "mini", "siglip")
    assert main(["export", str(run), "--format", "safetensors"]) == 0
    folder = run / "export"
    config = json.loads((folder / "config.json").read_text())
    loaded = create_model(**config["create_model"])
    loaded.model.load_state_dict(load_file(folder / "model.safetensors"))
    inputs = torch.randn(3, 3, 48, 48), loaded.tokenizer(CAPTIONS)
    expected = load_trained(run).created.model
    torch.testing.assert_close(
        features(loaded.model, *inputs), features(expected, *inputs), rtol=0, atol=0
    )
    assert config["logit_scale"] == pytest.approx(10)
    assert (config["logit_bias"], config["context_length"]) == (-10, 24)
    assert main(["export", str(run), "--format", "open_clip"]) == 1
    assert "error: format open_clip needs" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_onnx_graphs_match_eager(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    run = write_run(tmp_path / "run", "mini")
    files = export_run(run, tmp_path / "out", "onnx")
    assert [file.name for file in files] == ["config.json", "image.onnx", "text.onnx"]
    assert {*(tmp_path / "out").iterdir()} == {*files}
    sessions = {file.stem: runtime.InferenceSession(file) for file in files[1:]}
    created = load_trained(run).created
    for rows in (1, 3):
        inputs = torch.randn(rows, 3, 48, 48), created.tokenizer(CAPTIONS[:rows])
        expected = features(created.model, *inputs)
        for name, tensor in zip(sessions, inputs, strict=True):
            (actual,) = sessions[name].run([f"{name}_features"], {name: tensor.numpy()})
            torch.testing.assert_close(
                torch.from_numpy(actual), expected[name], rtol=1e-5, atol=1e-6
            )


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_open_clip_loads_the_export(
    loss: str, architecture: Path, open_clip: ModuleType, tmp_path: Path
) -> None:
    """Both of open_clip's ways, with the preprocessing of training."""
    run = write_run(tmp_path / "run", architecture.stem, loss, "open_clip")
    assert main(["export", str(run), "--format", "open_clip", "--output", str(tmp_path / "o")]) == 0
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}/o")
    bias = {"init_logit_bias": -10} if loss == "siglip" else {}
    by_name = open_clip.create_model(
        architecture.stem, pretrained=str(tmp_path / "o/open_clip_model.safetensors"), **bias
    )
    created = load_trained(run).created
    inputs = torch.randn(3, 3, 16, 16), created.tokenizer(CAPTIONS)
    for loaded in (model, by_name):
        torch.testing.assert_close(
            features(loaded, *inputs), features(created.model, *inputs), rtol=0, atol=0
        )
        assert (loaded.logit_bias is None) == (loss == "clip")
    image = Image.effect_noise((40, 30), 50).convert("RGB")
    assert torch.equal(transform(image), file_transform(16)(image))


@pytest.mark.parametrize(
    ("format", "missing", "message"),
    [
        ("open_clip", None, "needs an architecture of open_clip, got mini.*safetensors or onnx"),
        ("onnx", "onnxscript", r"needs the package onnxscript: pip install 'cyclip_ext\[export\]'"),
        ("safetensors", "safetensors", "needs the package safetensors"),
        ("onnx", "run", "has neither checkpoints/best.pt nor"),
        ("torchscript", None, "must be one of open_clip, safetensors, onnx, got 'torchscript'"),
    ],
)
def test_impossible_exports_write_nothing(
    format: ExportFormat,
    missing: str | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("safetensors", "onnx", "onnxscript"):  # None: the import fails
        monkeypatch.setitem(sys.modules, name, None if name == missing else ModuleType(name))
    run = tmp_path if missing == "run" else write_run(tmp_path / "run", "mini")
    with pytest.raises((ValueError, ImportError, FileNotFoundError), match=message):
        export_run(run, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", ModuleType("safetensors"))  # not used
    run, output = write_run(tmp_path / "run", "mini"), tmp_path / "file"
    output.write_text("mine")
    words = ["export", str(run), "--format", "safetensors", "--output", str(output)]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert f"cannot be written into {output}: Not a directory; choose another folder" in error
    assert output.read_text() == "mine"
