"""The decisions of the build: what it finds, what it compiles, and the reasons it records.

Complete installations take minutes and are part of .ci/run (docs/install.md). Most of these tests
replace the compilers by stubs.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
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
    """Remove the variables that the person running the tests may have set."""
    for name in (
        *("CXX", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST"),
        *("CYCLIP_BUILD_CUDA", "FORCE_CUDA", "CYCLIP_WERROR"),
        *("VIRTUAL_ENV", "CONDA_PREFIX", "PIP_BUILD_TRACKER"),
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(ROOT)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a function that sets what the build finds."""

    def has(
        torch: Torch | None = TORCH_CUDA,
        cxx: CxxCompiler | None = GCC,
        cuda: CudaToolkit | None = CUDA_13,
    ) -> None:
        monkeypatch.setattr(plan, "find_torch", lambda: torch)
        monkeypatch.setattr(plan, "find_cxx", lambda: cxx)
        monkeypatch.setattr(plan, "find_cuda", lambda major: cuda)

    return has


def make_program(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def make_toolkit(home: Path, release: str = "13.0") -> None:
    """Write an nvcc that prints its folder, its release and its architectures."""
    script = f"""case "$*" in
    *--dryrun*) echo '#$ _SPACE_= ' >&2; echo '#$ TOP={home}/bin/..' >&2 ;;
    *--list-gpu-arch*) echo compute_80; echo compute_90; echo compute_121 ;;
    *) echo 'Cuda compilation tools, release {release}, V{release}.88' ;;
esac"""
    make_program(home / "bin" / "nvcc", script)


# ---------------------------------------------------------------- toolchain


def test_toolkit_behind_a_wrapper_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of a wrapper script holds no headers."""
    make_toolkit(tmp_path / "toolkit")
    make_program(tmp_path / "bin" / "nvcc", f'exec {tmp_path}/toolkit/bin/nvcc "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    assert toolchain.find_cuda() == CudaToolkit(
        tmp_path / "toolkit", "13.0", frozenset({"8.0", "9.0", "12.1"})
    )


def test_cuda_home_overrides_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_toolkit(tmp_path / "chosen")
    make_toolkit(tmp_path / "other")
    monkeypatch.setenv("PATH", f"{tmp_path}/other/bin:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "chosen"))
    found = toolchain.find_cuda()
    assert found.home == tmp_path / "chosen"


def test_wrong_cuda_home_is_not_replaced_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert toolchain.find_cuda() is None


def test_cuda_wheels_are_found_on_the_import_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheels have no plain libcudart.so; the toolkit of torch's CUDA version comes first."""
    home = tmp_path / "site" / "nvidia" / "cu13"
    make_toolkit(home)
    (home / "lib").mkdir()
    (home / "lib" / "libcudart.so.13").touch()
    make_toolkit(tmp_path / "old", release="12.6")
    monkeypatch.setenv("PATH", f"{tmp_path}/old/bin:/usr/bin:/bin")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "site")])
    monkeypatch.setattr(toolchain, "DEFAULT_HOME", tmp_path / "none")
    found = toolchain.find_cuda("13")
    assert (found.home, found.library_dir) == (home, home / "lib")
    assert found.runtime_library == ":libcudart.so.13"


@pytest.mark.parametrize("folder", ["include", "targets/x86_64-linux/include"])
def test_headers_of_the_toolkit_are_found(folder: str, tmp_path: Path) -> None:
    """conda's packages have an include folder as well, that of all other packages."""
    for created in ("include", folder):
        (tmp_path / created).mkdir(parents=True, exist_ok=True)
    (tmp_path / folder / "cuda_runtime_api.h").touch()
    toolkit = CudaToolkit(tmp_path, "13.0", frozenset())
    assert toolkit.include_dir == tmp_path / folder


def test_missing_compiler_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert toolchain.find_cxx() is None


def test_torch_is_found_without_importing_it() -> None:
    found = toolchain.find_torch()
    assert (found.version, found.cuda) == (torch.__version__, torch.version.cuda)


@pytest.mark.parametrize(
    ("known", "stated", "expected"),
    [
        ({"8.0", "9.0", "10.0", "11.0", "12.0"}, None, "8.0;9.0;10.0+PTX;12.0+PTX"),
        ({"8.0", "9.0"}, None, "8.0;9.0+PTX"),  # an older nvcc
        ({"8.0", "9.0"}, "8.6+PTX", "8.6+PTX"),
        # Containers state all architectures of their torch; the kernels need 8.0.
        ({"8.0", "9.0"}, "7.0 7.5 8.0 8.6 9.0 10.0 12.0+PTX", "8.0;8.6;9.0;10.0;12.0+PTX"),
        ({"8.0", "9.0"}, "Turing;Ampere;Blackwell+Tegra", "Ampere;Blackwell+Tegra"),
        ({"8.0", "9.0"}, "7.5+PTX", ""),
    ],
)
def test_architectures(
    known: set[str], stated: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nvcc fails on architectures it does not support, and later GPUs need the PTX."""
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


# ---------------------------------------------------------------- plan


def test_both_libraries_are_built_if_everything_is_found(machine: Machine) -> None:
    machine()
    made = plan.make_plan()
    assert made.missing == {}
    assert [e.name for e in made.extensions()] == ["cyclip_ext._C", "cyclip_ext._C_cuda"]
    cpu, cuda = (set(e.sources) for e in made.extensions())
    assert {"csrc/ops/schemas.cpp", "csrc/kernels/cpu/product.cpp"} <= cpu
    assert {"csrc/ops/cuda/row_norms.cpp", "csrc/kernels/cuda/row_norms.cu"} <= cuda
    assert not cpu & cuda


def test_nvcc_flags_name_no_folder(machine: Machine) -> None:
    """torch adds no architecture if a flag contains "arch", such as a path with "research"."""
    machine(
        torch=Torch(Path("/research/torch"), "2.14.1+cu130", "13.0"),
        cuda=CudaToolkit(Path("/research/cuda"), "13.0", CUDA_13.architectures),
    )
    for extension in plan.make_plan().extensions():
        assert not [flag for flag in extension.extra_compile_args["nvcc"] if "arch" in flag]
        assert any("/research/torch" in flag for flag in extension.extra_compile_args["cxx"])


def test_only_gpus_that_are_too_old(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.0;7.5")
    machine()
    made = plan.make_plan()
    assert "'7.0;7.5', but the CUDA kernels need" in made.missing["cuda"]


def test_sources_for_hopper_have_their_own_architecture(machine: Machine) -> None:
    """No other file is compiled for it, and nvcc rejects its instructions elsewhere."""
    machine()
    made = plan.make_plan()
    sources = made.hopper_sources
    assert "csrc/kernels/cuda/hopper_product.cu" in sources
    assert not {*sources} & {source for e in made.extensions() for source in e.sources}
    assert "-gencode=arch=compute_90a,code=sm_90a" in made.hopper_command(sources[0], "x.o")


@pytest.mark.parametrize(
    ("found", "missing", "words"),
    [
        ({"cxx": None}, {"cpu", "cuda"}, "no C++ compiler was found"),
        ({"torch": None}, {"cpu", "cuda"}, "install torch"),
        ({"torch": TORCH_CPU}, {"cuda"}, "built without CUDA"),
        ({"cuda": None}, {"cuda"}, "no nvcc was found"),
        ({"cuda": CUDA_12}, {"cuda"}, "CUDA 12.6, but torch 2.14.1+cu130 uses CUDA 13.0"),
    ],
)
def test_missing_tool_is_recorded_with_its_remedy(
    found: dict[str, None], missing: set[str], words: str, machine: Machine
) -> None:
    machine(**found)
    made = plan.make_plan()
    assert set(made.missing) == missing
    assert words in made.missing["cuda"]
    assert len(made.extensions()) == 2 - len(missing)


@pytest.mark.parametrize("variable", ["CYCLIP_BUILD_CUDA", "FORCE_CUDA"])
def test_required_cuda_fails_the_build_if_it_is_missing(
    variable: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    machine(cuda=None)
    with pytest.raises(SystemExit, match="CYCLIP_BUILD_CUDA=1 is set, but no nvcc"):
        plan.make_plan()
    machine()
    assert [bool(e.optional) for e in plan.make_plan().extensions()] == [False, False]


def test_cuda_library_may_fail_to_compile_unless_required(machine: Machine) -> None:
    machine()
    assert [bool(e.optional) for e in plan.make_plan().extensions()] == [False, True]


def test_cuda_can_be_declined(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """CYCLIP_BUILD_CUDA=0 overrides FORCE_CUDA, which may be set for other packages."""
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
    if stated is not None:
        monkeypatch.setenv("CYCLIP_WERROR", stated)
    machine(cxx=CxxCompiler("c++", compiler))
    for extension in plan.make_plan().extensions():
        assert ("-Werror" in extension.extra_compile_args["cxx"]) is strict
        assert ("--Werror=all-warnings" in extension.extra_compile_args["nvcc"]) is strict
        assert (plan.SPILL_NVCC_FLAGS[0] in extension.extra_compile_args["nvcc"]) is (stated == "1")


def test_target_version_is_the_oldest_torch(machine: Machine) -> None:
    """A wrong byte would silently tie the libraries to the torch that they were built with."""
    major, minor = map(int, plan.TORCH_TARGET.split("."))
    assert int(plan.TORCH_TARGET_VERSION, 16) == major << 56 | minor << 48
    assert (major, minor) == backend.OLDEST_TORCH
    machine()
    for extension in plan.make_plan().extensions():
        assert extension.py_limited_api
        assert "torch_python" not in extension.libraries  # it is not stable


def test_sources_use_only_macros_of_the_oldest_torch() -> None:
    """The target version hides newer functions of LibTorch's headers, but not newer macros."""
    of_torch_2_10 = {
        *("STABLE_TORCH_LIBRARY", "STABLE_TORCH_LIBRARY_FRAGMENT", "STABLE_TORCH_LIBRARY_IMPL"),
        *("STD_CUDA_CHECK", "STD_TORCH_CHECK", "TORCH_BOX", "TORCH_ERROR_CODE_CHECK"),
    }
    text = "".join(path.read_text() for path in sorted((ROOT / "csrc" / "ops").rglob("*.[ch]*")))
    found = set(re.findall(r"\b(?:[A-Z]+_)*(?:STD|TORCH)_[A-Z_]+(?=\()", text))
    assert found == of_torch_2_10


# ---------------------------------------------------------------- build requirements


def make_torch(site: Path, version: str, cuda: str | None) -> None:
    (site / "torch").mkdir(parents=True)
    (site / "torch" / "__init__.py").touch()
    (site / "torch" / "version.py").write_text(f"__version__ = {version!r}\ncuda = {cuda!r}\n")


CUDA_WHEELS = [
    f"nvidia-{name}==13.0.*"
    for name in ("cuda-nvcc", "nvvm", "cuda-crt", "cuda-runtime", "cuda-cccl")
]


@pytest.mark.parametrize(
    ("version", "cuda", "toolkit", "requirements"),
    [
        ("2.14.1+cu130", "13.0", CUDA_13, ["ninja"]),
        ("2.10.0", None, None, ["ninja"]),
        ("2.14.1+cu130", "13.0", None, ["ninja", *CUDA_WHEELS]),
        ("2.14.1+cu130", "13.0", CUDA_12, ["ninja", *CUDA_WHEELS]),
        ("2.14.1+cu126", "12.6", None, ["ninja"]),  # the wheels of CUDA 12 have no nvcc
        ("2.9.1", None, None, ["ninja", "torch>=2.10"]),  # pip is about to replace it
        (None, None, None, ["ninja", "torch>=2.10"]),
    ],
)
def test_build_requires_only_what_is_not_installed(
    version: str | None,
    cuda: str | None,
    toolkit: CudaToolkit | None,
    requirements: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An isolated build must not download a second torch, perhaps for another CUDA version."""
    if version is not None:
        make_torch(tmp_path, version, cuda)
    monkeypatch.setattr(backend, "target_pythons", lambda: ["python"])
    monkeypatch.setattr(backend, "import_path_of", lambda python: [str(tmp_path)])
    monkeypatch.setattr(backend, "find_cxx", lambda: GCC)
    monkeypatch.setattr(backend, "find_cuda", lambda major: toolkit)
    assert backend.get_requires_for_build_wheel() == requirements
    assert backend.get_requires_for_build_editable() == requirements


def test_nvcc_is_not_required_if_cuda_is_declined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_torch(tmp_path, "2.14.1+cu130", "13.0")
    monkeypatch.setattr(backend, "import_path_of", lambda python: [str(tmp_path)])
    monkeypatch.setattr(backend, "find_cxx", lambda: GCC)
    monkeypatch.setattr(backend, "find_cuda", lambda major: None)
    monkeypatch.setenv("CYCLIP_BUILD_CUDA", "0")
    assert backend.get_requires_for_build_wheel() == ["ninja"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the wheels of CUDA are for Linux")
def test_nvcc_from_pypi_compiles_and_links_without_a_toolkit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Downloads the real packages; the toolkit of this machine, if it has one, is hidden."""
    folders = os.environ["PATH"].split(os.pathsep)
    hidden = [folder for folder in folders if not (Path(folder) / "nvcc").exists()]
    monkeypatch.setenv("PATH", os.pathsep.join(hidden))
    monkeypatch.setattr(toolchain, "DEFAULT_HOME", tmp_path / "none")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "site")])
    assert toolchain.find_cuda("13") is None
    wheels = backend._nvcc_requirements(TORCH_CUDA)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-cache-dir"]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), *wheels], check=True)
    found = toolchain.find_cuda("13")
    assert (found.version, found.home.parent.parent) == ("13.0", tmp_path / "site")
    made = plan.Plan(TORCH_CUDA, toolchain.find_cxx(), found)
    compiled, library = str(tmp_path / "row_norms.o"), str(tmp_path / "row_norms.so")
    subprocess.run(made.hopper_command("csrc/kernels/cuda/row_norms.cu", compiled), check=True)
    runtime = f"-L{found.library_dir}", f"-l{found.runtime_library}"
    link = ["c++", "-shared", "-Wl,--no-undefined", compiled, *runtime, "-o", library]
    subprocess.run(link, check=True)


def test_pure_python_installation_requires_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "find_cxx", lambda: None)
    assert backend.get_requires_for_build_wheel() == []


def test_old_setuptools_fails_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(backend.setuptools, "__version__", "65.5.0")
    with pytest.raises(RuntimeError, match=r"found 65\.5\.0; run `pip install --upgrade"):
        backend.build_wheel(str(tmp_path))


def test_import_path_excludes_the_build_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip puts its build environment, which has no torch, on PYTHONPATH."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = backend.import_path_of(sys.executable)
    assert path
    assert str(tmp_path) not in path


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX", "PWD", "PATH"])
def test_other_frontends_use_the_torch_of_the_active_environment(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m build` and uv run the build in an interpreter without torch."""
    make_torch(tmp_path / "site", "2.14.1", None)
    program = f"exec {sys.executable} -c \"import json; print(json.dumps(['{tmp_path}/site']))\""
    make_program(tmp_path / (".venv/bin" if variable == "PWD" else "bin") / "python", program)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv(variable, str(tmp_path / ("bin" if variable == "PATH" else "")))
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    found = backend.installed_torch()
    assert found[0].root == tmp_path / "site" / "torch"
    monkeypatch.setenv("PIP_BUILD_TRACKER", "/tmp")  # pip builds with the target's interpreter
    assert backend.installed_torch() is None


# ---------------------------------------------------------------- the installed package


def test_installation_has_a_build_record() -> None:
    """`cyclip-info` and the error messages read these keys."""
    package = pytest.importorskip("cyclip_ext")
    record = Path(package.__file__).with_name("_build_info.json")
    if not record.exists():
        pytest.skip("not installed by pip")
    facts = json.loads(record.read_text())
    assert set(facts["libraries"]) == {"cpu", "cuda"}
    for library in facts["libraries"].values():
        assert library["built"] is (library["reason"] == "")
    assert re.fullmatch(r"2\.\d+", facts["torch_target"])
