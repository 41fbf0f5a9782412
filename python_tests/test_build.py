"""The decisions of the build: what it finds, what it compiles, what it says when it does not.

Whole installations take minutes and are tried by hand and by .ci/run (docs/install.md); here each
decision is put to fake compilers.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "csrc"))
plan = pytest.importorskip("build_support.plan", reason="needs the sources and setuptools")

from build_support import backend, toolchain  # noqa: E402
from build_support.toolchain import CudaToolkit, CxxCompiler, Torch  # noqa: E402

TORCH_CUDA = Torch(Path("torch"), "2.14.1+cu130", "13.0")
TORCH_CPU = Torch(Path("torch"), "2.13.0+cpu", None)
GCC = CxxCompiler("c++", "c++ (Debian 12.2.0-14) 12.2.0")
CUDA_13 = CudaToolkit(Path("/cuda"), "13.0", frozenset({"8.0", "9.0", "10.0", "12.0"}))
CUDA_12 = CudaToolkit(Path("/cuda"), "12.6", frozenset({"8.0", "9.0"}))

Machine = Callable[..., None]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see none of the variables that the person who runs them may have set."""
    for name in (
        *("CXX", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST"),
        *("CYCLIP_BUILD_CUDA", "FORCE_CUDA", "CYCLIP_WERROR"),
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(ROOT)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Sets what the build finds."""

    def has(
        torch: Torch | None = TORCH_CUDA,
        cxx: CxxCompiler | None = GCC,
        cuda: CudaToolkit | None = CUDA_13,
    ) -> None:
        monkeypatch.setattr(plan, "find_torch", lambda: torch)
        monkeypatch.setattr(plan, "find_cxx", lambda: cxx)
        monkeypatch.setattr(plan, "find_cuda", lambda: cuda)

    return has


def make_program(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def make_toolkit(home: Path) -> None:
    """An nvcc that answers what the build asks: its folder, its release, its architectures."""
    script = f"""case "$*" in
    *--dryrun*) echo '#$ _SPACE_= ' >&2; echo '#$ TOP={home}/bin/..' >&2 ;;
    *--list-gpu-arch*) echo compute_80; echo compute_90; echo compute_121 ;;
    *) echo 'Cuda compilation tools, release 13.0, V13.0.88' ;;
esac"""
    make_program(home / "bin" / "nvcc", script)


# ---------------------------------------------------------------- what is found


def test_toolkit_behind_a_wrapper_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of a wrapper tells nothing: its nvcc must be asked, or no header is found."""
    make_toolkit(tmp_path / "toolkit")
    make_program(tmp_path / "bin" / "nvcc", f'exec {tmp_path}/toolkit/bin/nvcc "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    assert toolchain.find_cuda() == CudaToolkit(
        tmp_path / "toolkit", "13.0", frozenset({"8.0", "9.0", "12.1"})
    )


def test_stated_toolkit_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA_HOME is how a user chooses between several toolkits."""
    make_toolkit(tmp_path / "chosen")
    make_toolkit(tmp_path / "other")
    monkeypatch.setenv("PATH", f"{tmp_path}/other/bin:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "chosen"))
    found = toolchain.find_cuda()
    assert found is not None
    assert found.home == tmp_path / "chosen"


def test_stated_toolkit_without_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong CUDA_HOME is reported, not replaced by whatever lies on PATH."""
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert toolchain.find_cuda() is None


def test_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pure Python installation starts here."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert toolchain.find_cxx() is None


def test_torch_is_found_without_importing_it() -> None:
    """Metadata is wanted in seconds, and the plan needs no more than torch's version."""
    found = toolchain.find_torch()
    assert found is not None
    assert (found.version, found.cuda) == (torch.__version__, torch.version.cuda)


@pytest.mark.parametrize(
    ("known", "stated", "expected"),
    [
        ({"8.0", "9.0", "10.0", "11.0", "12.0"}, None, "8.0;9.0;10.0+PTX;12.0+PTX"),
        ({"8.0", "9.0"}, None, "8.0;9.0+PTX"),  # an older nvcc
        ({"8.0", "9.0"}, "8.6+PTX", "8.6+PTX"),
    ],
)
def test_architectures(
    known: set[str], stated: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nvcc fails on architectures it does not know; later GPUs need the PTX."""
    if stated is not None:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", stated)
    toolkit = CudaToolkit(Path("/cuda"), "13.0", frozenset(known))
    assert toolchain.architectures_for(toolkit) == expected


@pytest.mark.parametrize(
    "device", ["8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1", "13.0"]
)
@pytest.mark.parametrize("newest", ["9.0", "12.0"])
def test_every_device_gets_code(device: str, newest: str) -> None:
    """Machine code runs on the same major version and a minor one that is not older; PTX on all."""
    versions = [(8, 0), (9, 0), (10, 0), (11, 0), (12, 0)]
    known = {f"{a}.{b}" for a, b in versions if (a, b) <= tuple(map(int, newest.split(".")))}
    toolkit = CudaToolkit(Path("/cuda"), "13.0", frozenset(known))
    major, minor = map(int, device.split("."))
    for built in toolchain.architectures_for(toolkit).split(";"):
        code = tuple(map(int, built.removesuffix("+PTX").split(".")))
        if code[0] == major and code[1] <= minor:
            return
        if built.endswith("+PTX") and code <= (major, minor):
            return
    pytest.fail(f"no code for {device}")


# ---------------------------------------------------------------- what is planned


def test_everything_is_built_where_all_is_there(machine: Machine) -> None:
    """Both libraries, under the names that cyclip_ext/ops.py looks for."""
    machine()
    made = plan.make_plan()
    assert made.missing == {}
    assert [e.name for e in made.extensions()] == ["cyclip_ext._C", "cyclip_ext._C_cuda"]
    cpu, cuda = (set(e.sources) for e in made.extensions())
    assert {"csrc/ops/schemas.cpp", "csrc/kernels/cpu/rows.cpp"} <= cpu
    assert {"csrc/ops/cuda/row_norms.cpp", "csrc/kernels/cuda/row_norms.cu"} <= cuda
    assert not cpu & cuda


@pytest.mark.parametrize(
    ("found", "missing", "words"),
    [
        ({"cxx": None}, {"cpu", "cuda"}, "no C++ compiler"),
        ({"torch": None}, {"cpu", "cuda"}, "install torch"),
        ({"torch": TORCH_CPU}, {"cuda"}, "without CUDA"),
        ({"cuda": None}, {"cuda"}, "no nvcc"),
        ({"cuda": CUDA_12}, {"cuda"}, "CUDA 12.6, but torch 2.14.1+cu130 uses CUDA 13.0"),
    ],
)
def test_what_is_missing_is_named(
    found: dict[str, None], missing: set[str], words: str, machine: Machine
) -> None:
    """A machine without some tool gets the rest, and its owner the reason."""
    machine(**found)
    made = plan.make_plan()
    assert set(made.missing) == missing
    assert words in made.missing["cuda"]
    assert len(made.extensions()) == 2 - len(missing)


@pytest.mark.parametrize("variable", ["CYCLIP_BUILD_CUDA", "FORCE_CUDA"])
def test_demanded_cuda_is_not_given_up(
    variable: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who demands CUDA must not find out at training time that it is not there."""
    monkeypatch.setenv(variable, "1")
    machine(cuda=None)
    with pytest.raises(SystemExit, match="demanded, but no nvcc"):
        plan.make_plan()
    machine()
    assert [bool(e.optional) for e in plan.make_plan().extensions()] == [False, False]


def test_cuda_is_optional_unless_demanded(machine: Machine) -> None:
    """A CUDA library that does not compile must not cost the CPU library."""
    machine()
    assert [bool(e.optional) for e in plan.make_plan().extensions()] == [False, True]


def test_cuda_can_be_declined(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """CYCLIP_BUILD_CUDA=0 saves its compilation, even where FORCE_CUDA is set for others."""
    monkeypatch.setenv("CYCLIP_BUILD_CUDA", "0")
    monkeypatch.setenv("FORCE_CUDA", "1")
    machine()
    assert "CYCLIP_BUILD_CUDA=0" in plan.make_plan().missing["cuda"]


@pytest.mark.parametrize(
    ("compiler", "stated", "strict"),
    [
        ("g++ (GCC) 12.3.0", None, True),
        ("g++ (GCC) 16.1.0", None, False),
        ("Ubuntu clang version 18.1.3", None, False),
        ("g++ (GCC) 16.1.0", "1", True),
        ("g++ (GCC) 12.3.0", "0", False),
    ],
)
def test_warnings_are_errors_for_tested_compilers(
    compiler: str,
    stated: str | None,
    strict: bool,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """New warnings of a newer compiler must not keep a user from installing."""
    if stated is not None:
        monkeypatch.setenv("CYCLIP_WERROR", stated)
    machine(cxx=CxxCompiler("c++", compiler))
    for extension in plan.make_plan().extensions():
        assert ("-Werror" in extension.extra_compile_args["cxx"]) is strict
        assert ("--Werror=all-warnings" in extension.extra_compile_args["nvcc"]) is strict


def test_target_version_is_what_it_says(machine: Machine) -> None:
    """A wrong byte would silently tie the libraries to the torch they were built with."""
    major, minor = map(int, plan.TORCH_TARGET.split("."))
    assert int(plan.TORCH_TARGET_VERSION, 16) == major << 56 | minor << 48
    assert (major, minor) == backend.OLDEST_TORCH
    machine()
    for extension in plan.make_plan().extensions():
        assert extension.py_limited_api
        assert "torch_python" not in extension.libraries  # it is not stable


# ---------------------------------------------------------------- what is asked of the index


def install_fake_torch(site: Path, version: str) -> None:
    metadata = site / f"torch-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")


@pytest.mark.parametrize(
    ("version", "requirements"),
    [
        ("2.14.1+cu130", ["ninja"]),
        ("2.10.0", ["ninja"]),
        ("2.9.1", ["ninja", "torch>=2.10"]),  # pip is about to replace it
        (None, ["ninja", "torch>=2.10"]),
    ],
)
def test_torch_of_the_target_is_used(
    version: str | None,
    requirements: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An isolated build must not download a second torch, perhaps of another CUDA."""
    if version is not None:
        install_fake_torch(tmp_path, version)
    monkeypatch.setattr(backend, "target_path", lambda: [str(tmp_path)])
    monkeypatch.setattr(backend, "find_cxx", lambda: GCC)
    assert backend.get_requires_for_build_wheel() == requirements
    assert backend.get_requires_for_build_editable() == requirements


def test_pure_python_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler several gigabytes of torch would be fetched for nothing."""
    monkeypatch.setattr(backend, "find_cxx", lambda: None)
    assert backend.get_requires_for_build_wheel() == []


def test_old_setuptools_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its own error speaks of project.license, which helps nobody."""
    monkeypatch.setattr(backend.setuptools, "__version__", "65.5.0")
    with pytest.raises(RuntimeError, match=r"found 65\.5\.0; run `pip install --upgrade"):
        backend.build_wheel(str(tmp_path))


def test_target_path_is_not_the_build_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip hands over its own PYTHONPATH; looking there finds no torch."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = backend.target_path()
    assert str(tmp_path) not in path
    assert backend.has_usable_torch(path) or not backend.has_usable_torch(sys.path)


# ---------------------------------------------------------------- the installed package


def test_record_of_this_installation() -> None:
    """`info` and the error messages read these keys."""
    package = pytest.importorskip("cyclip_ext")
    record = Path(package.__file__).with_name("_build_info.json")
    if not record.exists():
        pytest.skip("not installed by pip")
    facts = json.loads(record.read_text())
    assert set(facts["libraries"]) == {"cpu", "cuda"}
    for library in facts["libraries"].values():
        assert library["built"] is (library["reason"] == "")
    assert re.fullmatch(r"2\.\d+", facts["torch_target"])
