"""Embeddings in files, and the cache of a set's embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cyclip_ext.data import BadRecord, SkipReport
from cyclip_ext.evaluation.embed_sets import Embedded
from cyclip_ext.evaluation.feature_cache import FeatureCache, content_digest, weights_digest
from cyclip_ext.evaluation.features import Embeddings, load_embeddings, save_embeddings
from cyclip_ext.evaluation.sets import CaptionedImages, ClassifiedImages, Quadruples


def unit(rows: int, width: int = 4, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(rows, width, generator=generator), dim=1)


def complete() -> Embeddings:
    return Embeddings(
        unit(3),
        image_ids=("a", "ünï 猫", "c"),
        text_features=unit(5, seed=1),
        text_owners=torch.tensor([0, 0, 1, 2, 2]),
        labels=torch.tensor([1, 0, 1]),
        class_features=unit(2, seed=2),
        class_names=("cat", "dög"),
        logit_scale=100.0,
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """Wrong: an array would be lost, or come back as something else."""
    saved = complete()
    save_embeddings(tmp_path / "set", saved)  # numpy itself would add .npz to the name
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    loaded = load_embeddings(tmp_path / "set")
    for name, value in vars(saved).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(getattr(loaded, name), value, rtol=0, atol=1e-7)
        else:
            assert getattr(loaded, name) == value
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "set").stat().st_mode == (tmp_path / "plain").stat().st_mode  # readable
    least = tmp_path / "least.npz"
    save_embeddings(least, Embeddings(unit(1)))
    assert load_embeddings(least).text_features is None


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.longdouble, ">f4"])
def test_floats_of_any_size_and_length_come_out_unit_length(tmp_path: Path, kind: str) -> None:
    """Wrong: squares of float16 overflow, or big-endian bytes are read as they lie."""
    path = tmp_path / "set.npz"
    np.savez(path, image_features=np.array([[300, 400], [0, -2]], dtype=kind))
    features = load_embeddings(path).image_features
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, torch.tensor([[0.6, 0.8], [0, -1]]))


def test_tiny_and_huge_rows_are_normalized() -> None:
    """Wrong: lengths in float32 would be 0 or infinity."""
    features = Embeddings(torch.tensor([[1e-30, 0], [0, 1e30]])).image_features
    assert torch.equal(features, torch.eye(2))
    extreme = torch.tensor([[3e-200, 4e-200], [0, 1e200]], dtype=torch.float64)
    torch.testing.assert_close(
        Embeddings(extreme).image_features, torch.tensor([[0.6, 0.8], [0, 1]])
    )


def test_owners_may_be_left_out_for_pairs() -> None:
    """Wrong: captions one per picture would need owners, or several be guessed at."""
    owners = Embeddings(unit(3), text_features=unit(3, seed=1)).text_owners
    assert owners is not None
    assert owners.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="5 rows for 3 pictures: text_owners must say"):
        Embeddings(unit(3), text_features=unit(5))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "image_features must be there"),
        ({"image_features": unit(3), "label": [0]}, "the arrays image_features, label; "),
        ({"image_features": np.ones((3, 4), dtype=int)}, "image_features must be floats"),
        ({"image_features": np.ones(3)}, "of 2 dimension"),
        ({"image_features": np.ones((0, 4))}, r"neither of them 0, got .* \[0, 4\]"),
        ({"image_features": [[1.0, np.nan], [1, 1]]}, "image_features must be finite.* 1 of 2"),
        ({"image_features": [[0.0, 0], [1, 1]]}, "1 of 2 rows of zeros"),
        (
            {"image_features": unit(3), "text_features": unit(3, 5)},
            "rows of 5, image_features of 4",
        ),
        ({"image_features": unit(3), "image_ids": ["a"]}, "image_ids has 1"),
        ({"image_features": unit(3), "image_ids": [1, 2, 3]}, "image_ids must be texts"),
        ({"image_features": unit(3), "text_owners": [0]}, "text_owners without"),
        (
            {"image_features": unit(2), "text_features": unit(2), "text_owners": [0, 2]},
            r"text_owners must be in 0 .. 1, got 0 .. 2",
        ),
        (
            {"image_features": unit(2), "text_features": unit(2), "text_owners": [0.0, 1.0]},
            "text_owners must be integers",
        ),
        ({"image_features": unit(2), "labels": [0, 1]}, "how many classes"),
        ({"image_features": unit(2), "labels": [0, 1], "class_names": ["a"]}, "must be in 0 .. 0"),
        ({"image_features": unit(2), "labels": [0], "class_names": ["a"]}, r"labels must be \[2\]"),
        (
            {"image_features": unit(2), "class_features": unit(2), "class_names": ["a"]},
            "must have one length",
        ),
        ({"image_features": unit(2), "logit_scale": np.float32(0)}, "logit_scale must be above 0"),
        ({"image_features": unit(2), "logit_scale": [1.0]}, "logit_scale must be floats of 0"),
        ({"image_features": np.array([[None, {}]])}, "no objects"),
    ],
)
def test_wrong_arrays_are_named(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    """Wrong: a wrong number without a word, or an error that names neither file nor array."""
    path = tmp_path / "set.npz"
    np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})
    with pytest.raises(ValueError, match=message) as error:
        load_embeddings(path)
    assert str(path) in str(error.value)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    """Wrong: half a file would be read, or a pickle executed."""
    path = tmp_path / "set.npz"
    saved = complete()
    save_embeddings(path, saved)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(saved.image_features.numpy().tobytes()) + 5] ^= 0xFF
    for content in (b"", b"text", whole[: len(whole) // 2], bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"set\.npz must be a whole \.npz"):
            load_embeddings(path)
    with path.open("wb") as file:
        np.save(file, np.ones((2, 2)))
    with pytest.raises(ValueError, match="single array"):
        load_embeddings(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_embeddings(tmp_path / "nowhere.npz")


class Greys:
    def __init__(self, *greys: int | None) -> None:
        self.greys = greys

    def __len__(self) -> int:
        return len(self.greys)

    def __getitem__(self, index: int) -> Image.Image:
        grey = self.greys[index]
        if grey is None:
            raise BadRecord("truncated", str(index))
        return Image.new("L", (2, 2), grey).convert("RGB")


def captioned(*greys: int | None, name: str = "a set/ü") -> CaptionedImages:
    return CaptionedImages(name, Greys(*greys), tuple((f"caption {i}",) for i in range(len(greys))))


class Embedding:
    """Counts how often it had to work."""

    def __init__(self, data: CaptionedImages) -> None:
        self.data = data
        self.calls = 0

    def __call__(self) -> Embedded[CaptionedImages]:
        self.calls += 1
        skipped = SkipReport()
        skipped.add("truncated", "1")
        kept = torch.tensor([0, 2])
        return Embedded(self.data.part(kept, skipped), unit(2), kept, skipped)


def test_the_second_time_nothing_is_computed(tmp_path: Path) -> None:
    """Wrong: features would be computed again, or come without what was skipped."""
    cache = FeatureCache(tmp_path / "new" / "folder", notify=pytest.fail)
    data = captioned(1, None, 3)
    embed = Embedding(data)
    first = cache.embedded("model", data, embed)
    again = cache.embedded("model", data, embed)
    assert embed.calls == 1
    assert torch.equal(first.image_features, again.image_features)
    assert again.data.texts == first.data.texts == ["caption 0", "caption 2"]
    assert again.kept.tolist() == [0, 2]
    assert again.skipped.to_dict() == again.data.skipped.to_dict() == first.skipped.to_dict()


def test_anything_that_differs_is_computed_anew(tmp_path: Path) -> None:
    """Wrong: the features of another model, set, picture or order would be taken for these."""
    cache = FeatureCache(tmp_path, notify=pytest.fail)
    cases = [
        ("model", captioned(1, None, 3)),
        ("other", captioned(1, None, 3)),
        ("model", captioned(1, None, 3, name="other")),
        ("model", captioned(1, None, 4)),
        ("model", captioned(3, None, 1)),
        ("model", captioned(1, 2, 3)),
        ("model", captioned(1, None, 3, 3)),
    ]
    for model, data in cases:
        embed = Embedding(data)
        cache.embedded(model, data, embed)
        assert embed.calls == 1
    assert len(list(tmp_path.iterdir())) == len(cases)


def test_damaged_cache_files_are_computed_again(tmp_path: Path) -> None:
    """Wrong: a run that was killed while writing would break, or spoil, every later one."""
    notes: list[str] = []
    cache = FeatureCache(tmp_path, notes.append)
    data = captioned(1, None, 3)
    embed = Embedding(data)
    cache.embedded("model", data, embed)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for count, content in enumerate((b"", whole[:-300], whole[: len(whole) // 2]), 2):
        path.write_bytes(content)
        cache.embedded("model", data, embed)
        assert embed.calls == count
        assert "computed again" in notes[-1]
        assert cache.embedded("model", data, embed).kept.tolist() == [0, 2]  # mended
        assert embed.calls == count
    np.savez(path, features=np.ones(3))
    cache.embedded("model", data, embed)
    assert "another model or set" in notes[-1]


def test_a_folder_that_cannot_be_written_costs_a_note(tmp_path: Path) -> None:
    """Wrong: an evaluation would end because its cache is on a read-only disk."""
    notes: list[str] = []
    (tmp_path / "file").write_text("")
    embed = Embedding(captioned(1, None, 3))
    found = FeatureCache(tmp_path / "file" / "cache", notes.append).embedded(
        "model", embed.data, embed
    )
    assert found.kept.tolist() == [0, 2]
    assert "not kept" in notes[0]


def test_both_pictures_of_quadruples_count(tmp_path: Path) -> None:
    """Wrong: a change of the second pictures would not be seen."""
    cache = FeatureCache(tmp_path)
    features, kept = unit(2).unflatten(0, (1, 2)), torch.tensor([0])

    def embedded(second: int) -> torch.Tensor:
        data = Quadruples("q", Greys(1), Greys(second), (("a", "b"),), ("",))
        found = Embedded(data, features * second, kept, SkipReport())
        return cache.embedded("model", data, lambda: found).image_features

    assert torch.equal(embedded(2), features * 2)
    assert torch.equal(embedded(3), features * 3)
    assert torch.equal(embedded(2), features * 2)


def test_digests() -> None:
    """Wrong: another model or other pictures under an old name."""
    first, second = nn.Linear(2, 3), nn.Linear(2, 3)
    assert weights_digest(first) != weights_digest(second)
    second.load_state_dict(first.state_dict())
    assert weights_digest(first) == weights_digest(second)
    assert weights_digest(first) != weights_digest(second.double())
    scalar = nn.Linear(2, 3)
    scalar.register_buffer("count", torch.tensor(1))
    assert len(weights_digest(scalar.bfloat16())) == 32

    class Fingerprinted(Greys):
        def fingerprint(self) -> str:
            return "abc"

    assert content_digest(Fingerprinted(1)) == content_digest(Fingerprinted(2)) == "files abc"
    assert content_digest(Greys(1)) != content_digest(Greys(2))
    labelled = ClassifiedImages("x", Greys(1), torch.tensor([0]), ("a",))
    assert content_digest(labelled.images) == content_digest(Greys(1))
