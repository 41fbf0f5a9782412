"""`python -m cyclip_ext.info`: one fact per line, in every state of an installation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import cyclip_ext
from cyclip_ext import info, libraries
from cyclip_ext._output import quiet_if_output_closes
from cyclip_ext.libraries import BackendStatus

LOADED = BackendStatus(True, True, "")


@pytest.mark.parametrize(
    ("limit", "expected"), [("baseline", "baseline"), ("sse9", "unknown: CYCLIP_CPU_ISA must be")]
)
def test_program_shows_the_installation_and_the_instruction_set(limit: str, expected: str) -> None:
    """The set is chosen once per process, and an unknown name does not end the report."""
    done = subprocess.run(
        [sys.executable, "-m", "cyclip_ext.info"],
        cwd=Path(cyclip_ext.__file__).parent.parent,  # the copy under test
        env=os.environ | {"CYCLIP_CPU_ISA": limit},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    for name in ("cyclip_ext", "torch", "open_clip", "cpu kernels", "cuda kernels"):
        assert any(line.startswith(name) for line in lines), name
    assert torch.__version__ in done.stdout
    (line,) = [line for line in lines if line.startswith("instructions")]
    assert line.removeprefix("instructions").strip().startswith(expected)


@pytest.mark.parametrize(
    ("module", "words", "unbuffered"),
    [
        ("info", [], ""),
        ("info", [], "1"),  # print fails instead of the flush at the end
        ("data", ["--help"], ""),
        ("evaluation", ["--help"], ""),
        ("training", ["--help"], ""),
    ],
)
def test_program_ends_quietly_if_its_output_is_closed(
    module: str, words: list[str], unbuffered: str
) -> None:
    """As in `cyclip-info | head -1`."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", f"cyclip_ext.{module}", *words],
        cwd=Path(cyclip_ext.__file__).parent.parent,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write_end)
    assert (done.returncode in {0, 1}, done.stderr) == (True, "")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (BackendStatus(False, False, "there is no C++ compiler"), "not built: there is no C++"),
        (BackendStatus(True, False, "libcudart is missing"), "not loaded: libcudart"),
        (LOADED, "usable"),
    ],
)
def test_states_with_different_remedies_differ(status: BackendStatus, words: str) -> None:
    assert words in info.backend_state("cpu", status)


@pytest.mark.parametrize(
    ("engines", "expected"),
    [(["hopper: x", "hopper: x"], "hopper: x"), (["portable: a", "hopper: b"], "a, hopper: b")],
)
def test_engines_of_several_devices_appear_once(
    engines: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(engines))
    monkeypatch.setattr(torch.ops.cyclip_ext, "cuda_engine", engines.__getitem__, raising=False)
    assert info._cuda_engines().endswith(expected)


def test_cuda_library_without_a_gpu_is_not_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no GPU" in info.backend_state("cuda", LOADED, "8.0;9.0")


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((8, 0), "8.0;9.0;12.0+PTX", True),
        ((8, 6), "8.0;9.0;12.0+PTX", True),  # the same major version
        ((7, 5), "8.0;9.0;12.0+PTX", False),
        ((10, 0), "8.0;9.0;12.0+PTX", False),
        ((12, 1), "8.0;9.0;12.0+PTX", True),
        ((13, 0), "8.0 12.0+PTX", True),  # PTX is compiled for later GPUs
        ((9, 0), "9.0a", True),
        ((9, 1), "9.0a+PTX", False),
        ((8, 0), "8.6", False),
        ((8, 0), "Ampere", True),  # a name is not checked
    ],
)
def test_gpu_is_compared_with_what_was_built(
    capability: tuple[int, int], architectures: str, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report must show before the first launch that kernels for other GPUs will fail."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    state = info.backend_state("cuda", LOADED, architectures)
    if runs:
        assert state == "usable"
    else:
        version = ".".join(map(str, capability))
        assert f"not usable on A GPU (compute capability {version})" in state
        assert architectures in state


def _package(folder: Path, record: dict[str, Any], *files: str) -> Path:
    for file in files:
        (folder / file).touch()
    (folder / "_build_info.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize(
    ("files", "record", "cuda_of_torch", "words"),
    [
        (
            ["_C_cuda.abi3.so"],
            {"nvcc": "13.0"},
            "12.8",
            ["built, not loaded", "CUDA 13.0", "CUDA 12.8"],
        ),
        (
            [],
            {"libraries": {"cuda": {"built": False, "reason": "CYCLIP_BUILD_CUDA=0 was set"}}},
            None,
            ["not built", "CYCLIP_BUILD_CUDA=0 was set"],
        ),
        ([], {}, None, ["not built", "without CUDA"]),
    ],
    ids=["another CUDA", "switched off", "no record"],
)
def test_reason_for_a_missing_cuda_library(
    files: list[str],
    record: dict[str, Any],
    cuda_of_torch: str | None,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(libraries, "PACKAGE", _package(tmp_path, record, *files))
    monkeypatch.setattr(torch.version, "cuda", cuda_of_torch)
    status = libraries.load_cuda(cpu=LOADED)
    assert not status.loaded
    for word in words:
        assert word in info.backend_state("cuda", status)


def test_module_that_breaks_at_import_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision beside a foreign torch raises RuntimeError; the report goes on."""
    (tmp_path / "brokenvision.py").write_text("raise RuntimeError('operator does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "operator does not exist" in info.import_state("brokenvision")
    assert "No module named" in info.import_state("module_that_nobody_wrote")


@pytest.mark.parametrize("text", [None, "{ half a file", "[]"])
def test_missing_or_broken_record_is_not_an_error(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source tree has no build record, and an interrupted build may leave a damaged one."""
    if text is not None:
        (tmp_path / "_build_info.json").write_text(text)
    monkeypatch.setattr(libraries, "PACKAGE", tmp_path)
    assert info.build_tools(libraries.build_record()).startswith("unknown")


def test_record_is_summarized() -> None:
    """Tools that were not there are omitted instead of being printed as None."""
    facts = {"torch": "2.14.1", "cxx": "g++ 12", "nvcc": None, "cuda_architectures": None}
    tools = info.build_tools(facts | {"torch_target": "2.10"})
    assert tools == "torch 2.14.1, C++ g++ 12; runs under torch 2.10 and later"


def test_broken_pipe_of_something_else_is_not_hidden() -> None:
    with pytest.raises(BrokenPipeError, match="worker"), quiet_if_output_closes():
        raise BrokenPipeError("worker")
