"""The arrays of a dataset and their .npz file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cyclip_ext.data import SkipReport, Superclasses
from cyclip_ext.evaluation import Embeddings, load_embeddings, save_embeddings


def unit(rows: int, width: int = 4, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(rows, width, generator=generator), dim=1)


@pytest.fixture
def complete() -> Embeddings:
    skipped = SkipReport()
    skipped.add("truncated", "ü.jpg")
    return Embeddings(
        unit(4),
        name="a/ü",
        image_ids=("a", "ünï 猫", "c", "d"),
        text_features=unit(5, seed=1),
        text_owners=torch.tensor([0, 0, 1, 2, 2]),
        labels=torch.tensor([1, 0, 1, 2]),
        class_features=unit(3, seed=2),
        class_names=("cat", "dög", "car"),
        synonym_features=unit(3, seed=3),
        domains=torch.tensor([0, 0, 1, 1]),
        domain_names=("photo", "sketch"),
        levels={"group": Superclasses.build(("animal", "animal", "thing"))},
        logit_scale=100.0,
        skipped=skipped,
        total=5,
    )


def test_saved_embeddings_load_to_the_bit(tmp_path: Path, complete: Embeddings) -> None:
    save_embeddings(tmp_path / "file", complete)  # numpy itself would add .npz to the name
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    loaded = load_embeddings(tmp_path / "file")
    for name, value in vars(complete).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(loaded, name), value)
        elif name == "skipped":
            assert loaded.skipped.to_dict() == value.to_dict()
        elif name != "levels":
            assert getattr(loaded, name) == value
    assert loaded.levels["group"].names == ("animal", "thing")
    assert loaded.levels["group"].of_class.tolist() == [0, 0, 1]
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode  # readable


def test_only_image_features_are_required(tmp_path: Path) -> None:
    least = tmp_path / "least.npz"
    np.savez(least, image_features=unit(2).numpy())
    loaded = load_embeddings(least)
    assert (loaded.name, loaded.used, loaded.total, loaded.classes) == ("least", 2, 2, ())
    assert loaded.classification() is loaded.captions() is loaded.pairs() is None


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.longdouble, ">f4"])
def test_features_of_any_dtype_and_norm_are_normalized(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, image_features=np.array([[300, 400], [0, -2]], dtype=kind))
    features = load_embeddings(path).image_features
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, torch.tensor([[0.6, 0.8], [0, -1]]))


def test_tiny_and_huge_rows_are_normalized() -> None:
    features = Embeddings(torch.tensor([[1e-30, 0], [0, 1e30]])).image_features
    assert torch.equal(features, torch.eye(2))
    extreme = torch.tensor([[3e-200, 4e-200], [0, 1e200]], dtype=torch.float64)
    torch.testing.assert_close(
        Embeddings(extreme).image_features, torch.tensor([[0.6, 0.8], [0, 1]])
    )


def test_owners_default_to_one_caption_per_image() -> None:
    owners = Embeddings(unit(3), text_features=unit(3, seed=1)).text_owners
    assert owners.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="5 rows for 3 images: text_owners must give"):
        Embeddings(unit(3), text_features=unit(5))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image_features": None}, "the arrays none; image_features is required"),
        ({"label": [0]}, "the arrays image_features, label; "),
        ({"image_features": np.ones((3, 4), dtype=int)}, "image_features must be floats"),
        ({"image_features": np.ones(3)}, "of 2 dimension"),
        ({"image_features": np.ones((0, 4))}, r"neither of them 0, got .* \[0, 4\]"),
        ({"image_features": [[1.0, np.nan], [1, 1]]}, "1 of 2 rows; remove these rows, or compute"),
        ({"image_features": [[0.0, 0], [1, 1]]}, "image_features has 1 of 2 rows of zeros"),
        (
            {"text_features": [[1.0, np.inf], [1, 1]]},
            "text_features must be finite, got NaN or inf",
        ),
        ({"class_features": [[1.0, np.nan]]}, "class_features must be finite"),
        ({"synonym_features": [[1.0, -np.inf]]}, "synonym_features must be finite"),
        ({"text_features": unit(2, 5)}, "width of image_features, 2, got 5"),
        ({"image_ids": ["a"]}, "image_ids must have one entry per image, got 1"),
        ({"image_ids": [1, 2]}, "image_ids must be texts"),
        ({"text_owners": [0]}, "text_owners without text_features"),
        ({"text_features": unit(2, 2), "text_owners": [0, 2]}, r"text_owners must be in 0 .. 1"),
        ({"text_features": unit(2, 2), "text_owners": [0.0, 1]}, "text_owners must be integers"),
        ({"labels": [0, 1]}, "number of classes is unknown"),
        ({"labels": [0, 1], "class_names": ["a"]}, "labels must be in 0 .. 0"),
        ({"labels": [0], "class_names": ["a"]}, r"labels must be \[2\]"),
        (
            {"class_features": unit(2, 2), "class_names": ["a"]},
            "all arrays of classes must have one",
        ),
        ({"logit_scale": np.float32(0)}, "logit_scale must be above 0"),
        ({"logit_scale": [1.0]}, "logit_scale must be floats of 0"),
        ({"domains": [0, 1], "domain_names": ["a"]}, "domains must be"),
        ({"domain_names": ["a", "a"]}, "domain_names must differ"),
        ({"levels/group": [1, 2]}, "levels/group must be texts"),
        ({"total": 3}, "total is 3, but 2 records are used and 0"),
        ({"skipped": "{"}, "not a report of skipped records"),
        ({"quadruple_tags": ["a"]}, "got 2 and 0"),
        ({"text_features": unit(2, 2), "text_labels": [0, 1]}, "text_labels without labels"),
        (
            {"text_features": unit(2, 2), "text_labels": [0, 1], "text_owners": [0, 1]},
            "exclude each other",
        ),
        ({"image_features": np.array([[None, {}]])}, "image_features holds Python objects"),
    ],
)
def test_wrong_arrays_are_named(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = tmp_path / "set.npz"
    given = {"image_features": unit(2, 2)} | arrays
    np.savez(path, **{name: np.asarray(a) for name, a in given.items() if a is not None})
    with pytest.raises(ValueError, match=message) as error:
        load_embeddings(path)
    assert str(path) in str(error.value)


def test_damaged_files_are_rejected(tmp_path: Path, complete: Embeddings) -> None:
    path = tmp_path / "set.npz"
    save_embeddings(path, complete)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(complete.image_features.numpy().tobytes()) + 5] ^= 0xFF
    for content in (whole[: len(whole) // 2], bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"set\.npz is damaged or incomplete .*; expected is"):
            load_embeddings(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_embeddings(tmp_path / "nowhere.npz")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "is empty"),
        (b"text", "not a .npz file"),
        (b"PAR1....", "a Parquet file"),
        (b"\x80\x04", "a pickle"),
        (b"\x93NUMPY\x01", "a .npy file, which holds one array without a name"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "set.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=found) as error:
        load_embeddings(path)
    assert "numpy.savez(path, image_features=" in str(error.value)
    with pytest.raises(ValueError, match="is not a regular file but a folder; expected"):
        load_embeddings(tmp_path)


def test_pairs_are_prompts_else_first_captions(complete: Embeddings) -> None:
    found = complete.pairs()
    assert torch.equal(found[1], complete.class_features[[1, 0, 1, 2]])
    texts = unit(5, seed=1)
    owners = torch.tensor([0, 0, 1, 3, 3])  # image 2 has no caption
    found = Embeddings(unit(4), text_features=texts, text_owners=owners).pairs()
    assert torch.equal(found[0], unit(4)[[0, 1, 3]])
    assert torch.equal(found[1], texts[[0, 2, 3]])
    assert found[2].tolist() == [0, 1, 3]
    of_classes = Embeddings(
        unit(3),
        labels=torch.tensor([1, 0, 1]),
        class_names=("a", "b"),
        text_features=unit(2, seed=1),
        text_labels=torch.tensor([1, 1]),
    )
    assert of_classes.pairs() is None  # one class alone has texts
    captions = of_classes.captions()
    assert captions[2].tolist() == [1, 0, 1]


def test_quadruples_have_neither_captions_nor_pairs_of_their_own() -> None:
    found = Embeddings(unit(4), text_features=unit(4, seed=1), quadruple_tags=("", "x"))
    assert found.used == found.total == 2
    assert found.captions() is found.pairs() is None


def test_records_are_counted_or_rejected() -> None:
    skipped = SkipReport()
    skipped.add("truncated", "a.jpg", 2)
    assert Embeddings(unit(3), skipped=skipped).total == 5
    with pytest.raises(ValueError, match="count every record"):
        Embeddings(unit(3), skipped=skipped, total=6)


@pytest.mark.parametrize("of_class", [torch.zeros(2), torch.tensor([-1, 0]), torch.tensor([0, 2])])
def test_levels_are_indices_of_superclasses(of_class: torch.Tensor) -> None:
    levels = {"group": Superclasses(("a", "b"), of_class)}
    with pytest.raises(ValueError, match=r"levels/group must be (integers|in 0 \.\. 1)"):
        Embeddings(unit(2), class_names=("x", "y"), levels=levels)
