"""Imports within the package have no cycle and point one way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import cyclip_ext

PACKAGE = Path(cyclip_ext.__file__).parent

# Subpackages and the subpackages that they may import. Modules beside them may use `distributed`.
MAY_IMPORT = {
    "distributed": set(),
    "grad_cache": {"models"},  # running statistics live beside batch norm
    "data": set(),
    "models": set(),
    "evaluation": {"data", "models"},
    "training": {"data", "models", "evaluation", "distributed", "grad_cache"},
}


def modules() -> dict[str, ast.Module]:
    """Return all modules of the package by their dotted names below it."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(name: str, tree: ast.Module, known: set[str]) -> Iterator[tuple[str, str | None]]:
    """Yield (module, imported name) of every import from the package that runs at import time."""
    is_package = (PACKAGE / name.replace(".", "/")).is_dir()
    for node in _executed(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = name.split(".") if name else []
        base = base[: len(base) - node.level + is_package]
        source = ".".join([*base, *(node.module.split(".") if node.module else [])])
        for alias in node.names:
            submodule = f"{source}.{alias.name}".lstrip(".")
            if submodule in known:
                yield submodule, None
            else:
                yield source, alias.name


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes outside of functions and of `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _executed(node)


def test_imports_have_no_cycle() -> None:
    trees = modules()
    graph = {
        name: {source for source, _ in imports(name, tree, set(trees)) if source != name}
        for name, tree in trees.items()
    }
    # A submodule may import siblings through `from . import`, which names the package itself.
    for name, sources in graph.items():
        sources -= {".".join(name.split(".")[:depth]) for depth in range(name.count(".") + 1)}
    TopologicalSorter(graph).prepare()  # raises CycleError, naming the modules


def test_imports_between_subpackages_point_one_way() -> None:
    trees = modules()
    wrong = []
    for name, tree in trees.items():
        top = name.split(".")[0]
        for source, _ in imports(name, tree, set(trees)):
            other = source.split(".")[0]
            if (
                other in MAY_IMPORT
                and top != other
                and other not in MAY_IMPORT.get(top, {"distributed"})
            ):
                wrong.append(f"{name} imports {source}")
    assert not wrong
