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

from .files import coloured, encode, halves, pair, pairing, png, txt, write_tar

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
    """A negative size would return the reader to an earlier header, in an endless loop."""
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


def test_a_shard_that_is_written_again_is_not_read_at_old_places(tmp_path: Path) -> None:
    """The new samples may have the sizes of the old ones, in another order."""
    shard = write_tar(tmp_path / "0.tar", [("a.png", coloured(1)), ("a.txt", b"number 1")])
    early, late = TarDataset([shard]), TarDataset([shard])
    assert pairing(early) == {1: 1}  # opens the shard
    write_tar(shard, [("b.png", coloured(1)), ("a.txt", b"number 2")])
    os.utime(shard, (0, 0))  # clocks of file systems are coarse
    assert pairing(early) == {"unreadable (shard changed since it was opened)": 1}
    assert pairing(late) == {"unreadable (shard changed since it was opened)": 1}


@pytest.mark.parametrize(
    ("hole", "message"),
    [
        (slice(3072, 4096), "zeros at byte 3072 with data after it"),
        (slice(3072, None), "zero-filled from byte 3072"),
    ],
)
def test_a_hole_is_not_the_end(tmp_path: Path, hole: slice, message: str) -> None:
    """Otherwise a shard that lost most of its samples would be read as complete."""
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
    """An archive ends with no block of zeros, one, two, or as many as a tool pads to."""
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
    assert pairs.skipped.counts == {"member without a suffix": 4}  # x/README


# Damage


def test_pax_headers_with_absurd_numbers_are_damage(tmp_path: Path) -> None:
    """A number of 5,000 digits raises in int(), and one huge header fills the memory."""
    good = write_tar(tmp_path / "0.tar", members(2))
    for number, record in enumerate((b"size=" + b"1" * 5000, b"1" * 5000 + b" x=y")):
        body = record + b"\n"
        body = b"%d %s" % (len(body) + 5, body) if number == 0 else body
        info = tarfile.TarInfo("h")
        info.type, info.size = tarfile.XHDTYPE, len(body)
        header = info.tobuf(tarfile.USTAR_FORMAT)
        padding = bytes(-len(body) % 512)
        path = tmp_path / f"{number + 1}.tar"
        path.write_bytes(header + body + padding + good.read_bytes())
        dataset = TarDataset([good, path])
        assert len(dataset) == 2
        assert dataset.skipped.counts["broken tar"] >= 1
    info.size = 2**33
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    os.truncate(path, 2**34)  # sparse
    with path.open("rb") as file, pytest.raises(BrokenTar, match="bytes of metadata"):
        list(read_members(file))


@pytest.mark.parametrize("suffix", [".png", ".txt"])
def test_members_that_fill_the_memory_are_counted(tmp_path: Path, suffix: str) -> None:
    with (tmp_path / "a.tar").open("wb") as file:
        for name, data in pair("a", 1):
            info = tarfile.TarInfo(name)
            info.size = 2**35 if name.endswith(suffix) else len(data)
            file.write(info.tobuf(tarfile.GNU_FORMAT) + data)
            file.seek(info.size - len(data) + -info.size % 512, os.SEEK_CUR)  # sparse
        file.truncate(file.tell() + 1024)
    assert reason(TarDataset([tmp_path / "a.tar"]), 0) == "too large"


def test_an_archive_that_ends_inside_a_block_is_broken(tmp_path: Path) -> None:
    data = [m for i in range(10) for m in pair(str(i), i)]
    whole = write_tar(tmp_path / "a.tar", data).read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        end = archive.getmember("6.txt").offset_data + len(b"number 6")
    for cut in (end, end + 1, end + 100):
        (tmp_path / "b.tar").write_bytes(whole[:cut])
        dataset = TarDataset([tmp_path / "b.tar"])
        assert pairing(dataset) == dict.fromkeys(range(7), 1)
        assert dataset.skipped.counts == {"broken tar": 1}


def test_empty_shards_are_counted(tmp_path: Path) -> None:
    shards = [write_tar(tmp_path / "0.tar", [m for i in range(50) for m in pair(str(i), i)])]
    for number in range(1, 5):
        (tmp_path / f"{number}.tar").write_bytes(b"")
        shards.append(tmp_path / f"{number}.tar")
    dataset = TarDataset(shards)
    assert len(dataset) == 50
    assert 200 <= dataset.skipped.counts["empty shard"] <= 240  # estimated from the others
    assert dataset.skipped.counts.keys() == {"empty shard"}


# Labels


def test_labels(tmp_path: Path) -> None:
    data = [
        (png("a.png", 0), ("a.cls", b" 3\n")),
        (png("b.png", 1), ("b.cls", b"3.5")),
        (png("c.png", 2), txt("c.txt", 2)),
        (png("d.png", 3), ("d.cls", b"1"), txt("d.txt", 3)),
        (("e.cls", b"1"),),
        (png("f.png", 4), ("f.cls", b"9" * 5000)),
    ]
    shard = write_tar(tmp_path / "a.tar", [member for sample in data for member in sample])
    labelled = TarDataset([shard], labelled=True)
    assert labelled.labels is not None
    assert labelled.labels.tolist() == [3, 1]
    assert [labelled[i].label for i in range(2)] == [3, 1]
    assert labelled.skipped.counts == {"no image file": 1, "no .cls file": 1, "broken label": 2}
    captioned = TarDataset([shard])
    assert pairing(captioned) == {2: 1, 3: 1}
    assert captioned.skipped.counts == {"no image file": 1, "no caption file": 3}
    assert labelled.fingerprint() != captioned.fingerprint()
