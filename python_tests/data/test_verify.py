"""verify: duplicates and false negatives equal what comparing every pair of records gives."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cyclip_ext.data import FileDataset, Loader, ReadOptions, open_dataset
from cyclip_ext.data import __main__ as command
from cyclip_ext.data.__main__ import main
from cyclip_ext.data.captions import normalized_caption
from cyclip_ext.data.duplicates import difference_hash
from cyclip_ext.data.manifest import Manifest
from cyclip_ext.data.verify import examine, find_doubles

from .files import encode, write_tar

COUNT = 40


def picture(number: int, size: int = 32) -> Image.Image:
    """Blocks of random grey: another look for each number, the same at each size."""
    blocks = np.random.default_rng(number).integers(0, 255, (8, 9), dtype=np.uint8)
    return Image.fromarray(blocks).resize((size * 9, size * 8), Image.Resampling.NEAREST)


def captions(number: int) -> list[str]:
    """Several per record, some shared between records in other case and spacing, some repeated."""
    return [
        [f"only {number}"],
        ["A  Dog", f"dog {number}"],
        ["a dog", "a dog", "hound"],
        ["HOUND"],
        [f"cat {number % 3}", f"cat {number % 5}", "a dog"],
    ][number % 5]


@pytest.fixture
def pairs(tmp_path: Path) -> FileDataset:
    members = []
    for i in range(COUNT):
        if i % 4 == 0:
            image = encode(picture(i % 12))  # byte for byte the same, three different ones
        elif i % 4 == 1:
            image = encode(picture(i % 8, size=16 + i))  # the same look in other sizes
        elif i % 4 == 2:
            image = encode(Image.new("RGB", (8, 8), (i, i % 2, 0)))  # of one colour: no look
        else:
            image = encode(picture(100 + i))
        members.append((f"{i:03}.png", image))
        members.append((f"{i:03}.json", json.dumps({"caption": captions(i)}).encode()))
    write_tar(tmp_path / "a.tar", members)
    opened = open_dataset(str(tmp_path))
    assert isinstance(opened, FileDataset)
    return opened


def test_against_comparing_all_pairs(pairs: FileDataset) -> None:
    batch_size = 7
    doubles = find_doubles(examine(pairs, 0), batch_size)
    records = [pairs.encoded(i) for i in range(COUNT)]
    looks = [difference_hash(pairs[i].image) for i in range(COUNT)]
    expected = dict.fromkeys(("caption", "image", "look", "any"), 0.0)
    equal_images, equal_looks = set(), set()
    for r, s in itertools.combinations(range(COUNT), 2):
        drawn = list(itertools.product(records[r].captions, records[s].captions))
        same = sum(normalized_caption(a) == normalized_caption(b) for a, b in drawn) / len(drawn)
        image = records[r].data == records[s].data
        look = image or looks[r] == looks[s] != 0
        expected["caption"] += same
        expected["image"] += image
        expected["look"] += look
        expected["any"] += 1 if look else same
        equal_images |= {r, s} if image else set()
        equal_looks |= {r, s} if looks[r] == looks[s] != 0 else set()
    both = batch_size * (batch_size - 1) / (COUNT * (COUNT - 1))  # chance that a pair meets
    for kind, value in expected.items():
        assert value > 0, kind
        assert doubles.false_negatives[kind] == pytest.approx(value * both, rel=1e-9), kind
    assert set(doubles.images.order.tolist()) == equal_images
    assert set(doubles.looks.order.tolist()) == equal_looks
    by_text: dict[str, set[int]] = {}
    for i, record in enumerate(records):
        for caption in record.captions:
            by_text.setdefault(normalized_caption(caption), set()).add(i)
    several = sorted((sorted(group) for group in by_text.values() if len(group) > 1), key=len)
    found = [members.tolist() for members in doubles.captions.largest(1000)]
    assert sorted(found, key=lambda g: (len(g), g)) == sorted(several, key=lambda g: (len(g), g))
    assert [len(group) for group in found] == sorted(map(len, several), reverse=True)


def test_expected_false_negatives_are_those_of_the_loader(pairs: FileDataset) -> None:
    """The formula against counting equal captions in many real batches."""
    expected = find_doubles(examine(pairs, 0), 8).false_negatives["caption"]
    loader = Loader(pairs, 8, 8)
    counts = []
    for epoch in range(150):
        for batch in loader.epoch(epoch):
            assert batch is not None
            texts = [normalized_caption(text) for text in batch.texts]
            counts.append(sum(a == b for a, b in itertools.combinations(texts, 2)))
    error = np.std(counts) / len(counts) ** 0.5
    assert abs(np.mean(counts) - expected) < 4 * error


def test_workers_change_nothing(pairs: FileDataset) -> None:
    one, two = examine(pairs, 0), examine(pairs, 2)
    assert np.array_equal(one.images, two.images)
    assert np.array_equal(one.captions, two.captions)


def test_look_survives_scaling_and_compression() -> None:
    one = difference_hash(picture(1))
    again = Image.open(BytesIO(encode(picture(1, 20), "JPEG", quality=80)))
    assert difference_hash(again) == one != difference_hash(picture(2))
    assert difference_hash(Image.new("RGB", (50, 20), "red")) == 0


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = ["image,caption"]
    for i in range(10):
        (tmp_path / f"{i}.png").write_bytes(encode(picture(i)) if i != 4 else b"<html>")
        rows.append(f"{i}.png,caption {i}")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    return tmp_path / "t.csv"


def test_a_manifest_of_other_data_is_refused(table: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.json"
    assert main(["verify", str(table), "--manifest", str(manifest), "--max-skipped", "0.1"]) == 0
    assert len(open_dataset(str(table), ReadOptions(manifest=manifest))) == 9
    text = table.read_text()

    def refusal() -> str:
        with pytest.raises(ValueError, match="made for other data") as caught:
            open_dataset(str(table), ReadOptions(manifest=manifest))
        return str(caught.value)

    table.write_text(text + "\n10.png,one more")
    assert "11 records, the manifest has 10" in refusal()
    table.write_text(text.replace("3.png", "7.pnj").replace("7.png", "3.png"))
    assert "the records differ, or are in another order" in refusal()
    table.write_text(text.replace("caption 3", "caption 7"))
    assert "the records differ, or are in another order" in refusal()
    table.write_text(text)
    table.rename(tmp_path / "renamed.csv")
    assert len(open_dataset(str(tmp_path / "renamed.csv"), ReadOptions(manifest=manifest))) == 9


def test_what_is_no_manifest_is_named(table: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"m\.json does not exist; write it with"):
        open_dataset(str(table), ReadOptions(manifest=tmp_path / "m.json"))
    for content in (b"", b"[]", b'{"format": "other"}', b"\xff"):
        (tmp_path / "m.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"m\.json is no manifest"):
            open_dataset(str(table), ReadOptions(manifest=tmp_path / "m.json"))
    (tmp_path / "m.json").write_text('{"format": "cyclip_ext manifest", "version": 9}')
    with pytest.raises(ValueError, match="of version 9, this package reads version 2"):
        open_dataset(str(table), ReadOptions(manifest=tmp_path / "m.json"))


def test_exit_status(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(table), "--max-skipped", "0.1"]) == 0
    printed = capsys.readouterr().out
    assert "9 of 10 records can be used" in printed
    assert main(["verify", str(table), "--max-skipped", "0.09"]) == 1
    assert main(["verify", str(tmp_path / "none.csv")]) == 2
    assert "does not exist; accepted are" in capsys.readouterr().err
    assert main(["verify", str(table), "--first-row", "1"]) == 2
    for wrong in (["--workers", "-1"], ["--batch-size", "0"], ["--max-skipped", "5"]):
        with pytest.raises(SystemExit):
            main(["verify", str(table), *wrong])


INTERRUPTED = """
import os, signal, sys
from cyclip_ext.data import __main__ as command

def ctrl_c(self, done):  # reaches the whole process group, as from a terminal
    os.killpg(os.getpgrp(), signal.SIGINT)

command._Progress.__call__ = ctrl_c
sys.exit(command.main(["verify", *sys.argv[1:]]))
"""


def test_interruption_leaves_no_manifest_and_no_traceback(table: Path, tmp_path: Path) -> None:
    options = ["--workers", "2", "--manifest", str(tmp_path / "m.json")]
    program = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(table), *options],
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
    )
    assert (program.returncode, program.stdout) == (130, "")
    assert program.stderr.strip() == "interrupted: no manifest was written"
    assert not (tmp_path / "m.json").exists()


def test_what_cannot_end_well_has_status_2(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 1 means that the data was read and judged."""

    def message() -> str:
        return capsys.readouterr().err

    with monkeypatch.context() as patch:
        patch.setattr(command, "open_dataset", lambda *a, **k: pytest.fail("read before the check"))
        for place in (tmp_path / "none" / "m.json", tmp_path):
            assert main(["verify", str(table), "--manifest", str(place)]) == 2
            assert f"(--manifest) cannot be written to {place}: " in message()
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "write", broken(OSError("disk full")))
        options = ["--manifest", str(tmp_path / "m.json"), "--max-skipped", "0.1"]
        assert main(["verify", str(table), *options]) == 2
        assert "disk full" in message()
    with monkeypatch.context() as patch:
        patch.setattr(command, "examine", broken(RuntimeError("a worker process failed")))
        assert main(["verify", str(table)]) == 2
        assert "a worker process failed" in message()
    table.write_text("image,caption\n")
    assert main(["verify", str(table)]) == 2
    assert "no record can be used" in message()
    table.write_text("image,caption\n4.png,a page\n")
    assert main(["verify", str(table), "--max-skipped", "1"]) == 2


def broken(error: Exception) -> Callable[..., None]:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    return fail
