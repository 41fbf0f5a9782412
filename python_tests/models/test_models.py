"""Models by name: shapes, interface, padding, errors."""

import math

import pytest
import torch

from cyclip_ext.models import (
    ImageConfig,
    MiniCLIP,
    TextConfig,
    WordTokenizer,
    create_model,
    default_tokenizer,
    list_models,
    tokenizers,
)

IDS = [[22332, 46400, 44589, 39026], [0, 0, 0, 0], [22332, 46400, 44589, 14520]]


def tiny(**options: float) -> MiniCLIP:
    torch.manual_seed(0)
    return MiniCLIP(
        16,
        ImageConfig(image_size=16, widths=(4, 8)),
        TextConfig(context_length=6, vocab_size=32, width=8, heads=2, layers=1),
        init_logit_scale=options.pop("init_logit_scale", 1.0),
        **options,
    )


def test_encoders_and_forward() -> None:
    model = tiny().eval()
    images, texts = torch.randn(3, 3, 16, 16), torch.tensor([[5, 6, 0, 0, 0, 0]] * 3)
    assert model.encode_image(images).shape == model.encode_text(texts).shape == (3, 16)
    output = model(images, texts)
    assert set(output) == {"image_features", "text_features", "logit_scale"}
    torch.testing.assert_close(output["image_features"].norm(dim=1), torch.ones(3))
    torch.testing.assert_close(output["image_features"], model.encode_image(images, normalize=True))
    assert output["logit_scale"].item() == pytest.approx(math.e)
    model.output_dict = False
    assert len(model(images, texts)) == 3
    assert len(tiny(init_logit_bias=-10.0)(images, texts)) == 4


def test_text_features_do_not_depend_on_padding() -> None:
    model = tiny().eval()
    short, long = torch.tensor([[5, 6, 7, 0, 0, 0]]), torch.tensor([[5, 6, 7, 8, 9, 10]])
    alone = model.encode_text(short)
    beside = model.encode_text(torch.cat([long, short]))[1:]
    torch.testing.assert_close(alone, beside)
    for gradients in (True, False):  # torch has kernels of its own for inference
        with torch.set_grad_enabled(gradients):
            assert not model.encode_text(torch.zeros(2, 6, dtype=torch.long)).isnan().any()


@pytest.mark.usefixtures("open_clip")
def test_every_own_configuration_builds() -> None:
    assert "mini" in list_models()
    for name in list_models():
        created = create_model(name)
        created.model.eval()
        tokens = created.tokenizer(["a red circle", "two words"])
        size = created.image_size
        with torch.no_grad():
            images = created.model.encode_image(torch.randn(2, 3, size, size))
            texts = created.model.encode_text(tokens)
        assert images.shape == texts.shape, name
        assert created.model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))


@pytest.mark.usefixtures("open_clip")
def test_sigmoid_start() -> None:
    model = create_model("mini", sigmoid=True).model
    assert model.logit_bias.item() == -10
    assert model.logit_scale.item() == pytest.approx(math.log(10))


@pytest.mark.usefixtures("open_clip")
def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="'nonesuch' is unknown; this package has mini"):
        create_model("nonesuch")


def test_word_tokenizer_is_the_same_on_every_machine() -> None:
    """A checkpoint holds no vocabulary: ids must depend on nothing but the word."""
    tokenizer = WordTokenizer(4, 49408)
    tokens = tokenizer(["A red circle!", "", "a RED circle, small and round"])
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == IDS
    assert tokens.max() < 49408


def test_own_models_need_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError("open_clip is not installed")

    monkeypatch.setattr(tokenizers, "import_open_clip", missing)
    assert default_tokenizer() == "words"
    created = create_model("mini")
    assert created.tokenizer_name == "words"
    with pytest.raises(ImportError):
        create_model("mini", tokenizer="open_clip")


@pytest.mark.usefixtures("open_clip")
def test_tokenizer_of_new_models() -> None:
    assert create_model("mini").tokenizer_name == "open_clip"
    assert create_model("mini", tokenizer="words").tokenizer_name == "words"
    with pytest.raises(ValueError, match='mini-RN takes "open_clip"'):
        create_model("mini-RN", tokenizer="words")
    with pytest.raises(ValueError, match="tokenizer must be one of open_clip, words, got 'x'"):
        create_model("mini", tokenizer="x")  # type: ignore[arg-type]
