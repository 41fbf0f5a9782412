"""Stored columns: they survive a full disk, other processes and other folders."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from cyclip_ext.data import SkipReport
from cyclip_ext.data.columns import Strings, StringWriter, file_state
from cyclip_ext.data.pairs import PairWriter
from cyclip_ext.data.tables import read_table

COUNT = 70_000  # more than are gathered before they are written


def write(path: Path, count: int = COUNT) -> Path:
    rows = (f"{i}.png,number {i} of a table\n" for i in range(count))
    path.write_text("image,caption\n" + "".join(rows))
    return path


def check(table: str) -> str:
    """Read a table, compare its rows, and return its fingerprint."""
    dataset = read_table(Path(table))
    assert len(dataset) == COUNT
    captions = dataset._columns.strings("captions")
    for i in (*range(0, COUNT, 97), COUNT - 1):
        assert dataset.image_name(i) == f"{i}.png"
        assert captions[i] == f"number {i} of a table"
    return dataset.fingerprint()


def test_strings() -> None:
    words = ["", "a", "ü", "caf\udce9", "x" * 1000]
    strings = Strings.of(words)
    assert [strings[i] for i in range(len(strings))] == words
    assert strings.digest() != Strings.of(words[::-1]).digest()
    for index in (-1, 5):
        with pytest.raises(IndexError, match="index must be between 0 and 4"):
            strings[index]
    data, ends = StringWriter().arrays()
    assert len(data) == 0
    assert ends.tolist() == [0]


@pytest.mark.parametrize("limit", [10_000, 2_000_000])  # of the temporary files, of the stored one
def test_a_full_disk_costs_time_only(tmp_path: Path, limit: int) -> None:
    table = write(tmp_path / "t.csv")
    expected = check(str(table))
    (place,) = tmp_path.glob(".cyclip_ext-*")
    assert place.stat().st_size > limit
    place.unlink()
    program = (
        "import resource, sys\n"
        "from data.test_columns import check\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))\n"
        "print(check(sys.argv[1]))"
    )
    tests = str(Path(__file__).parents[1])
    paths = os.pathsep.join([tests, *sys.path])
    found = subprocess.run(
        [sys.executable, "-c", program, str(table)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert found.stdout.strip() == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv"]


def test_pickled_columns_are_those_of_the_file(tmp_path: Path) -> None:
    dataset = read_table(write(tmp_path / "t.csv", 10))
    pickled = pickle.dumps(dataset)
    assert pickle.loads(pickled).fingerprint() == dataset.fingerprint()
    (place,) = tmp_path.glob(".cyclip_ext-*")
    place.unlink()
    place.write_bytes(b"something else")
    with pytest.raises(RuntimeError, match="was replaced while it was in use"):
        pickle.loads(pickled)


def test_reopening_takes_no_memory_for_the_rows(tmp_path: Path) -> None:
    """Every rank and worker would have a copy of the table."""
    rows = 400_000
    table = write(tmp_path / "t.csv", rows)
    read_table(table)
    before = anonymous_bytes()
    dataset = read_table(table)
    assert len(dataset) == rows
    assert anonymous_bytes() - before < table.stat().st_size / 4


def anonymous_bytes() -> int:
    """Return the memory of this process that is not shared."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("reads /proc")
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("copied", [False, True])
def test_a_folder_that_cannot_be_written_is_served_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copied: bool
) -> None:
    """copied: with the stored columns of another machine, where times of change differ."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    table = write(tmp_path / "set" / "t.csv", 10)
    if copied:
        read_table(table)
        time.sleep(0.02)  # some clocks of file systems tick every 10 ms
        table = Path(shutil.copytree(tmp_path / "set", tmp_path / "copy")) / "t.csv"
    before = sorted(path.name for path in table.parent.iterdir())
    temporary = tempfile.TemporaryFile

    def refused(dir: Path, **options: object) -> object:
        if dir == table.parent:
            raise PermissionError
        return temporary(dir=dir, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    first = read_table(table)
    monkeypatch.setattr("cyclip_ext.data.tables._columns", lambda *a: pytest.fail("read again"))
    assert read_table(table).fingerprint() == first.fingerprint()
    assert sorted(path.name for path in table.parent.iterdir()) == before
    assert np.array_equal(first._columns.arrays["images.ends"][:3], [0, 5, 10])


def test_states_tell_the_target_of_a_link(tmp_path: Path) -> None:
    """Files that one archive contains have equal sizes and times."""
    (tmp_path / "1").write_text("a")
    states = []
    for target in ("1", "./1"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(target)
        states.append(file_state(tmp_path / "link"))
    assert states[0] != states[1]
    assert file_state(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("image", "texts", "label", "reason"),
    [
        ("a\udce9.png", ["fine", "", None], "cat", ""),  # a name need not be UTF-8
        ("a\ud800.png", ["fine"], None, "bad encoding"),
        ("a\0.png", ["fine"], None, "bad encoding"),
        (" ", ["fine"], None, "no image named"),
        (None, ["fine"], None, "no image named"),
        ("a.png", ["fine", "x\ud800"], None, "bad encoding"),
        ("a.png", [" ", None, 7], None, "empty caption"),
        ("a.png", ["fine"], "\udce9", "bad encoding"),
        ("a.png", ["fine"], "\ufeff ", "empty label"),
    ],
)
def test_rows_are_used_or_counted(
    image: object, texts: list[object], label: str | None, reason: str
) -> None:
    pairs = PairWriter(None)
    pairs.add("t.csv:3", image, texts, label)
    found = SkipReport.from_dict(pairs.columns().meta["skipped"]).to_dict()
    assert found == ({reason: {"count": 1, "examples": ["t.csv:3"]}} if reason else {})
    assert len(pairs) == (not reason)
