"""README and docs: links resolve, code blocks run, and the options of documented commands exist."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [*(ROOT / "examples").rglob("README.md"), ROOT / "benchmarks" / "README.md"]

# Documented commands by the modules that parse their arguments.
PARSERS = {
    "cyclip-train": "cyclip_ext.training.__main__",
    "cyclip-eval": "cyclip_ext.evaluation.__main__",
    "cyclip-data": "cyclip_ext.data.__main__",
    "examples/pretrain_cc3m.py": "cyclip_ext.training.__main__",
    "examples/evaluate.py": "cyclip_ext.evaluation.__main__",
    "cyclip_ext.training": "cyclip_ext.training.__main__",
    "cyclip_ext.evaluation": "cyclip_ext.evaluation.__main__",
    "cyclip_ext.data": "cyclip_ext.data.__main__",
}


def blocks(page: Path, language: str = "") -> Iterator[str]:
    """Return the fenced blocks of a language or, without a language, the indented blocks."""
    text = page.read_text(encoding="utf-8")
    yield from re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    if not language:
        yield from re.findall(r"(?:^ {4}\S.*\n?)+", text, flags=re.MULTILINE)


def commands() -> Iterator[tuple[str, str, list[str]]]:
    """Return (page, program, arguments) of every documented command of the package."""
    for page in PAGES:
        for block in [*blocks(page), *blocks(page, "sh"), *blocks(page, "bash")]:
            for line in block.replace("\\\n", " ").splitlines():
                for command in re.split(r"&&|\|\|?|;", line.split(" #")[0]):
                    try:
                        words = shlex.split(command)
                    except ValueError:
                        continue  # not a command
                    for index, word in enumerate(words):
                        if word in PARSERS:
                            yield page.name, word, words[index + 1 :]
                            break


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 90


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not missing


@pytest.mark.parametrize(("page", "program", "arguments"), [*commands()])
def test_options_of_documented_commands_exist(
    page: str, program: str, arguments: list[str]
) -> None:
    """A renamed option would leave a command in the docs that fails."""
    main = importlib.import_module(PARSERS[program])
    options = {word.split("=")[0] for word in arguments if word.startswith("--")}
    exports = arguments[:1] == ["export"]
    parser = main.build_export_parser() if exports else main.build_parser()
    for action in parser._actions:  # the options of a subcommand are those of its own parser
        if isinstance(action.choices, dict) and arguments and arguments[0] in action.choices:
            parser = action.choices[arguments[0]]
    known = {option for action in parser._actions for option in action.option_strings}
    assert options <= known | {"--help"}, f"{page}: {program}"


def test_dense_formula_of_the_readme_equals_the_loss() -> None:
    five_lines, dense = list(blocks(ROOT / "README.md", "python"))
    torch.manual_seed(0)
    values = {
        "F": F,
        "torch": torch,
        "image_features": torch.randn(37, 20, dtype=torch.float64, requires_grad=True),
        "text_features": torch.randn(37, 20, dtype=torch.float64, requires_grad=True),
        "logit_scale": torch.tensor(14.3, dtype=torch.float64),
    }
    exec(five_lines, values)
    loss = values["loss"].detach()
    assert values["image_features"].grad is not None
    exec(dense, values)
    torch.testing.assert_close(loss, values["loss"].detach(), rtol=1e-12, atol=0)
