"""`cyclip-data verify` and `speed`: counts, equal captions, manifests and exit statuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cyclip_ext.data import FileDataset, ReadOptions, WorkerDied, open_dataset
from cyclip_ext.data import __main__ as command
from cyclip_ext.data.__main__ import main
from cyclip_ext.data.captions import normalized_caption
from cyclip_ext.data.dataset import Encoded
from cyclip_ext.data.manifest import Manifest
from cyclip_ext.data.verify import examine, report

from .files import encode, halves, write_tar

COUNT = 140  # several chunks


def captions(number: int) -> list[str]:
    """Return several captions per record, some of them equal except for case and spacing."""
    return [
        [f"only {number}"],
        ["A  Dog", f"dog {number}"],
        ["a dog", "a dog", "hound"],
        ["HOUND"],
        [f"cat {number % 3}", f"cat {number % 5}", "a dog"],
    ][number % 5]


@pytest.fixture
def dataset(tmp_path: Path) -> FileDataset:
    members = []
    for i in range(COUNT):
        members.append((f"{i:03}.png", encode(halves(size=(8 + i, 20)))))
        members.append((f"{i:03}.json", json.dumps({"caption": captions(i)}).encode()))
    opened = open_dataset(str(write_tar(tmp_path / "a.tar", members)))
    assert isinstance(opened, FileDataset)
    return opened


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = ["image,caption"]
    for i in range(10):
        (tmp_path / f"{i}.png").write_bytes(encode(halves()) if i != 4 else b"<html>")
        rows.append(f"{i}.png,caption {i}")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    return tmp_path / "t.csv"


@pytest.mark.parametrize("workers", [0, 2])
def test_findings_are_those_of_reading_every_record(dataset: FileDataset, workers: int) -> None:
    progress: list[int] = []
    findings = examine(dataset, workers, progress.append)
    assert sum(progress) == COUNT
    assert findings.images["record"].tolist() == list(range(COUNT))
    assert findings.images["width"].tolist() == [8 + i for i in range(COUNT)]
    texts = [caption for i in range(COUNT) for caption in dataset[i].captions]
    assert findings.captions["characters"].tolist() == list(map(len, texts))
    records_of: dict[str, set[int]] = {}
    for i in range(COUNT):
        for caption in dataset[i].captions:
            records_of.setdefault(normalized_caption(caption), set()).add(i)
    expected = sorted(sorted(group) for group in records_of.values() if len(group) > 1)
    found = [members.tolist() for members in findings.equal_captions()]
    assert sorted(found) == expected
    assert list(map(len, found)) == sorted(map(len, found), reverse=True)
    assert findings.to_dict() == {
        "records": COUNT,
        "good": COUNT,
        "skipped": {},
        "equal_captions": {"groups": len(expected), "records": sum(map(len, expected))},
        "shortened_captions": 0,
    }
    assert f"{len(expected)} groups (see cyclip-train --mask-duplicates)" in report(
        dataset, findings
    )


def test_records_too_large_for_the_memory_are_counted(
    dataset: FileDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = type(dataset).encoded

    def encoded(self: FileDataset, index: int) -> Encoded:
        if index == 7:
            raise MemoryError
        return read(self, index)

    monkeypatch.setattr(type(dataset), "encoded", encoded)
    findings = examine(dataset, 0)
    assert findings.skipped.counts == {"out of memory": 1}
    assert [entry.index for entry in findings.bad] == [7]


def test_endless_words_are_counted(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table.write_text(f"image,caption\n1.png,{'x' * 64_000}\n2.png,fine\n")
    assert main(["verify", str(table), "--workers", "0"]) == 0
    assert "1 captions with endless words, cut before tokenizing" in capsys.readouterr().out


def test_a_manifest_of_other_data_is_rejected(table: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.json"
    assert main(["verify", str(table), "--manifest", str(manifest), "--max-skipped", "0.1"]) == 0
    options = ReadOptions(manifest=manifest)
    assert len(open_dataset(str(table), options)) == 9
    text = table.read_text()
    for changed, difference in (
        (text + "\n10.png,one more", "11 records, but 10 in the manifest"),
        (text.replace("3.png", "7.pnj").replace("7.png", "3.png"), "the records differ, or are in"),
        (text.replace("caption 3", "caption 7"), "the records differ, or are in another order"),
    ):
        table.write_text(changed)
        with pytest.raises(ValueError, match=rf"made for other data than .*{difference}"):
            open_dataset(str(table), options)
    table.write_text(text)
    table.rename(tmp_path / "renamed.csv")
    assert len(open_dataset(str(tmp_path / "renamed.csv"), options)) == 9


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"m\.json does not exist; write it with"),
        *[
            (content, r"m\.json is not a manifest")
            for content in (b"", b"[]", b"[" * 10**5, b'{"format": "other"}', b"\xff", b"FIFO")
        ],
        (b'{"format": "cyclip_ext manifest", "version": 9}', "version 9, but this package reads"),
    ],
)
def test_a_file_that_is_not_a_manifest_is_named(
    table: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content == b"FIFO":
        os.mkfifo(tmp_path / "m.json")
    elif content is not None:
        (tmp_path / "m.json").write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_dataset(str(table), ReadOptions(manifest=tmp_path / "m.json"))


@pytest.mark.parametrize("bad", [[10], [-1], ["1"], [1.5], [2, 2]])
def test_a_manifest_of_impossible_records_is_rejected(
    table: Path, tmp_path: Path, bad: list[object]
) -> None:
    dataset = open_dataset(str(table))
    entries = [{"index": index, "reason": "truncated", "where": "x"} for index in bad]
    content = {"records": len(dataset), "fingerprint": dataset.fingerprint(), "bad": entries}
    content |= {"format": "cyclip_ext manifest", "version": 2, "summary": {}}
    (tmp_path / "m.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"m\.json is not a manifest"):
        open_dataset(str(table), ReadOptions(manifest=tmp_path / "m.json"))


def test_exit_status(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(table), "--max-skipped", "0.1"]) == 0
    printed = capsys.readouterr().out
    assert "9 records can be used, 1 cannot" in printed
    assert re.search(r"1  not an image +e\.g\. .*4\.png", printed)
    assert main(["verify", str(table), "--max-skipped", "0.09"]) == 1
    assert main(["verify", str(tmp_path / "none.csv")]) == 2
    assert "does not exist; accepted are" in capsys.readouterr().err
    for wrong in (["--first-row", "1"], ["--workers", "-1"], ["--max-skipped", "5"]):
        assert main(["verify", str(table), *wrong]) == 2
        assert wrong[0] in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["verify", str(table), "--no-such-flag"])
    assert "no-such-flag" in capsys.readouterr().err


def test_data_that_was_not_read_to_the_end_has_status_2(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 1 means that the data was read and judged."""

    def status(*options: object) -> tuple[int, str]:
        return main(["verify", str(table), *map(str, options)]), capsys.readouterr().err

    with monkeypatch.context() as patch:
        patch.setattr(command, "open_dataset", lambda *a, **k: pytest.fail("read before the check"))
        for place in (tmp_path / "none" / "m.json", tmp_path):
            code, message = status("--manifest", place)
            assert code == 2
            assert f"(--manifest) cannot be written to {place}: " in message
    for where, name, error in (
        (Manifest, "write", OSError("disk full")),
        (command, "examine", WorkerDied("a worker died")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, raising(error))
            code, message = status("--manifest", tmp_path / "m.json", "--max-skipped", 0.1)
            assert code == 2
            assert str(error) in message
    table.write_text("image,caption\n4.png,a page\n")
    code, message = status("--max-skipped", 1, "--manifest", tmp_path / "m.json")
    assert code == 2
    assert "no record can be used" in message
    assert not (tmp_path / "m.json").exists()


def raising(error: Exception) -> Callable[..., None]:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    return fail


INTERRUPTED = """
import os, signal, sys
from cyclip_ext.data import __main__ as command, verify

def ctrl_c(self, done):  # reaches the whole process group, as from a terminal
    os.killpg(os.getpgrp(), signal.SIGINT)

command.tqdm.update = ctrl_c
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
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert (program.returncode, program.stdout) == (130, "")
    assert program.stderr.endswith("\ninterrupted\n")
    assert "Traceback" not in program.stderr
    assert not (tmp_path / "m.json").exists()


@pytest.mark.parametrize("source", ["table", "shapes"])
def test_speed_counts_the_samples_of_the_loader(
    source: str, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(table) if source == "table" else source
    options = ["--image-size", "16", "--batch-size", "5", "--seconds", "0.2", "--workers", "0"]
    assert main(["speed", path, *options]) == 0
    printed = capsys.readouterr().out
    found = re.search(r"([\d,]+) samples/s at 16 pixels in batches of 5 with 0 worker", printed)
    assert found is not None
    assert int(found[1].replace(",", "")) > 0
    # The same record in each epoch.
    assert ("; 1 skipped: 1 not an image" in printed) == (source == "table")
    assert main(["speed", path, "--batch-size", "5000"]) == 2
    assert "batch_size must be between 1 and the" in capsys.readouterr().err
