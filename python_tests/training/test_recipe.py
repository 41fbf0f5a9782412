"""The recipe for CC3M: its configuration files, its commands, and a small run through all of it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.files import encode, write_tar
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cyclip_ext.data.__main__ import main as data_main
from cyclip_ext.models.tokenizers import import_open_clip
from cyclip_ext.training.__main__ import build_parser, main
from cyclip_ext.training.config import OptimConfig, TrainConfig

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "examples/configs/cc3m"
PAGE = ROOT / "docs/cc3m.md"

LABELS = {
    "clip": "CLIP",
    "cyclip": "CyCLIP",
    "c-cyclip": "C-CyCLIP",
    "i-cyclip": "I-CyCLIP",
    "margin": "CLIP + margin 0.1",
    "cyclip-margin": "CyCLIP + margin 0.1",
}


def typed(name: str) -> dict[str, Any]:
    """Return the settings in a file, without defaults."""
    words = ["--config", str(CONFIGS / f"{name}.yaml")]
    return vars(build_parser().parse_args(words, defaults=False))


def test_there_is_a_file_for_each_method() -> None:
    assert {path.stem for path in CONFIGS.glob("*")} == set(LABELS)


@pytest.mark.parametrize("name", LABELS)
def test_file_trains_its_method_and_changes_nothing_else(name: str) -> None:
    config, clip = (TrainConfig().updated(typed(file)) for file in (name, "clip"))
    assert config.label() == LABELS[name]
    assert (config.data, config.optim, config.run) == (clip.data, clip.optim, clip.run)


@pytest.mark.parametrize("name", LABELS)
def test_file_sets_every_published_setting(name: str) -> None:
    """Published settings do not change with the defaults of this package."""
    optional = {"logit_scale_fixed", "ema_decay", "skip_nonfinite"}  # off, and nothing when off
    published = set(TrainConfig().to_dict()["optim"]) - optional
    published |= {"model", "epochs", "batch_size", "precision", "loss"}
    if name != "clip":
        published |= {"in_modal", "cross_modal", "margin"}
    assert published <= set(typed(name))
    # open_clip's and the CyCLIP authors' optimizer, which is that of PyTorch.
    assert TrainConfig().updated(typed(name)).optim == OptimConfig(
        lr=5e-4, beta2=0.999, warmup=10_000, logit_scale_lr=1
    )


def test_flags_in_the_text_of_the_page_exist() -> None:
    known = {option for action in build_parser()._actions for option in action.option_strings}
    spans = re.findall(r"`([^`\n]+)`", PAGE.read_text())
    # Flags with an underscore are img2dataset's.
    named = {flag for span in spans for flag in re.findall(r"--[a-z][a-z-]*(?![a-z_-])", span)}
    assert len(named) > 10
    assert named <= known


@pytest.fixture
def tiny_open_clip(tmp_path: Path) -> str:
    """Return the name of an RN50 in miniature that is registered with open_clip."""
    try:
        open_clip = import_open_clip()
    except ImportError as error:
        pytest.skip(str(error))
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    path = tmp_path / "tiny-RN50.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    return path.stem


def test_from_shards_to_a_model_that_open_clip_loads(tmp_path: Path, tiny_open_clip: str) -> None:
    random = np.random.default_rng(0)
    members = []
    for i in range(48):
        pixels = random.integers(0, 255, (36, 40, 3), dtype=np.uint8)
        data = encode(Image.fromarray(pixels), "JPEG")
        members.append((f"{i:09d}.jpg", data[: len(data) // 2] if i == 7 else data))
        members.append((f"{i:09d}.txt", f"image number {i}".encode()))
    shards, manifest = tmp_path / "cc3m", tmp_path / "cc3m.json"
    shards.mkdir()
    write_tar(shards / "00000.tar", members[:50])
    write_tar(shards / "00001.tar", members[50:])
    assert data_main(["verify", str(shards), "--manifest", str(manifest), "--workers", "0"]) == 0

    words = ["--config", str(CONFIGS / "cyclip.yaml"), "--manifest", str(manifest)]
    words += ["--train-data", str(shards / "{00000..00001}.tar"), "--logs-dir", str(tmp_path)]
    words += ["--name", "run", "--model", tiny_open_clip, "--epochs", "1", "--batch-size", "8"]
    words += ["--warmup", "1", "--precision", "fp32", "--device", "cpu", "--workers", "0"]
    words += ["--max-skipped", "0"]
    assert main(words) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["label"] == "CyCLIP"
    assert "text_retrieval_recall@1" in result["metrics"]["validation"]

    for name in ("last.pt", "best.pt"):
        state = torch.load(tmp_path / "run/checkpoints" / name, weights_only=True)
        torch.save(state["model"], tmp_path / name)
        # With a path it loads the file and nothing else, and is strict about names and shapes.
        model = import_open_clip().create_model(tiny_open_clip, pretrained=str(tmp_path / name))
        for key, value in model.state_dict().items():
            assert torch.equal(value, state["model"][key]), key


def test_costs_of_the_page_follow_from_its_figures() -> None:
    try:
        open_clip = import_open_clip()
    except ImportError as error:
        pytest.skip(str(error))
    page = PAGE.read_text()
    flops = []
    with torch.device("meta"), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model = open_clip.create_model("RN50", device="meta")
        for encode_one, shape, dtype in (
            (model.encode_image, (1, 3, 224, 224), torch.float32),
            (model.encode_text, (1, 77), torch.int64),
        ):
            with FlopCounterMode(display=False) as counter:
                encode_one(torch.empty(shape, dtype=dtype))
            flops.append(counter.get_total_flops())
    image, text = (number / 1e9 for number in flops)
    assert f"{image:.1f} GFLOP in the image tower and {text:.1f} in the text tower" in page
    per_pair = 3 * sum(flops)
    assert f"the total is {per_pair / 1e9:.1f}" in page
    rows = re.findall(
        r"\| (\d+) \([bfp]+16\) \| (\d+)% \| ([\d,]+) \| (\d+) \| (\d+) \| (\d+) \|", page
    )
    assert len(rows) == 4
    for row in rows:
        peak, share, rate, workers, hours_a, hours_b = (float(x.replace(",", "")) for x in row)
        pairs_per_second = peak * 1e12 * share / 100 / per_pair
        assert rate == pytest.approx(pairs_per_second, rel=0.02)
        assert workers == math.ceil(pairs_per_second / 500)
        for hours, epochs in ((hours_a, 64), (hours_b, 30)):
            assert hours == pytest.approx(epochs * 2.8e6 / pairs_per_second / 3600, abs=0.6)
