"""Members of archives: their names, which decide to which sample they belong, and their types."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from cyclip_ext.data.tar import TarDataset
from cyclip_ext.data.tar_format import read_members

from .files import pair, pairing, png, txt, write_tar

TWO_IMAGES, TWO_CAPTIONS = "two images of one key", "two captions of one key"


@pytest.mark.parametrize(
    ("data", "used", "counted"),
    [
        pytest.param(
            [m for i in range(8) for m in pair(f"s{i}", i, ".input.png", ".outputs.txt")],
            {},
            {"no image file": 8},
            id="double suffixes",
        ),
        pytest.param(
            [m for i in range(8) for m in pair(f"photo v1.{i}" if i % 4 else f"photo{i}", i)],
            dict.fromkeys(range(8), 1),
            {},
            id="full stops in keys",
        ),
        pytest.param(
            [*pair("a.1", 1), *pair("a.2", 2), *pair("a", 3), png("a.4.png", 4)],
            {1: 1, 2: 1, 3: 1},
            {},  # a.4.png is an auxiliary image of a, such as a mask
            id="with and without full stops",
        ),
        pytest.param(
            [*pair("a.1", 1), png("a.2.png", 2), txt("a.3.txt", 3), png("a.4.png", 4)],
            {1: 1},
            {"no caption file": 2},  # one of them may be that of a.3.txt, by another name
            id="incomplete with full stops",
        ),
        pytest.param(
            [png("a.png", 1), png("a.jpeg", 2), txt("a.txt", 1)], {}, {TWO_IMAGES: 2}, id="two"
        ),
        pytest.param([*pair("a", 1), png("a.png", 2)], {}, {TWO_IMAGES: 2}, id="image again"),
        pytest.param([*pair("a", 1), txt("a.txt", 2)], {}, {TWO_CAPTIONS: 2}, id="text again"),
        pytest.param([*pair("a", 1), *pair("a", 2)], {1: 1, 2: 1}, {}, id="key twice"),
        pytest.param(
            [png("a.png", 1), png("a.png", 2), txt("a.txt", 1), txt("a.txt", 2)],
            {},
            {TWO_IMAGES: 2},
            id="key twice, mixed",
        ),
        pytest.param(
            [*(png(f"{i}.png", i) for i in range(5)), *(txt(f"{i}.txt", i) for i in range(1, 6))],
            dict.fromkeys(range(1, 5), 1),
            {"no caption file": 1, "no image file": 1},
            id="images first, then captions",
        ),
        pytest.param(
            [png("a.png", 1), png("b.png", 2), png("a.png", 3), txt("b.txt", 2), txt("a.txt", 1)],
            {2: 1},
            {TWO_IMAGES: 2},
            id="two images, apart",
        ),
        pytest.param(
            [("a.avif2", b"x"), ("a.caption", b"y"), ("LICENSE", b"z"), *pair("b", 2)],
            {2: 1},
            {"no image file": 1, "member without a suffix": 1},
            id="unknown suffixes",
        ),
        pytest.param(
            [png("a", 1), txt("a.txt", 1), png("x/b.", 2), *pair("c", 3), (".hidden", b"")],
            {3: 1},
            {"no image file": 1, "member without a suffix": 2},
            id="without suffixes",
        ),
        pytest.param(
            [png("./a.png", 1), txt("a.txt", 1), png("b.png", 2), txt("./b.txt", 2)],
            {1: 1, 2: 1},
            {},
            id="with and without ./",
        ),
        pytest.param(
            [png("A.PNG", 1), ("A.TXT", b"number 1"), ("x/", b""), *pair("x/b", 2)],
            {1: 1, 2: 1},
            {},
            id="capitals",
        ),
        pytest.param(
            [png("\udce9.png", 1), txt("\udce8.txt", 2), *pair("c", 3)],
            {3: 1},
            {"no caption file": 1, "no image file": 1},
            id="names that are not UTF-8",
        ),
    ],
)
def test_names_of_members(
    tmp_path: Path, data: list[tuple[str, bytes]], used: dict[int, int], counted: dict[str, int]
) -> None:
    dataset = TarDataset([write_tar(tmp_path / "a.tar", data)])
    assert pairing(dataset) == used
    assert dataset.skipped.counts == counted


def test_suffixes_are_named(tmp_path: Path) -> None:
    dataset = TarDataset([write_tar(tmp_path / "a.tar", pair("s", 0, ".input.png", ".out.txt"))])
    assert dataset.skipped.examples["no image file"][0].endswith("s (has .input.png, .out.txt)")


# Odd members


def write_odd(path: Path, kind: bytes) -> Path:
    """Write a sample whose image is a member of another type, and a whole one."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in [txt("a.txt", 0), *pair("b", 1)]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
            if name == "a.txt":
                odd = tarfile.TarInfo("a.png")
                odd.type = kind
                odd.linkname = "l" * 150 + "/target.png"  # a long one has a header of its own
                archive.addfile(odd)
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (tarfile.LNKTYPE, "hard link in a tar"),
        (tarfile.SYMTYPE, "symbolic link in a tar"),
        (tarfile.CHRTYPE, "device in a tar"),
        (tarfile.FIFOTYPE, "FIFO in a tar"),
        (b"M", "part of a file in another archive in a tar"),
        (b"?", "member of type '?' in a tar"),
    ],
)
def test_odd_members_are_counted(tmp_path: Path, kind: bytes, reason: str) -> None:
    dataset = TarDataset([write_odd(tmp_path / "a.tar", kind)])
    assert pairing(dataset) == {1: 1}
    assert dataset.skipped.counts == {reason: 1}


def test_a_link_with_a_long_target_keeps_its_own_long_name(tmp_path: Path) -> None:
    name = "n" * 150
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo(f"{name}.png")
        info.type, info.linkname = tarfile.SYMTYPE, "l" * 150
        archive.addfile(info)
    with (tmp_path / "a.tar").open("rb") as file:
        (member,) = read_members(file)
    assert member.name == f"{name}.png"
    assert member.odd == "symbolic link"


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize("format", ["gnu", "posix"])
def test_sparse_members_are_counted(tmp_path: Path, format: str) -> None:
    """Their bytes in the archive are not those of the file."""
    for stem, number in (("a", 0), ("b", 1)):
        for name, data in pair(stem, number):
            (tmp_path / name).write_bytes(data)
    with (tmp_path / "a.png").open("r+b") as file:
        for position in range(1, 30):  # more holes than fit into one header
            file.seek(position * 2**16)
            file.write(b"x")
    command = ["tar", f"--format={format}", "--sparse", "-cf", "s.tar", "a.png", "a.txt", "b.png"]
    subprocess.run([*command, "b.txt"], cwd=tmp_path, check=True)
    dataset = TarDataset([tmp_path / "s.tar"])
    assert pairing(dataset) == {1: 1}
    assert dataset.skipped.counts == {"sparse file in a tar": 1}
