"""The stored index: used while it is valid, rebuilt otherwise, and optional if it fails."""

from __future__ import annotations

import multiprocessing
import os
import pwd
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from cyclip_ext.data import tar_index as module
from cyclip_ext.data.columns import Columns
from cyclip_ext.data.skips import SkipReport
from cyclip_ext.data.tar import TarDataset
from cyclip_ext.data.tar_index import tar_index

from .files import encode, halves, write_tar

PNG = encode(halves())


def shard(path: Path, names: str) -> Path:
    members = [(f"{n}{s}", d) for n in names for s, d in ((".png", PNG), (".txt", n.encode()))]
    return write_tar(path, members)


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    paths = [shard(tmp_path / "set" / f"{i}.tar", names) for i, names in enumerate(("abc", "de"))]
    os.truncate(paths[1], 3300)  # inside the header of the last caption: things to count
    return paths


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows with each index that is built and not loaded."""
    calls: list[int] = []
    build = module._build
    monkeypatch.setattr(module, "_build", lambda shards: calls.append(1) or build(shards))
    return calls


def stored(folder: Path) -> list[Path]:
    return sorted(folder.glob(".cyclip_ext-*.index"))


def equal(one: Columns, two: Columns) -> bool:
    return (
        one.meta == two.meta
        and one.arrays.keys() == two.arrays.keys()
        and all(np.array_equal(one.arrays[name], two.arrays[name]) for name in one.arrays)
    )


def test_it_is_built_once_and_loaded_the_same(shards: list[Path], builds: list[int]) -> None:
    first, second = tar_index(shards), tar_index(shards)
    assert builds == [1]
    assert equal(first, second)
    assert equal(first, module._build(shards))
    assert len(stored(shards[0].parent)) == 1
    tar_index(shards[:1])
    tar_index(shards)
    assert len(builds) == 3  # one of its own for another set (and the direct call above)


def test_parallel_indexing_finds_the_same(
    shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = module._build(shards)
    monkeypatch.setattr(module, "_SERIAL_BYTES", 0)
    monkeypatch.setattr(module, "cores", lambda: 2)
    assert equal(module._build(shards), alone)


@pytest.mark.parametrize("change", ["content", "time", "same time", "size", "shard lost"])
def test_any_change_of_a_shard_rebuilds(shards: list[Path], builds: list[int], change: str) -> None:
    tar_index(shards)
    status = shards[0].stat()
    if change == "content":
        time.sleep(0.02)
        shard(shards[0], "xyz")
    elif change == "same time":
        time.sleep(0.02)
        shard(shards[0], "xyz")
        os.utime(shards[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "time":
        os.utime(shards[0], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    elif change == "size":
        shard(shards[0], "abcfghijklmnopqrstuvw")
        os.utime(shards[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        shards[0].unlink()
    pairs = TarDataset(shards)
    assert builds == [1, 1]
    assert len(pairs) == (len(module._build(shards).arrays["rows"]))
    assert pairs.skipped.counts["unreadable tar"] == (2 if change == "shard lost" else 0)


def test_damage_of_the_stored_index_is_found(shards: list[Path], builds: list[int]) -> None:
    """Every byte counts: a flipped offset would give an image its neighbour's caption."""
    good = tar_index(shards)
    (place,) = stored(shards[0].parent)
    whole = place.read_bytes()
    for damaged in (
        b"",
        bytes(4),  # the checksum of nothing
        whole[:40],
        whole[:-1],
        whole + b"x",
        *(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(0, len(whole), 5)),
    ):
        place.unlink()  # `good` has it mapped
        place.write_bytes(damaged)
        before = len(builds)
        assert equal(tar_index(shards), good)
        assert len(builds) == before + 1
        assert place.read_bytes() == whole


@pytest.mark.parametrize("broken", ["TemporaryFile", "replace"])
def test_nowhere_to_write_costs_time_only(
    shards: list[Path], builds: list[int], monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(tempfile if broken == "TemporaryFile" else os, broken, refused)
    assert equal(tar_index(shards), tar_index(shards))
    assert builds == [1, 1]
    assert sorted(path.name for path in shards[0].parent.iterdir()) == ["0.tar", "1.tar"]


def _rank(shards: list[Path], answers: object) -> None:
    calls: list[int] = []
    build = module._build

    def slow(shards: list[Path]) -> Columns:
        calls.append(1)
        time.sleep(0.5)  # long enough for all others to arrive
        return build(shards)

    module._build = slow  # type: ignore[assignment]
    index = tar_index(shards)
    answers.put((len(calls), len(index.arrays["rows"])))  # type: ignore[attr-defined]


def test_of_many_ranks_one_builds(shards: list[Path]) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    ranks = [context.Process(target=_rank, args=(shards, answers)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    found = [answers.get(timeout=60) for _ in ranks]
    for rank in ranks:
        rank.join()
    assert sum(built for built, _ in found) == 1
    assert len({count for _, count in found}) == 1


def test_without_a_home_it_is_stored_beside_the_shards(
    shards: list[Path], builds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(user: int) -> object:
        raise KeyError(user)

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(RuntimeError):
        Path("~").expanduser()
    assert equal(tar_index(shards), tar_index(shards))
    assert builds == [1]
    assert len(stored(shards[0].parent)) == 1


def test_a_folder_that_is_not_there_stays_away(shards: list[Path], tmp_path: Path) -> None:
    index = tar_index([tmp_path / "gone" / "0.tar"])
    assert SkipReport.from_dict(index.meta["skipped"]).counts == {"unreadable tar": 1}
    assert not (tmp_path / "gone").exists()
