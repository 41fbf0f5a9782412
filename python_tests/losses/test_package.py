"""The package: what importing it loads, what it exports, and which names its modules share."""

from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

import cyclip_ext
from cyclip_ext import _dispatch, libraries
from cyclip_ext._dispatch import Options


def test_losses_load_torch_alone(run_program: Callable[..., str]) -> None:
    loaded = run_program(
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import cyclip_ext\n"
        "x, y = torch.randn(2, 4, 3).requires_grad_()\n"
        "cyclip_ext.CyCLIPLoss(margin=0.1, hinge=0.1)(x, y, torch.tensor(10.0)).backward()\n"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))\n"
    ).split()
    # triton belongs to torch, whose FLOP counter imports it.
    foreign = set(loaded) - set(sys.stdlib_module_names) - {"cyclip_ext", "torch", "triton"}
    assert not foreign


def test_losses_run_without_compiled_libraries(
    tmp_path: Path, run_program: Callable[..., str]
) -> None:
    """Without a compiler, the package is installed as pure Python."""
    libraries = shutil.ignore_patterns("*.so", "_build_info.json", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "cyclip_ext", ignore=libraries)
    printed = run_program(
        "import sys, warnings\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import torch, cyclip_ext, cyclip_ext.info\n"
        f"assert cyclip_ext.__file__.startswith({str(tmp_path)!r})\n"
        "x, y = torch.randn(2, 4, 3).requires_grad_()\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    cyclip_ext.CyCLIPLoss()(x, y, torch.tensor(10.0)).backward()\n"
        "print(caught[0].message, cyclip_ext.info.describe())\n"
    )
    assert "dense PyTorch reference" in printed
    assert "not built" in printed


@pytest.mark.parametrize(
    ("capability", "remedy"), [((7, 5), "8.0 or later"), ((9, 0), "TORCH_CUDA_ARCH_LIST")]
)
def test_gpu_without_compiled_kernels_takes_the_reference(
    capability: tuple[int, int], remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its operators exist, so that only the launch of a kernel would fail."""
    monkeypatch.setattr(libraries, "has_operator", lambda name, device: True)
    monkeypatch.setattr(libraries, "build_record", lambda: {"cuda_architectures": "8.0;12.0+PTX"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda index: (capability, (8, 6))[index]
    )
    libraries.why_not_on_gpu.cache_clear()
    _dispatch._warn_once.cache_clear()
    unsupported, supported = (
        mock.Mock(device=torch.device("cuda", index), is_cuda=True) for index in range(2)
    )
    with pytest.warns(UserWarning, match=f"GPU 0.*{remedy}"):
        assert not _dispatch.use_native("row_norms", unsupported, Options())
    with pytest.raises(RuntimeError, match=f"GPU 0.*{remedy}"):
        _dispatch.use_native("row_norms", unsupported, Options(backend="native"))
    assert _dispatch.use_native("row_norms", supported, Options(backend="native"))
    libraries.why_not_on_gpu.cache_clear()


def test_public_names_are_documented() -> None:
    for name in (
        "CLIPLoss",
        "CyCLIPLoss",
        "SigLIPLoss",
        "contrastive_loss",
        "cycle_consistency",
        "margin_loss",
        "hinge_margin_loss",
        "sigmoid_loss",
    ):
        assert callable(getattr(cyclip_ext, name))
        assert getattr(cyclip_ext, name).__doc__


PACKAGE = Path(cyclip_ext.__file__).parent
MODULES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


def _private_names(module: ast.Module) -> Iterator[str]:
    """Yield the underscore names that a module takes from other modules, ours or torch's."""
    imported = set()
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            if not (node.level or origin.split(".")[0] in ("torch", "cyclip_ext")):
                continue
            imported |= {alias.asname or alias.name for alias in node.names}
            for name in (*origin.lstrip(".").split("."), *(alias.name for alias in node.names)):
                # Modules such as _blocks are private to the package, which shares them.
                if name.startswith("_") and not (node.level and (PACKAGE / f"{name}.py").exists()):
                    yield f"{origin} {name}"
        elif isinstance(node, ast.Import):
            imported |= {
                (alias.asname or alias.name).split(".")[0]
                for alias in node.names
                if alias.name.split(".")[0] in ("torch", "cyclip_ext")
            }
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in imported and not _is_dunder(node.attr):
                yield ast.unparse(node)


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


@pytest.mark.parametrize("name", MODULES)
def test_no_module_takes_private_names_of_another(name: str) -> None:
    """Private names of torch are used in _torch_compat.py only, so a new torch affects one file."""
    private = set(_private_names(ast.parse((PACKAGE / name).read_text(encoding="utf-8"))))
    assert name == "_torch_compat.py" or not private
