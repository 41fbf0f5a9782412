"""The built-in datasets: splits that do not leak, superclasses, the same data every time."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cyclip_ext.data import (
    DatasetSplits,
    MissingData,
    SkipReport,
    debian,
    emoji,
    emoji_available,
    load_emoji,
    load_shapes,
)

from .files import encode, halves, jpeg

needs_emoji = pytest.mark.skipif(
    not emoji_available(), reason="the extra `demo` is not installed: no emoji images"
)
SHAPES = load_shapes(16)
EVALUATION = {
    "in_domain",
    "validation",
    "shifted",
    "heldout_in_domain",
    "heldout_validation",
    "heldout_shifted",
}


@pytest.fixture(scope="module")
def emoji_data() -> DatasetSplits:
    return load_emoji(16)


@pytest.fixture(params=["shapes", pytest.param("emoji", marks=needs_emoji)])
def data(request: pytest.FixtureRequest) -> DatasetSplits:
    if request.param == "shapes":
        return SHAPES
    loaded: DatasetSplits = request.getfixturevalue("emoji_data")
    return loaded


def test_captions_labels_and_images_belong_together(data: DatasetSplits) -> None:
    assert set(data.evaluation) == EVALUATION
    for dataset in data.evaluation.values():
        assert len(dataset) == len(dataset.labels) == len(dataset.domains) > 0
        assert dataset.images.shape == (len(dataset), 4, 16, 16)
        for i in range(0, len(dataset), max(1, len(dataset) // 50)):
            assert dataset.captions[i][0] == dataset.class_names[dataset.labels[i]]
        assert all(all(captions) for captions in dataset.captions)
        assert dataset[0].image.mode == "RGB"
    assert data.name in data.describe()


def test_held_out_classes_never_train(data: DatasetSplits) -> None:
    trained = {captions[0] for captions in data.train.captions}
    for name, dataset in data.evaluation.items():
        seen = {captions[0] for captions in dataset.captions}
        if name.startswith("heldout"):
            assert not seen & trained
            assert not set(dataset.class_names) & trained
        else:
            assert set(dataset.class_names) >= seen


def test_no_image_is_in_training_and_evaluation(data: DatasetSplits) -> None:
    def contents(images: torch.Tensor, captions: tuple[tuple[str, ...], ...]) -> set[object]:
        return {(i.numpy().tobytes(), c[0]) for i, c in zip(images, captions, strict=True)}

    trained = contents(data.train.images, data.train.captions)
    for dataset in data.evaluation.values():
        assert not trained & contents(dataset.images, dataset.captions)


def test_domains_are_disjoint(data: DatasetSplits) -> None:
    names = {name: set(p.domain_names) for name, p in data.evaluation.items()}
    assert names["in_domain"] == names["heldout_in_domain"]
    assert names["validation"] == names["heldout_validation"]
    assert names["shifted"] == names["heldout_shifted"]
    assert not names["in_domain"] & names["validation"]
    assert not names["in_domain"] & names["shifted"]
    assert not names["validation"] & names["shifted"]


def test_every_class_has_its_superclasses(data: DatasetSplits) -> None:
    dataset = data.evaluation["shifted"]
    assert list(dataset.levels) == ["subgroup", "group"]
    for level in dataset.levels.values():
        assert level.of_class.shape == (len(dataset.class_names),)
        assert set(level.of_class.tolist()) == set(range(len(level.names)))


def test_shapes_are_deterministic_and_depend_on_the_seed() -> None:
    one, two, other = SHAPES, load_shapes(16), load_shapes(16, seed=1)
    assert torch.equal(one.train.images, two.train.images)
    assert not torch.equal(one.train.images, other.train.images)
    assert one.train.captions == other.train.captions
    assert one.train[0].image.size == (16, 16)


@needs_emoji
def test_emoji_counts(emoji_data: DatasetSplits) -> None:
    data = emoji_data
    shifted = data.evaluation["shifted"]
    assert {name: len(level.names) for name, level in shifted.levels.items()} == {
        "subgroup": 99,
        "group": 9,
    }
    classes = len(shifted.class_names)
    assert 1_550 < classes < 1_650
    assert 3_000 < len(data.train) + len(data.evaluation["in_domain"]) < 3_300
    assert 7_000 < len(data.evaluation["shifted"]) + len(data.evaluation["validation"]) < 8_000
    held_out = len(data.evaluation["heldout_shifted"].class_names)
    assert 0.09 < held_out / (held_out + classes) < 0.15


@needs_emoji
def test_emoji_variants_stay_on_one_side() -> None:
    concepts = emoji.read_concepts()
    woman, man, person = (
        concepts[emoji.normalize_code(code)]
        for code in ("1F926-200D-2640-FE0F", "1F926-200D-2642-FE0F", "1F926")
    )
    assert woman.held_out == man.held_out == person.held_out
    scientist = {concepts[f"{p}-1f52c"].held_out for p in ("1f468", "1f469", "1f9d1")}
    assert len(scientist) == 1
    assert "woman facepalming" in woman.captions


def test_code_points_are_normalized() -> None:
    assert emoji.normalize_code("U+0023-U+FE0F-U+20E3") == "23-20e3"
    assert emoji.normalize_code("1f468-200d-1f692") == "1f468-1f692"
    assert emoji.normalize_code("00A9-FE0F") == "a9"


def test_placeholders_and_skin_tones_are_dropped(tmp_path: Path) -> None:
    for number, vendor in enumerate(emoji.VENDORS):
        folder = tmp_path / vendor
        folder.mkdir()
        (folder / "U+1F600.png").write_bytes(b"placeholder")
        (folder / "U+1F601.png").write_bytes(b"own drawing %d" % number)
        (folder / "U+1F44B-U+1F3FD.png").write_bytes(b"hand %d" % number)
    # Two codes of one vendor may share a drawing by the vendor's choice; that is not a placeholder.
    (tmp_path / "FB" / "U+1F9DC.png").write_bytes(b"merperson")
    (tmp_path / "FB" / "U+1F9DC-U+200D-U+2640.png").write_bytes(b"merperson")
    skipped = SkipReport()
    usable = emoji.usable_images(tmp_path, skipped)
    assert [(vendor, code) for vendor, code, _ in usable if vendor != "FB"] == [
        (vendor, "1f601") for vendor in emoji.VENDORS if vendor != "FB"
    ]
    facebook = {code for vendor, code, _ in usable if vendor == "FB"}
    assert facebook == {"1f601", "1f9dc", "1f9dc-2640"}
    assert skipped.counts == {"skin-tone variant": 7, "placeholder shared by vendors": 7}


def test_missing_packages_are_named_with_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingData, match="apt install openclipart-png openclipart-svg tuxpaint"):
        debian.load_debian(root=tmp_path)
    with pytest.raises(MissingData, match="apt install dataset-fashion-mnist"):
        debian.load_fashion_mnist("test", tmp_path)
    monkeypatch.setattr(emoji.importlib.util, "find_spec", lambda name: None)
    assert not emoji_available()
    with pytest.raises(MissingData, match=r"pip install 'cyclip_ext\[demo\]'"):
        load_emoji()


SVG = """<svg xmlns="http://www.w3.org/2000/svg"><metadata>
<rdf:RDF xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><cc:Work>
<dc:title>{title}</dc:title><dc:description>{description}</dc:description>
<dc:subject><rdf:Bag><rdf:li></rdf:li><rdf:li>hash</rdf:li><rdf:li>big_cat</rdf:li>
<rdf:li>Jane Doe</rdf:li><rdf:li>animal</rdf:li></rdf:Bag></dc:subject>
<dc:creator><cc:Agent><dc:title>Jane Doe</dc:title></cc:Agent></dc:creator>
</cc:Work></rdf:RDF></metadata><path d="M0"/></svg>"""


def test_openclipart_captions(tmp_path: Path) -> None:
    (tmp_path / "svg" / "sub").mkdir(parents=True)
    (tmp_path / "png" / "sub").mkdir(parents=True)

    def add(name: str, title: str, description: str = "") -> None:
        (tmp_path / f"svg/{name}.svg").write_text(SVG.format(title=title, description=description))

    add("tiger", "Striped_Tiger", "A tiger  asleep.")
    add("sub/jigsaw_piece_01", "Clipart by Nicu Buculei - head1")
    for i in range(8):
        add(f"star_{i}", "gramastar")  # a collection: its files have nothing but numbers
    (tmp_path / "svg/broken.svg").write_text("<svg><unclosed>")
    (tmp_path / "svg/link.svg").symlink_to("tiger.svg")
    skipped = SkipReport()
    found = {path.stem: captions for path, captions in debian.read_openclipart(tmp_path, skipped)}
    assert found == {
        "tiger": ("Striped Tiger", "Striped Tiger, big cat, animal", "A tiger asleep."),
        "jigsaw_piece_01": ("jigsaw piece", "jigsaw piece, big cat, animal"),
    }
    assert skipped.counts == {
        "one caption for many drawings": 8,
        "broken metadata": 1,
        "link to another drawing": 1,
    }


def test_stamps(tmp_path: Path) -> None:
    for name in ("frog", "frog_mirror", "mute", "latin"):
        (tmp_path / f"{name}.png").write_bytes(encode(halves()))
    (tmp_path / "frog.txt").write_text("A frog.\nde.utf8=Ein Frosch.\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    skipped = SkipReport()
    found = [(path.stem, captions) for path, captions in debian.read_stamps(tmp_path, skipped)]
    assert found == [("frog", ("A frog.",)), ("frog_mirror", ("A frog.",))]
    assert skipped.counts == {"empty caption": 1, "bad encoding": 1}


def test_fashion_mnist(tmp_path: Path) -> None:
    folder = tmp_path / "datasets" / "fashion-mnist"
    folder.mkdir(parents=True)
    grey = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
    header = bytes([0, 0, 8, 3]) + np.array([3, 28, 28], ">u4").tobytes()
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + grey.tobytes()))
    labels = bytes([0, 0, 8, 1]) + np.array([3], ">u4").tobytes() + bytes([9, 0, 8])
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    dataset = debian.load_fashion_mnist("test", tmp_path)
    assert [captions[0] for captions in dataset.captions] == ["ankle boot", "t-shirt", "bag"]
    assert torch.equal(dataset.images[:, 1], torch.from_numpy(grey))
    assert dataset.class_names[dataset.labels[2]] == "bag"
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'val'"):
        debian.load_fashion_mnist("val", tmp_path)


@needs_emoji
def test_debian_joins_the_emoji(
    emoji_data: DatasetSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in debian.PACKAGES.values():
        (tmp_path / folder).mkdir(parents=True)
    stamps = tmp_path / "tuxpaint" / "stamps"
    for name in ("one", "two"):  # a copy: the second is a false negative of the first
        (stamps / f"{name}.png").write_bytes(encode(halves()))
        (stamps / f"{name}.txt").write_text("Two colours.")
    (stamps / "bad.png").write_bytes(jpeg()[:300])
    (stamps / "bad.txt").write_text("Broken.")
    plain = replace(emoji_data, skipped=SkipReport())
    monkeypatch.setattr(debian, "load_emoji", lambda size: plain)
    monkeypatch.setattr(
        debian, "load_fashion_mnist", lambda split, root: plain.evaluation["in_domain"]
    )
    data = debian.load_debian(16, tmp_path)
    assert len(data.train) == len(plain.train) + 1
    assert data.train.captions[-1] == ("Two colours.",)
    assert set(data.evaluation) == EVALUATION | {"fashion_mnist"}
    assert data.skipped.counts["copy of another image"] == 1
    assert data.skipped.counts["truncated"] == 1
