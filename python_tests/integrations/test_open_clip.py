"""open_clip's own trainer with this package's losses: the same weights, and every constructor."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from losses.ranks import World
from torch import Tensor

from cyclip_ext import CyCLIPLoss

pytest.importorskip("open_clip_train.main", exc_type=ImportError)

import open_clip
from open_clip_train.main import main as train
from PIL import Image

from cyclip_ext.integrations.open_clip import build_parser, install, main
from cyclip_ext.losses import PairwiseLoss

FORWARD = PairwiseLoss.forward
LOSSES = {"ClipLoss", "SigLipLoss", "CoCaLoss", "DistillClipLoss"}
VISION = {"width": 16, "layers": 1, "head_width": 8, "image_size": 16, "patch_size": 8}
TEXT = {"width": 16, "layers": 1, "heads": 2, "context_length": 12, "vocab_size": 49408}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT},
    "coca": {
        "embed_dim": 16,
        "vision_cfg": {**VISION, "attentional_pool": True, "attn_pooler_heads": 2}
        | {"output_tokens": True},
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2},
        "custom_text": True,
    },
}


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give open_clip its own losses back after the test."""
    for module in open_clip, open_clip.loss, open_clip.factory:
        for name in vars(module).keys() & LOSSES:
            monkeypatch.setattr(module, name, getattr(module, name))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with models and with twelve pairs, as a table and as a tar file."""
    folder = tmp_path_factory.mktemp("open_clip")
    for name, config in CONFIGS.items():
        (folder / name).mkdir()
        text = json.dumps({"model_cfg": config, "preprocess_cfg": {}})
        (folder / name / "open_clip_config.json").write_text(text)
    model = open_clip.create_model(f"local-dir:{folder}/coca")
    torch.manual_seed(0)
    for parameter in model.parameters():  # open_clip does not initialize all of them
        if parameter.ndim:
            torch.nn.init.normal_(parameter, std=0.2)
    torch.save(model.state_dict(), folder / "coca" / "open_clip_pytorch_model.bin")
    with (
        tarfile.open(folder / "pairs.tar", "w") as tar,
        open(folder / "pairs.csv", "w", newline="") as file,
    ):
        table = csv.writer(file)
        table.writerow(["filepath", "title"])
        for k in range(12):
            image = Image.new("RGB", (16, 16), (20 * k, 255 - 20 * k, 10 * k))
            path = folder / f"{k}.png"
            image.save(path)
            table.writerow([path, f"a thing of colour {k}"])
            for suffix, data in ("png", path.read_bytes()), ("txt", b"a thing of colour %d" % k):
                entry = tarfile.TarInfo(f"{k}.{suffix}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return folder


def flags(folder: Path, logs: Path, model: str = "plain", *others: str) -> list[str]:
    """Return flags of open_clip's trainer for three steps of gradient descent on a CPU."""
    data = ["--train-data", f"{folder}/pairs.csv", "--csv-separator", ","]
    optimizer = ["--opt", "timm/sgd", "--momentum", "0.9", "--lr", "0.1", "--warmup", "0"]
    run = ["--logs", str(logs), "--name", "run", "--device", "cpu", "--workers", "0"]
    size = ["--batch-size", "4", "--epochs", "1", "--precision", "fp32"]
    return [*data, *optimizer, *run, *size, "--model", f"local-dir:{folder}/{model}", *others]


def weights(logs: Path) -> dict[str, Tensor]:
    checkpoint = torch.load(logs / "run/checkpoints/epoch_1.pt", weights_only=False)
    state: dict[str, Tensor] = checkpoint["state_dict"]
    return state


RUNS: dict[str, tuple[str, str, list[str]]] = {
    "clip": ("clip", "plain", []),
    "accumulated": ("clip", "plain", ["--accum-freq", "3"]),
    "siglip": ("siglip", "plain", ["--siglip"]),
    "coca": ("clip", "coca", []),
    "distilled": ("clip", "plain", ["--distill-model", "TEACHER", "--distill-pretrained", "x"]),
}


@pytest.mark.parametrize("run", RUNS)
def test_trained_weights_are_those_of_open_clips_loss(
    folder: Path, tmp_path: Path, run: str
) -> None:
    loss, model, others = RUNS[run]
    others = [f"local-dir:{folder}/plain" if flag == "TEACHER" else flag for flag in others]
    train(flags(folder, tmp_path / "theirs", model, *others))
    with mock.patch.object(PairwiseLoss, "forward", autospec=True) as forward:
        forward.side_effect = FORWARD
        main(["--loss", loss, "--", *flags(folder, tmp_path / "ours", model, *others)])
    assert forward.call_count == 3
    expected, actual = weights(tmp_path / "theirs"), weights(tmp_path / "ours")
    start = open_clip.create_model(f"local-dir:{folder}/{model}").state_dict()
    assert any(not torch.equal(actual[name], start[name]) for name in start)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", CONFIGS)
def test_cyclip_trains_with_its_terms(folder: Path, tmp_path: Path, model: str) -> None:
    main(["--loss", "cyclip", "--margin", "0.1", "--", *flags(folder, tmp_path, model)])
    log = (tmp_path / "run/out.log").read_text()
    for term in "Contrastive", "In_modal", "Cross_modal", "Margin":
        assert f"{term}_loss: " in log
    assert ("Caption_loss: " in log) == (model == "coca")


def test_module_runs_the_trainer_on_shards(
    folder: Path, tmp_path: Path, run_program: Callable[..., str]
) -> None:
    """As typed: `python -m cyclip_ext.integrations.open_clip --loss cyclip -- FLAGS`."""
    arguments = flags(folder, tmp_path)
    at = arguments.index("--train-data")
    shards = ["--train-data", f"{folder}/pairs.tar", "--dataset-type", "webdataset"]
    arguments[at : at + 4] = [*shards, "--train-num-samples", "12"]
    run_program(
        "import runpy; runpy.run_module('cyclip_ext.integrations.open_clip', run_name='__main__')",
        *("--loss", "cyclip", "--in-modal", "0.5", "--", *arguments),
    )
    assert "In_modal_loss: " in (tmp_path / "run/out.log").read_text()
    assert weights(tmp_path)


# ------------------------------------------------- constructors


def _arguments(rank: int, **changes: Any) -> Namespace:
    """Return what create_loss reads of the trainer's flags."""
    defaults: dict[str, Any] = {
        "distill": False,
        "siglip": False,
        "model": "ViT-B-32",
        "local_loss": True,
        "gather_with_grad": True,
        "rank": rank,
        "world_size": 2,
        "horovod": False,
        "loss_dist_impl": None,
        "coca_caption_loss_weight": 2.0,
        "coca_contrastive_loss_weight": 0.5,
    }
    return Namespace(**{**defaults, **changes})


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("clip", {}),
    "siglip": ("siglip", {"siglip": True}),
    "siglip_gather": ("siglip", {"siglip": True, "loss_dist_impl": "gather"}),
    "coca": ("clip", {"model": "coca_ViT-B-32"}),
    "distilled": ("clip", {"distill": True}),
}


def unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features, dim=-1)


def _both(rank: int, case: str) -> list[list[Tensor]]:
    """Return terms and gradients of open_clip's loss and of the installed one, on a rank."""
    loss, changes = CASES[case]
    theirs = open_clip.create_loss(_arguments(rank, **changes))
    own = {name: getattr(open_clip.factory, name) for name in LOSSES}
    install(loss)
    ours = open_clip.create_loss(_arguments(rank, **changes))
    for name, original in own.items():
        setattr(open_clip.factory, name, original)
    results = []
    for criterion in theirs, ours:
        torch.manual_seed(0)
        image, text, *teacher = torch.randn(4, 8, 6).double()[:, 4 * rank :][:, :4]
        leaves = [image.requires_grad_(), text.requires_grad_(), torch.tensor(5.0).double()]
        scale = leaves[2].requires_grad_()
        inputs = {"image_features": unit(image), "text_features": unit(text), "logit_scale": scale}
        if "siglip" in case:
            inputs["logit_bias"] = torch.tensor(-3.0).double()
        if case == "coca":
            inputs["logits"] = torch.randn(4, 5, 7).double()
            inputs["labels"] = torch.randint(7, (4, 5))
        if case == "distilled":
            inputs["dist_image_features"], inputs["dist_text_features"] = map(unit, teacher)
            inputs["dist_logit_scale"] = torch.tensor(7.0).double()
        terms = criterion(**inputs, output_dict=True)
        sum(terms.values()).backward()
        results.append([torch.stack([terms[k] for k in sorted(terms)]).detach()])
        results[-1] += [leaf.grad for leaf in leaves]
    return results


@pytest.mark.parametrize("case", CASES)
def test_ranks_have_the_gradients_of_local_loss_and_gather_with_grad(
    world: World, case: str
) -> None:
    """Averaged as by DistributedDataParallel; open_clip's terms are those of a rank's rows."""
    ranks = world.results(_both, case)
    for rank in range(2):
        for theirs, ours in zip(*(r[1:3] for r in ranks[rank]), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    for k in 0, 3:  # terms, and the gradient of the scale
        theirs, ours = (torch.stack([r[side][k] for r in ranks]).mean(0) for side in range(2))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_losses_are_constructed_wherever_open_clip_looks_them_up() -> None:
    """create_loss of 3.x looks into open_clip.factory, the tasks of later versions into loss."""
    install("cyclip", in_modal=0.5, exchange="ring")
    for module in open_clip, open_clip.loss, open_clip.factory:
        loss = module.ClipLoss(local_loss=True, gather_with_grad=True, cache_labels=True)
        assert isinstance(loss, CyCLIPLoss)
        assert (loss.in_modal, loss.options.exchange) == (0.5, "ring")


@pytest.mark.parametrize("distill", [False, True])
def test_pair_of_losses_is_returned_without_output_dict(distill: bool) -> None:
    arguments = _arguments(0, world_size=1, distill=distill, model="coca_ViT-B-32")
    image, text = unit(torch.randn(2, 4, 6)).unbind()
    inputs: dict[str, Any] = {"image_features": image, "text_features": text, "logit_scale": 5.0}
    if distill:
        inputs |= {f"dist_{name}": value for name, value in inputs.items()}
    else:
        inputs |= {"logits": torch.randn(4, 5, 7), "labels": torch.randint(7, (4, 5))}
    expected = open_clip.create_loss(arguments)(**inputs)
    install("clip")
    torch.testing.assert_close(open_clip.create_loss(arguments)(**inputs), expected)


@pytest.mark.parametrize(
    ("impl", "exchange"),
    [("bidir", "ring"), ("shift", "ring"), ("gather", "gather"), ("reduce", "gather")],
)
def test_dist_impl_chooses_the_exchange_unless_an_option_does(impl: str, exchange: str) -> None:
    arguments = _arguments(0, world_size=1, siglip=True, loss_dist_impl=impl)
    install("siglip")
    assert open_clip.create_loss(arguments).options.exchange == exchange
    install("siglip", exchange="replicate")
    assert open_clip.create_loss(arguments).options.exchange == "replicate"


def test_pad_id_goes_to_the_captioning_loss() -> None:
    install("clip")
    loss = open_clip.loss.CoCaLoss(2.0, 1.0, pad_id=3, cache_labels=True)
    assert loss.theirs.caption_loss.ignore_index == 3


def test_documented_installation(run_documented: Callable[..., dict[str, Any]]) -> None:
    run_documented("open_clip")
    loss = open_clip.create_loss(_arguments(0, world_size=1))
    assert isinstance(loss, CyCLIPLoss)
    assert loss.options.group == "local"


def test_last_installation_counts() -> None:
    install("cyclip")
    install("clip")
    x, y = torch.randn(2, 4, 3).unbind()
    terms = open_clip.create_loss(_arguments(0, world_size=1))(x, y, 5.0, output_dict=True)
    assert list(terms) == ["contrastive_loss"]


@pytest.mark.parametrize(
    ("loss", "changes", "words"),
    [
        ("cyclip", {"siglip": True}, ["--siglip", "leave"]),
        ("siglip", {}, ["'siglip'", "add --siglip"]),
        ("siglip", {"model": "coca_ViT-B-32"}, ["CoCa", "'clip' and 'cyclip'"]),
        ("siglip", {"distill": True}, ["distillation", "'clip' and 'cyclip'"]),
        ("clip", {"horovod": True}, ["use_horovod=True", "torchrun"]),
        ("clip", {"world_size": 4, "rank": 3}, ["3 and 4", "init_process_group"]),
        ("clip", {"world_size": 2, "distill": True, "gather_with_grad": False}, ["--gather-with"]),
    ],
)
def test_arguments_that_do_not_fit_raise(
    loss: str, changes: dict[str, Any], words: list[str]
) -> None:
    install(loss)
    with pytest.raises(ValueError, match=r".+") as error:
        open_clip.create_loss(_arguments(**{"rank": 0, "world_size": 1, **changes}))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("loss", "options", "kind", "words"),
    [
        ("cyclops", {}, ValueError, ["clip, cyclip, siglip", "'cyclops'"]),
        ("cyclip", {"group": "world"}, ValueError, ["group", "open_clip's ranks"]),
        ("cyclip", {"statistics": True}, ValueError, ["statistics", "adds up"]),
        ("clip", {"in_modal": 0.5}, TypeError, ["'clip'", "in_modal", "0.5"]),
        ("clip", {"exchange": "rings"}, ValueError, ["exchange", "'rings'"]),
    ],
)
def test_options_that_no_loss_accepts_raise(
    loss: str, options: dict[str, Any], kind: type[Exception], words: list[str]
) -> None:
    before = open_clip.factory.ClipLoss
    with pytest.raises(kind) as error:
        install(loss, **options)
    for word in words:
        assert word in str(error.value)
    assert open_clip.factory.ClipLoss is before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--loss", "clip"], "after --"), (["--loss", "clip", "--margin", "1", "--"], "no option")],
)
def test_command_line_names_the_mistake(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_help_lists_every_option_of_the_losses() -> None:
    text = build_parser().format_help()
    for option in "--loss", "--in_modal", "--hinge_margin", "--reduction", "--exchange":
        assert option in text
