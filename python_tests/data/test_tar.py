"""Shards: samples found through the index equal what tarfile reads; damage costs only itself."""

from __future__ import annotations

import json
import os
import pickle
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cyclip_ext.data.skips import BadRecord
from cyclip_ext.data.tar import _OPEN_SHARDS, TarDataset
from cyclip_ext.data.tar_format import BrokenTar, read_members

from .files import encode, halves, jpeg, write_tar

PNG = encode(halves())


def members(count: int, start: int = 0) -> list[tuple[str, bytes]]:
    """Return the members of samples as img2dataset writes them."""
    return [
        item
        for i in range(start, start + count)
        for item in (
            (f"{i:09d}.jpg", PNG),
            (f"{i:09d}.json", json.dumps({"caption": f"json {i}", "url": "u"}).encode()),
            (f"{i:09d}.txt", f"caption {i}".encode()),
        )
    ]


def reason(pairs: TarDataset, index: int) -> str:
    with pytest.raises(BadRecord) as caught:
        pairs[index]
    return caught.value.reason


def test_samples_of_several_shards(tmp_path: Path) -> None:
    shards = [write_tar(tmp_path / f"{i}.tar", members(3, 3 * i)) for i in range(2)]
    pairs = TarDataset(shards)
    assert len(pairs) == 6
    assert pairs.skipped.total == 0
    assert [pairs[i].captions for i in (5, 0, 3)] == [
        ("caption 5",),
        ("caption 0",),
        ("caption 3",),
    ]
    assert pairs[2].image.size == (40, 20)


def test_caption_from_json_without_txt(tmp_path: Path) -> None:
    data = [
        ("a.jpg", PNG),
        ("a.json", b'{"caption": "one"}'),
        ("b.jpg", PNG),
        ("b.json", b'{"caption": ["two", " ", "three\\nlines"]}'),
    ]
    pairs = TarDataset([write_tar(tmp_path / "a.tar", data)])
    assert [pairs[i].captions for i in range(2)] == [("one",), ("two", "three lines")]


def test_bad_samples_are_counted_where_they_show(tmp_path: Path) -> None:
    data = [
        ("a.jpg", PNG),  # no caption file: known from the index
        ("b.txt", b"no image"),
        ("c.jpg", jpeg()[:300]),
        ("c.txt", b"cut picture"),
        ("d.jpg", PNG),
        ("d.txt", b" \n"),
        ("e.jpg", PNG),
        ("e.txt", b"\xff\xfe latin"),
        ("f.jpg", PNG),
        ("f.json", b"{broken"),
        ("g.jpg", b""),
        ("g.txt", b"empty picture"),
        ("h.jpg", PNG),
        ("h.txt", b"good"),
    ]
    pairs = TarDataset([write_tar(tmp_path / "a.tar", data)])
    assert pairs.skipped.counts == {"no caption file": 1, "no image file": 1}
    assert len(pairs) == 6
    found = [reason(pairs, i) for i in range(5)]
    expected = ["truncated", "empty caption", "bad encoding", "broken metadata", "empty file"]
    assert found == expected
    assert pairs[5].captions == ("good",)


def test_keys_end_at_the_first_dot_and_include_the_folder(tmp_path: Path) -> None:
    data = [
        ("x/1.seg.png", b"not this one"),
        ("x/1.jpg", PNG),
        ("x/1.txt", b"first"),
        ("y/1.jpg", PNG),
        ("y/1.txt", b"second"),
    ]
    pairs = TarDataset([write_tar(tmp_path / "a.tar", data)])
    assert [pairs[i].captions[0] for i in range(2)] == ["first", "second"]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_agree_with_tarfile(tmp_path: Path, format: int) -> None:
    names = ["short.txt", "d" * 60 + "/" + "e" * 60 + ".jpg"]
    if format != tarfile.USTAR_FORMAT:
        names += ["f" * 300 + ".jpg", "ünï/cødé.txt"]
    path = write_tar(tmp_path / "a.tar", [(n, n.encode() * i) for i, n in enumerate(names)], format)
    with path.open("rb") as file:
        ours = [(m.name, m.offset, m.size) for m in read_members(file)]
    with tarfile.open(path) as tar:
        theirs = [(m.name, m.offset_data, m.size) for m in tar]
    assert ours == theirs


def test_other_kinds_of_members_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(PNG)
    (tmp_path / "in" / "a.txt").write_bytes(b"caption")
    (tmp_path / "in" / "link.jpg").symlink_to("a.jpg")
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "in", arcname="in")
    pairs = TarDataset([path])
    assert [pairs[i].captions for i in range(len(pairs))] == [("caption",)]


def test_broken_end_keeps_what_came_before(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", members(4)).read_bytes()
    with (tmp_path / "a.tar").open("rb") as file:
        third = next(m for m in read_members(file) if m.name == "000000002.jpg")
    for cut in (third.offset + 10, third.offset - 100):  # inside data, inside a header
        (tmp_path / "b.tar").write_bytes(whole[:cut])
        pairs = TarDataset([tmp_path / "b.tar"])
        assert len(pairs) == 2
        assert pairs.skipped.counts["broken tar"] == 1
        assert pairs[1].captions == ("caption 1",)


def test_overwritten_header_is_damage_not_nonsense(tmp_path: Path) -> None:
    data = bytearray(write_tar(tmp_path / "a.tar", members(3)).read_bytes())
    with (tmp_path / "a.tar").open("rb") as file:
        second = next(m for m in read_members(file) if m.name == "000000001.jpg")
    data[second.offset - 512 : second.offset - 400] = b"x" * 112
    (tmp_path / "a.tar").write_bytes(data)
    pairs = TarDataset([tmp_path / "a.tar"])
    assert len(pairs) == 1
    assert pairs.skipped.counts["broken tar"] == 2  # estimated from the bytes that follow


def test_a_file_that_is_no_tar(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"<html>" * 1000)
    pairs = TarDataset([tmp_path / "a.tar"])
    assert len(pairs) == 0
    assert pairs.skipped.counts["broken tar"] == 1


def test_a_pax_size_that_is_no_number_is_damage(tmp_path: Path) -> None:
    """A negative one would lead the reader back to a header it has seen, for ever."""
    whole = write_tar(tmp_path / "a.tar", [("ü" * 60 + ".jpg", PNG)])  # has a pax header
    data = whole.read_bytes()
    assert b"path=" in data
    for damage in (b"size=-2048", b"size=many"):
        start = data.index(b" path=") + 1
        changed = data[:start] + damage + data[start + len(damage) :]
        (tmp_path / "b.tar").write_bytes(changed)
        with (tmp_path / "b.tar").open("rb") as file, pytest.raises(BrokenTar):
            list(read_members(file))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10_000), noise=st.binary(min_size=1, max_size=64))
def test_no_damage_escapes_as_another_error(tmp_path: Path, position: int, noise: bytes) -> None:
    data = bytearray(write_tar(tmp_path / "a.tar", members(2)).read_bytes())
    position %= len(data)
    data[position : position + len(noise)] = noise
    (tmp_path / "b.tar").write_bytes(data)
    with (tmp_path / "b.tar").open("rb") as file:
        try:
            for member in read_members(file):
                assert member.offset + member.size <= len(data)
        except BrokenTar:
            pass


def test_survives_pickling_with_open_files(tmp_path: Path) -> None:
    pairs = TarDataset([write_tar(tmp_path / "a.tar", members(2))])
    assert pairs[0].captions == ("caption 0",)
    copy = pickle.loads(pickle.dumps(pairs))
    assert copy[1].captions == ("caption 1",)
    assert pairs[1].captions == ("caption 1",)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")
def test_few_shards_are_open_at_once(tmp_path: Path) -> None:
    """One descriptor per shard for good ends CC12M, 1,240 shards, at `ulimit -n`."""

    def descriptors() -> int:
        targets = (os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd"))
        return sum(str(tmp_path) in name and name.endswith(".tar") for name in targets)

    count = 2 * _OPEN_SHARDS
    pairs = TarDataset([write_tar(tmp_path / f"{i}.tar", members(1, i)) for i in range(count)])
    for _ in range(2):
        assert [pairs[i].captions for i in range(count)] == [
            (f"caption {i}",) for i in range(count)
        ]
    assert descriptors() == _OPEN_SHARDS
    del pairs
    assert descriptors() == 0


def test_a_shard_that_shrinks_or_goes_away_spoils_its_records_only(tmp_path: Path) -> None:
    shards = [write_tar(tmp_path / f"{i}.tar", members(1, i)) for i in range(3)]
    pairs = TarDataset(shards)
    shards[0].write_bytes(shards[0].read_bytes()[:600])
    shards[1].unlink()
    assert reason(pairs, 0) == "unreadable (shard cut off since it was opened)"
    assert reason(pairs, 1) == "unreadable (FileNotFoundError)"
    assert pairs[2].captions == ("caption 2",)


@pytest.mark.parametrize(
    ("hole", "message"),
    [
        (slice(3072, 4096), "zeros at byte 3072 with data after it"),
        (slice(3072, None), "zero-filled from byte 3072"),
    ],
)
def test_a_hole_is_not_the_end(tmp_path: Path, hole: slice, message: str) -> None:
    """Else a shard that lost most of its samples counts as whole."""
    data = bytearray(write_tar(tmp_path / "a.tar", members(400)).read_bytes())
    assert len(data) > 3072 + 2**20
    data[hole] = bytes(len(data[hole]))
    (tmp_path / "b.tar").write_bytes(data)
    pairs = TarDataset([tmp_path / "b.tar"])
    assert len(pairs) == 1
    assert 395 <= pairs.skipped.counts["broken tar"] <= 405  # 399, and the padding
    assert message in pairs.skipped.examples["broken tar"][0]


@pytest.mark.parametrize("padding", [0, 512, 1024, 10_240, 2**20])
def test_any_usual_end_is_an_end(tmp_path: Path, padding: int) -> None:
    """None at all, one block, two, tar's blocking factor, other tools' larger ones."""
    whole = write_tar(tmp_path / "a.tar", members(2)).read_bytes()
    for name in ("a.tar", "b.tar"):  # a writer that leaves the mark off does so in all shards
        (tmp_path / name).write_bytes(whole[: 2 * 3072] + bytes(padding))
    dataset = TarDataset([tmp_path / "a.tar", tmp_path / "b.tar"])
    assert len(dataset) == 4
    assert dataset.skipped.total == 0


def test_a_shard_without_the_mark_of_the_end_is_counted(tmp_path: Path) -> None:
    """A download that stops after a member looks complete."""
    shards = [write_tar(tmp_path / f"{i}.tar", members(2, 2 * i)) for i in range(3)]
    shards[1].write_bytes(shards[1].read_bytes()[: 2 * 3072])
    for chosen in (shards, shards[1:2]):
        skipped = TarDataset(chosen).skipped
        assert skipped.counts == {"broken tar": 1}
        assert "no mark of the end" in skipped.examples["broken tar"][0]


def test_the_loss_in_a_shard_without_any_sample_is_estimated_from_the_others(
    tmp_path: Path,
) -> None:
    shards = [write_tar(tmp_path / f"{i}.tar", members(100, 100 * i)) for i in range(3)]
    data = bytearray(shards[1].read_bytes())
    data[100:200] = b"x" * 100
    shards[1].write_bytes(data)
    shards[2].unlink()
    pairs = TarDataset(shards)
    assert len(pairs) == 100
    assert 98 <= pairs.skipped.counts["broken tar"] <= 103
    assert 98 <= pairs.skipped.counts["unreadable tar"] <= 103
    assert "(estimated)" in pairs.skipped.examples["unreadable tar"][0]


def test_members_that_belong_to_no_sample_do_not_divide_one(tmp_path: Path) -> None:
    """macOS's tar puts ._a.jpg before a.jpg, ._a.txt before a.txt: every sample would be lost."""
    data = [
        (prefix + name, content)
        for stem in ("x/a", "x/b")
        for name, content in ((f"{stem}.jpg", PNG), (f"{stem}.txt", b"caption"))
        for prefix, name, content in (
            ("", name.replace("/", "/._"), b"\0\5\x16\7"),
            ("", "x/.jpg", b"no stem"),
            ("", "x/README", b"no suffix"),
            ("", name, content),
        )
    ]
    pairs = TarDataset([write_tar(tmp_path / "a.tar", data)])
    assert [pairs[i].captions for i in range(len(pairs))] == [("caption",), ("caption",)]
    assert pairs.skipped.total == 0
