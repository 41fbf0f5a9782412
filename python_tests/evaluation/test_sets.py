"""Sets: what they refuse, and what becomes of labels and captions when pictures cannot be read."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cyclip_ext.data import BadRecord
from cyclip_ext.evaluation.embed_sets import embed_set
from cyclip_ext.evaluation.sets import CaptionedImages, ClassifiedImages, Quadruples


class Greys:
    """Pictures of one grey each; None cannot be read."""

    def __init__(self, greys: Sequence[int | None], mode: str = "RGB") -> None:
        self.greys = greys
        self.mode = mode

    def __len__(self) -> int:
        return len(self.greys)

    def __getitem__(self, index: int) -> Image.Image:
        grey = self.greys[index]
        if grey is None:
            raise BadRecord("truncated", f"{index}.png")
        return Image.new("RGB", (2, 2), (grey, grey, 100)).convert(self.mode)


class Channels(nn.Module):
    """Embeds a picture by the mean of its channels; keeps the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def encode_image(self, image: Tensor) -> Tensor:
        self.batches.append(len(image))
        return image.mean((2, 3))

    def encode_text(self, text: Tensor) -> Tensor:
        raise NotImplementedError


def transform(picture: Image.Image) -> Tensor:
    red, green, blue = picture.getpixel((0, 0))  # type: ignore[misc]
    return torch.tensor([red, green, blue]).float()[:, None, None].expand(3, 2, 2)


def direction(grey: int) -> Tensor:
    return nn.functional.normalize(torch.tensor([grey, grey, 100.0]), dim=0)


def test_labels_follow_the_pictures_that_can_be_read() -> None:
    """Wrong: the labels after an unreadable picture would belong to its neighbours."""
    model = Channels().train()
    labels = torch.tensor([4, 3, 2, 1, 0])
    data = ClassifiedImages("greys", Greys([10, None, 30, None, 50]), labels, tuple("abcde"))
    found = embed_set(model, data, transform, batch_size=2)
    assert found.data.labels.tolist() == [4, 2, 0]
    assert found.kept.tolist() == [0, 2, 4]
    expected = torch.stack([direction(grey) for grey in (10, 30, 50)])
    torch.testing.assert_close(found.image_features, expected)
    assert found.data.skipped.to_dict() == {
        "truncated": {"count": 2, "examples": ["1.png", "3.png"]}
    }
    assert data.skipped.total == 0  # the set that was given is as before
    assert model.batches == [1, 1, 1]
    assert model.training
    assert len(found.data) == 3
    assert found.data.images[1].getpixel((0, 0)) == (30, 30, 100)


def test_batches_change_nothing() -> None:
    """Wrong: rows would be lost, doubled or out of order where a batch ends."""
    data = ClassifiedImages("greys", Greys(range(7)), torch.arange(7), tuple("abcdefg"))
    expected = torch.stack([direction(grey) for grey in range(7)])
    for batch_size, batches in ((1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (100, [7])):
        model = Channels()
        found = embed_set(model, data, transform, batch_size=batch_size)
        torch.testing.assert_close(found.image_features, expected)
        assert model.batches == batches
    with pytest.raises(ValueError, match="batch_size"):
        embed_set(Channels(), data, transform, batch_size=0)


def test_captions_follow_the_pictures() -> None:
    """Wrong: owners of captions would count pictures that were skipped."""
    captions = (("a", "b"), ("c",), ("d", "e", "f"))
    data = CaptionedImages("greys", Greys([1, None, 3]), captions)
    assert data.text_owners.tolist() == [0, 0, 1, 2, 2, 2]
    found = embed_set(Channels(), data, transform).data
    assert found.texts == ["a", "b", "d", "e", "f"]
    assert found.text_owners.tolist() == [0, 0, 1, 1, 1]


def test_a_quadruple_is_dropped_whole() -> None:
    """Wrong: a first picture would be compared with another quadruple's second one."""
    captions = (("a", "b"), ("c", "d"), ("e", "f"), ("g", "h"))
    data = Quadruples(
        "pairs", Greys([1, None, 3, 4]), Greys([5, 6, 7, None]), captions, ("x", "y", "x", "")
    )
    found = embed_set(Channels(), data, transform, batch_size=3)
    assert found.image_features.shape == (2, 2, 3)
    expected = [[direction(1), direction(5)], [direction(3), direction(7)]]
    torch.testing.assert_close(
        found.image_features, torch.stack([torch.stack(pair) for pair in expected])
    )
    assert found.data.captions == (("a", "b"), ("e", "f"))
    assert found.data.tags == ("x", "x")
    assert found.skipped.total == 2


def test_nothing_to_read_is_an_error_with_the_reasons() -> None:
    """Wrong: an empty set would be scored, or torch would speak of an empty list of tensors."""
    data = ClassifiedImages("greys", Greys([None, None]), torch.tensor([0, 0]), ("a",))
    with pytest.raises(ValueError, match="no picture of greys can be read: 2 skipped: 2 truncated"):
        embed_set(Channels(), data, transform)
    empty = ClassifiedImages("none", Greys([]), torch.empty(0, dtype=torch.int64), ("a",))
    with pytest.raises(ValueError, match="no picture of none"):
        embed_set(Channels(), empty, transform)


def test_other_errors_pass_and_threads_end() -> None:
    """Wrong: a bug in a transform would count as a damaged picture, or hang."""
    data = ClassifiedImages("greys", Greys([1, 2], "L"), torch.tensor([0, 0]), ("a",))
    with pytest.raises(ValueError, match="picture 0 must be an RGB PIL image, got L"):
        embed_set(Channels(), data, transform)
    before = threading.active_count()

    def broken(picture: Image.Image) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        embed_set(Channels(), CaptionedImages("one", Greys([1]), (("a",),)), broken)
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("labels", "names", "templates", "message"),
    [
        ([0, 2], ("a", "b"), ("{}",), "labels must be in 0 .. 1, .* got 0 .. 2"),
        ([0, -1], ("a", "b"), ("{}",), "got -1 .. 0"),
        ([0], ("a",), ("{}",), "labels has 1 entries for 2 pictures"),
        ([0.0, 1.0], ("a", "b"), ("{}",), "must be int64"),
        ([0, 0], ("a", " "), ("{}",), r"class_names\[1\]"),
        ([0, 0], ("a",), (), "templates is empty"),
        ([0, 0], ("a",), ("a photo",), 'exactly one "{}"'),
        ([0, 0], ("a",), ("a {} of {}",), 'exactly one "{}"'),
        ([0, 0], ("a",), ("a {c}",), 'exactly one "{}"'),
        ([0, 0], ("a",), ("a } {}",), 'exactly one "{}"'),
    ],
)
def test_classified_images_refuse(
    labels: list[float], names: tuple[str, ...], templates: tuple[str, ...], message: str
) -> None:
    """Wrong: the mistake would show as a wrong number, or as an index error deep in a metric."""
    with pytest.raises(ValueError, match=message):
        ClassifiedImages("greys", Greys([1, 2]), torch.tensor(labels), names, templates)


def test_texts_that_are_not_utf8_are_refused() -> None:
    """Wrong: tokenizers and reports fail on the bytes of such a folder's name, hours later."""
    with pytest.raises(ValueError, match=r"class_names\[0\] must be a text, in UTF-8.*udcff"):
        ClassifiedImages("greys", Greys([1]), torch.tensor([0]), ("\udcffcat",))
    with pytest.raises(ValueError, match=r"captions\[0\]"):
        CaptionedImages("greys", Greys([1]), (("\udcffcat",),))


def test_captions_and_quadruples_refuse() -> None:
    """Wrong: a text in place of a tuple would be taken for captions of one letter."""
    with pytest.raises(ValueError, match="captions has 1 entries for 2"):
        CaptionedImages("greys", Greys([1, 2]), (("a",),))
    for entry in ((), ("",), "text", ("a", " ")):
        with pytest.raises(ValueError, match=r"captions\[0\]"):
            CaptionedImages("greys", Greys([1]), (entry,))  # type: ignore[arg-type]
    one = Greys([1])
    with pytest.raises(ValueError, match="second_images has 2"):
        Quadruples("q", one, Greys([1, 2]), (("a", "b"),), ("",))
    with pytest.raises(ValueError, match="tags has 0"):
        Quadruples("q", one, one, (("a", "b"),), ())
    for pair in (("a",), "ab", ("a", "")):
        with pytest.raises(ValueError, match=r"captions\[0\] must be two texts"):
            Quadruples("q", one, one, (pair,), ("",))  # type: ignore[arg-type]
