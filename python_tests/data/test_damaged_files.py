"""All formats: bad records are counted by reason, good records are read unchanged."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cyclip_ext.data import BadRecord, Loader, ReadOptions, SkipReport, open_dataset
from cyclip_ext.data.__main__ import main
from cyclip_ext.data.seeding import uniforms
from cyclip_ext.data.transforms import CROP_DRAWS, random_crop

from .damaged import SOURCES, Source, caption, good_cases
from .files import encode, halves

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")

GOOD = {caption(case): case for case in good_cases()}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    return SOURCES[request.param](tmp_path)


def test_every_record_is_right_or_counted(source: Source) -> None:
    """No image is changed, lost or exchanged with its neighbour, and every reason is counted."""
    pairs = open_dataset(source.path, ReadOptions(**source.arguments))
    counts = Counter(pairs.skipped.counts)
    seen = set()
    for index in range(len(pairs)):
        try:
            record = pairs[index]
        except BadRecord as bad:
            counts[bad.reason] += 1
            continue
        if record.captions[0] not in GOOD:
            assert record.captions == ("first",)  # before the break in the second shard
            continue
        case = GOOD[record.captions[0]]
        assert record.image.mode == "RGB"
        assert record.image.size == case.expected.size  # type: ignore[union-attr]
        difference = np.abs(np.asarray(record.image, int) - np.asarray(case.expected, int))
        assert difference.max() <= case.tolerance, case.name
        seen.add(case.name)
    assert counts == source.counts
    assert seen == {case.name for case in good_cases()}


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_delivers_the_good_and_counts_the_bad(source: Source, workers: int) -> None:
    pairs = open_dataset(source.path, ReadOptions(**source.arguments))
    loader = Loader(pairs, len(pairs), 16, seed=5, workers=workers)
    (batch,) = loader.epoch(2)
    total = SkipReport()
    total.merge(pairs.skipped)
    total.merge(loader.skipped)
    assert total.counts == source.counts
    assert {*GOOD} <= {*batch.texts}
    assert len(batch.texts) == len(pairs) - loader.skipped.total == len(batch.images)
    draws = uniforms(5, 2, batch.indices, CROP_DRAWS).tolist()
    for image, index, row in zip(batch.images, batch.indices.tolist(), draws, strict=True):
        expected = random_crop(pairs[index].image, 16, row)
        assert np.array_equal(image, expected)


def test_verify_counts_the_same_and_its_manifest_leaves_them_out(
    source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "out.manifest"
    flags = [word for k, v in source.arguments.items() for word in (f"--{k}", v)]
    command = ["verify", source.path, *flags, "--manifest", str(manifest), "--workers", "2"]
    assert main([*command, "--max-skipped", "1"]) == 0
    printed = capsys.readouterr().out
    for reason, count in source.counts.items():
        assert f"{count:>9}  {reason:<22} e.g. " in printed
    summary = json.loads(manifest.read_text())["summary"]
    assert {k: v["count"] for k, v in summary["skipped"].items()} == source.counts
    assert main(command) == 1  # 5% allowed
    assert "more than the 5.0% allowed" in capsys.readouterr().err
    pairs = open_dataset(source.path, ReadOptions(**source.arguments, manifest=manifest))
    before = open_dataset(source.path, ReadOptions(**source.arguments))
    found = {pairs[index].captions[0] for index in range(len(pairs))}  # none raises
    assert {*GOOD} <= found
    left_out = len(before) - len(pairs)
    assert pairs.skipped.counts == before.skipped.counts + Counter(
        {"listed in the manifest": left_out}
    )


def test_a_folder_without_captions_is_rejected_with_a_remedy(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(encode(halves(), "JPEG"))
    with pytest.raises(ValueError, match=r"no image in .* has a caption.*CSV with the columns"):
        open_dataset(str(tmp_path))
    (tmp_path / "dog" / "1.json").write_text('{"caption": ["a dog", "an animal"]}')
    (tmp_path / "dog" / "._1.jpg").write_bytes(b"left by macOS")
    pairs = open_dataset(str(tmp_path))
    assert [pairs[i].captions for i in range(len(pairs))] == [("a dog", "an animal")]
    assert pairs.skipped.counts == {"no caption file": 1}
    with pytest.raises(ValueError, match=r"--images. does not apply"):
        open_dataset(str(tmp_path), ReadOptions(images="x"))


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar"])
def test_compressed_shards_are_rejected_with_a_remedy(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b\x08\x00" + b"x" * 2000)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(ValueError, match=r"compressed.*[Uu]npack it to a plain \.tar"):
            open_dataset(str(path))
