"""`python -m cyclip_ext.info`: one fact per line, in every state of an installation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cyclip_ext
from cyclip_ext import info
from cyclip_ext.ops import BackendStatus


def test_runs_as_a_program() -> None:
    """A user who pastes the documented command gets a report, whatever is missing."""
    package = Path(cyclip_ext.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "cyclip_ext.info"],
        cwd=package,  # the copy under test, also where another one is installed
        capture_output=True,
        text=True,
        check=True,
    )
    for name in ("cyclip_ext", "torch", "open_clip", "cpu kernels", "cuda kernels"):
        assert any(line.startswith(name) for line in done.stdout.splitlines()), name
    assert torch.__version__ in done.stdout


@pytest.mark.parametrize(
    ("limit", "expected"), [("baseline", "baseline"), ("sse9", "unknown: CYCLIP_CPU_ISA must be")]
)
def test_instruction_set_follows_the_environment(limit: str, expected: str) -> None:
    """The choice is made once per process, and an unknown name does not end the report."""
    done = subprocess.run(
        [sys.executable, "-m", "cyclip_ext.info"],
        cwd=Path(cyclip_ext.__file__).parent.parent,
        env=os.environ | {"CYCLIP_CPU_ISA": limit},
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("instructions")]
    assert line.removeprefix("instructions").strip().startswith(expected)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (BackendStatus(False, False, "there is no C++ compiler"), "not built: there is no C++"),
        (BackendStatus(True, False, "libcudart is missing"), "not loaded: libcudart"),
        (BackendStatus(True, True, ""), "usable"),
    ],
)
def test_every_state_is_told_apart(status: BackendStatus, words: str) -> None:
    """Not built, not loaded and usable have different remedies."""
    assert words in info.backend_state("cpu", status)


def test_cuda_without_a_gpu_is_not_called_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that loads is of no use where there is no device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no GPU" in info.backend_state("cuda", BackendStatus(True, True, ""))


def test_a_module_that_breaks_at_import_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision beside a foreign torch raises RuntimeError; the report goes on."""
    (tmp_path / "brokenvision.py").write_text("raise RuntimeError('operator does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "operator does not exist" in info._import_of("brokenvision")
    assert "No module named" in info._import_of("module_that_nobody_wrote")


@pytest.mark.parametrize("text", [None, "{ half a file"])
def test_a_missing_or_broken_record_is_no_error(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run from a source tree there is no record; nor is a damaged one a reason to fail."""
    record = tmp_path / "_build_info.json"
    if text is not None:
        record.write_text(text)
    monkeypatch.setattr(info, "_RECORD", record)
    assert info._build().startswith("unknown")


def test_the_record_is_summarized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tools that were not there are left out instead of being printed as None."""
    record = tmp_path / "_build_info.json"
    facts = {"torch": "2.14.1", "cxx": "g++ 12", "nvcc": None, "cuda_architectures": None}
    record.write_text(json.dumps(facts | {"torch_target": "2.10"}))
    monkeypatch.setattr(info, "_RECORD", record)
    assert info._build() == "torch 2.14.1, C++ g++ 12; runs under torch 2.10 and later"
