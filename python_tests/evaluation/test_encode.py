"""Encoding: labels and captions follow the images that can be read, and the others are counted."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize
from training.parts import shapes

from cyclip_ext.data import BadRecord, ImageDataset, InMemoryDataset, Sample, SkipReport
from cyclip_ext.data.captions import MAX_WORD
from cyclip_ext.evaluation import Encoder, Prompts, Quadruples, encode
from cyclip_ext.evaluation.embeddings import NotFiniteError
from cyclip_ext.evaluation.encoder import choose_device

from .tiny import tiny_encoder

DIM = 4  # of the embeddings


class Greys(ImageDataset):
    """Images of a single grey each; None is an image that cannot be read."""

    def __init__(
        self,
        greys: Sequence[int | None],
        *,
        captions: Sequence[tuple[str, ...]] | None = None,
        labels: Sequence[int] | None = None,
        class_names: tuple[str, ...] = (),
        mode: str = "RGB",
    ) -> None:
        self.name = "greys"
        self.skipped = SkipReport()
        self.greys = greys
        self.captions = captions or [()] * len(greys)
        self.labels = None if labels is None else torch.tensor(labels)
        self.class_names = class_names
        self.mode = mode

    def __len__(self) -> int:
        return len(self.greys)

    def __getitem__(self, index: int) -> Sample:
        grey = self.greys[index]
        if grey is None:
            raise BadRecord("truncated", f"{index}.png")
        image = Image.new("RGB", (2, 2), (grey, grey, 100)).convert(self.mode)
        return Sample(image, f"{index}.png", self.captions[index])

    def fingerprint(self) -> str:
        return "greys"


class Towers(nn.Module):
    """Embeds an image by its colour and a text by its letters; records batches and lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.batches: list[int] = []
        self.texts: list[int] = []

    def encode_image(self, image: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.batches.append(len(image))
        features = nn.functional.pad(image.mean((2, 3)), (0, DIM - 3))
        return self.dropout(features)

    def encode_text(self, text: Tensor) -> Tensor:
        return self.dropout(text.float())


@pytest.fixture
def model() -> Towers:
    return Towers().train()


def make_encoder(model: Towers, batch_size: int = 2, **options: object) -> Encoder:
    def tokenizer(texts: list[str]) -> Tensor:
        model.texts += map(len, texts)
        return torch.tensor([[sum(map(ord, text)) % 7, len(text), 1, 1] for text in texts])

    def transform(image: Image.Image) -> Tensor:
        colour = image.getpixel((0, 0))
        return torch.tensor(colour).float()[:, None, None].expand(3, 2, 2)

    cpu = torch.device("cpu")
    options = {"transform": transform, "batch_size": batch_size, **options}
    return Encoder(model, tokenizer, 2, cpu, **options)


def directions(*greys: int) -> Tensor:
    return normalize(torch.tensor([[grey, grey, 100.0, 0.0] for grey in greys]), dim=-1)


def test_labels_follow_the_images_that_can_be_read(model: Towers) -> None:
    data = Greys([10, None, 30, None, 50], labels=[4, 3, 2, 1, 0], class_names=tuple("abcde"))
    data.skipped.add("empty label", "table.csv:7")
    found = encode(data, make_encoder(model))
    assert found.labels.tolist() == [4, 2, 0]
    torch.testing.assert_close(found.image_features, directions(10, 30, 50))
    assert found.image_ids == ("0.png", "2.png", "4.png")
    assert found.skipped.to_dict() == {
        "empty label": {"count": 1, "examples": ["table.csv:7"]},
        "truncated": {"count": 2, "examples": ["1.png", "3.png"]},
    }
    assert (found.used, found.total) == (3, 6)
    assert found.load_image is not None
    assert [found.load_image(row).getpixel((0, 0))[0] for row in range(3)] == [10, 30, 50]
    assert data.skipped.total == 1  # the dataset is as before
    assert model.batches == [2, 1]
    assert model.training


def test_labels_of_samples_are_used_if_the_dataset_has_none(model: Towers) -> None:
    class Labelled(Greys):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            return Sample(sample.image, sample.key, label=index)

    data = Labelled([1, None, 3], class_names=tuple("abc"))
    found = encode(data, make_encoder(model))
    assert found.labels.tolist() == [0, 2]


def test_batches_do_not_change_the_result() -> None:
    data = Greys(range(7))
    for batch_size, batches in ((1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (100, [7])):
        model = Towers()
        found = encode(data, make_encoder(model, batch_size))
        torch.testing.assert_close(found.image_features, directions(*range(7)))
        assert model.batches == batches


def test_captions_follow_the_images(model: Towers) -> None:
    data = Greys([1, None, 3], captions=(("a", "b"), ("c",), ("d", "ee", "f")))
    encoder = make_encoder(model)
    found = encode(data, encoder)
    assert found.text_owners.tolist() == [0, 0, 1, 1, 1]
    assert found.texts == ("a", "b", "d", "ee", "f")
    assert torch.equal(found.text_features, encoder.texts(list(found.texts)))
    assert encode(data, encoder, captions=False).text_features is None


def test_dataset_with_labels_and_captions_has_both(model: Towers) -> None:
    data = Greys([1, 2], captions=[("a",), ("b",)], labels=[1, 0], class_names=("x", "y"))
    found = encode(data, make_encoder(model))
    assert found.classification() is not None
    assert found.captions() is not None


def test_quadruple_is_skipped_as_a_whole(model: Towers) -> None:
    """A first image must not be compared with the second one of another quadruple."""
    images = Greys([1, 5, None, 6, 3, 7, 4, None])
    captions = (("a", "b"), ("c", "d"), ("e", "ff"), ("g", "h"))
    data = Quadruples(images, captions, ("x", "y", "x", ""))
    encoder = make_encoder(model, 3)
    found = encode(data, encoder)
    torch.testing.assert_close(found.image_features, directions(1, 5, 3, 7))
    assert torch.equal(found.text_features, encoder.texts(["a", "b", "e", "ff"]))
    assert found.quadruple_tags == ("x", "x")
    assert (found.used, found.total, found.skipped.total) == (2, 4, 2)
    with pytest.raises(ValueError, match="a quadruple has 2 images and 2 captions"):
        Quadruples(images, captions[:3], ("", "", ""))


def test_nothing_to_read_is_an_error_with_the_reasons(model: Towers) -> None:
    for data, message in (
        (Greys([None, None]), "no image of greys can be read: 2 skipped: 2 truncated"),
        (Greys([]), "no image of greys can be read: none skipped"),
    ):
        with pytest.raises(ValueError, match=message):
            encode(data, make_encoder(model))


def test_other_errors_are_not_counted_and_threads_end(model: Towers) -> None:
    with pytest.raises(ValueError, match=r"image 0\.png must be an RGB PIL image, got L"):
        encode(Greys([1, 2], mode="L"), make_encoder(model))
    before = threading.active_count()

    def broken(image: Image.Image) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        encode(Greys([1]), make_encoder(model, transform=broken))
    assert threading.active_count() == before


def test_long_words_are_cut_and_reported_once(model: Towers) -> None:
    """A byte-pair tokenizer takes two minutes for a word of 64,000 letters."""
    shown: list[str] = []
    captions = [("a" * 64_000,), ("b" * MAX_WORD,), ("c" * 600,)]
    encode(Greys([1, 2, 3], captions=captions), make_encoder(model, notify=shown.append))
    assert model.texts == [MAX_WORD] * 3
    assert shown == ["2 texts cut before tokenizing: too long, or with too long a word"]


def test_prompts_replace_names_and_templates(model: Towers) -> None:
    data = Greys([1, 2], labels=[1, 0], class_names=("red", "blue"))
    encoder = make_encoder(model)
    names = (("crimson", "scarlet"), ("navy",))
    found = encode(data, encoder, prompts=Prompts(names, templates=("a {} wall", "{}")))
    assert found.class_names == ("crimson", "navy")
    texts = ["a crimson wall", "crimson", "a scarlet wall", "scarlet"]
    expected = normalize(encoder.texts(texts).mean(0), dim=0)
    torch.testing.assert_close(found.class_features[0], expected)
    with pytest.raises(ValueError, match="1 class names for the 2 classes of greys"):
        encode(data, encoder, prompts=Prompts(names[:1]))


def test_captions_in_memory_belong_to_classes() -> None:
    """A caption of two classes belongs to neither, or retrieval would count right answers wrong."""
    images = torch.zeros(3, 4, 16, 16, dtype=torch.uint8)
    captions = (("cat", "pet"), ("dog", "pet"), ("cat", "pet"))
    data = InMemoryDataset(
        "pets", images, captions, labels=torch.tensor([0, 1, 0]), class_names=("cat", "dog")
    )
    encoder = tiny_encoder()
    found = encode(data, encoder)
    assert found.text_labels.tolist() == [0, 1]
    assert found.texts == ("cat", "dog")
    assert torch.equal(found.text_features, encoder.texts(["cat", "dog"]))
    expected = normalize(encoder.texts(["cat", "pet"]).mean(0), dim=0)
    torch.testing.assert_close(found.synonym_features[0], expected)


def test_images_in_memory_take_the_transform_of_another_trainer() -> None:
    data = shapes().evaluation["validation"]
    encoder = tiny_encoder()
    own = encode(data, encoder, captions=False)

    def black(image: Image.Image) -> Tensor:
        return torch.zeros(3, 16, 16)

    other = encode(
        data, Encoder(encoder.model, encoder.tokenizer, 16, encoder.device, transform=black)
    )
    assert len(own.image_features.unique(dim=0)) > 1
    assert len(other.image_features.unique(dim=0)) == 1
    assert torch.equal(own.labels, data.labels)


def test_unknown_device_is_rejected() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    for name in ("cuda:77", "tpu9"):
        with pytest.raises(ValueError, match=f"--device {name} cannot be used"):
            choose_device(name)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_models_that_diverged_are_named(
    model: Towers, tower: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        model, f"encode_{tower}", lambda batch: torch.full((len(batch), 4), torch.nan)
    )
    with pytest.raises(NotFiniteError, match=f"{tower} embeddings .* earlier checkpoint"):
        encode(Greys([1, 2], captions=[("a",), ("b",)]), make_encoder(model))
