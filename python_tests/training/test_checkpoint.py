"""Damaged checkpoints are skipped, and the newest intact one is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cyclip_ext.training.checkpoint import Checkpoints, load_checkpoint, save_checkpoint


def checkpoints(folder: Path) -> Checkpoints:
    made = Checkpoints(folder)
    made.prepare()
    return made


def flip_a_bit(path: Path) -> None:
    """Flip a bit in the middle of a weight, which torch.load does not detect."""
    data = bytearray(path.read_bytes())
    at = bytes(data).index(torch.full((256,), 1.5).numpy().tobytes()) + 500
    data[at] ^= 1
    path.write_bytes(data)
    torch.load(path, weights_only=True)  # indeed


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def state(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "model": {"weight": torch.full((256,), 1.5)}}


def test_failed_write_leaves_the_former_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"epoch": 1})

    def fails(state: object, file: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, {"epoch": 2})
    assert load_checkpoint(path)["epoch"] == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage", [flip_a_bit, cut_off, Path.unlink])
def test_newest_intact_checkpoint_is_found(tmp_path: Path, damage: Any) -> None:
    saved = checkpoints(tmp_path)
    assert saved.newest() is None
    for epoch in (1, 2, 3):
        saved.save_last(state(epoch))
    lines: list[str] = []
    assert saved.newest(lines.append)["epoch"] == 3  # type: ignore[index]
    assert not lines
    damage(tmp_path / "checkpoints" / "last.pt")
    assert saved.newest(lines.append)["epoch"] == 2  # type: ignore[index]
    assert len(lines) == (damage is not Path.unlink)


def test_permanent_checkpoints_are_tried_last(tmp_path: Path) -> None:
    saved = checkpoints(tmp_path)
    saved.keep(state(9), 9)
    saved.keep(state(10), 10)
    saved.save_last(state(11))
    cut_off(tmp_path / "checkpoints" / "last.pt")
    assert saved.newest(str)["epoch"] == 10  # type: ignore[index]


def test_damaged_checkpoints_alone_are_an_error(tmp_path: Path) -> None:
    saved = checkpoints(tmp_path)
    saved.save_last(state(1))
    flip_a_bit(tmp_path / "checkpoints" / "last.pt")
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read: .*the checksum of"):
        saved.newest(str)


def test_temporary_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    saved = checkpoints(tmp_path)
    torn = tmp_path / "checkpoints" / ".last.pt.4711.tmp"
    torn.write_bytes(b"half")
    saved.save_last(state(1))
    saved.prepare()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.pt"]


def test_errors_name_the_file_and_its_problem(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no checkpoint at"):
        load_checkpoint(tmp_path / "last.pt")
    (tmp_path / "x.pt").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"not a file of torch\.save"):
        load_checkpoint(tmp_path / "x.pt")
    torch.save({"format": 1}, tmp_path / "old.pt")
    with pytest.raises(ValueError, match="has format 1"):
        load_checkpoint(tmp_path / "old.pt")
