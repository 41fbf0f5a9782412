"""README and docs: links resolve, code blocks run, and the options of documented commands exist."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from models.tiny import CONTEXT, VOCABULARY, create_tiny, write_checkpoint, write_run
from PIL import Image

import cyclip_ext
from cyclip_ext.models.export import export_run

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


def test_version_is_the_same_everywhere() -> None:
    version = cyclip_ext.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.*?)\]", changes, flags=re.MULTILINE)[0] == version


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


def python_blocks(page: Path) -> list[str]:
    """Return the Python blocks without those after a comment with the reason not to run them."""
    text = page.read_text(encoding="utf-8")
    marked = re.findall(r"<!-- not run: .+ -->\n+```python\n(.*?)^```", text, re.M | re.S)
    return [block for block in blocks(page, "python") if block not in marked]


def towers_and_batch() -> dict[str, Any]:
    """Return the variables that a reader of the pages has."""
    torch.manual_seed(0)
    model = create_tiny().model
    images, tokens = torch.randn(6, 3, 16, 16), torch.randint(1, VOCABULARY, (6, CONTEXT))
    rows = [torch.randn(37, 20, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    return {
        "F": F,
        "torch": torch,
        "model": model,
        "image_tower": model.visual,
        "text_tower": model.text,
        "images": images,
        "tokens": tokens,
        "batch": (images, tokens),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "image_features": rows[0],
        "text_features": rows[1],
        "logit_scale": torch.tensor(14.3, dtype=torch.float64),
        "anchors": rows[0],
        "positives": rows[1],
        "hard": rows[2],
    }


def write_files_of_cc3m(folder: Path) -> None:
    (folder / "Train_GCC-training.tsv").write_text('"a" caption\thttp://example.com/1.jpg\n')
    write_checkpoint(folder / "logs/cyclip/checkpoints/last.pt")


def write_run_and_images(folder: Path) -> None:
    write_run(folder / "logs/NAME", "mini")
    for name in ("cat", "dog"):
        (folder / "PATH" / name).mkdir(parents=True)
        for number in range(3):
            Image.effect_noise((20, 20), 50).save(folder / "PATH" / name / f"{number}.png")


def write_export(folder: Path) -> None:
    pytest.importorskip("safetensors")
    export_run(write_run(folder / "logs/NAME", "mini"), folder / "model", "safetensors")


FILES = {  # that the blocks of a page read
    "cc3m.md": write_files_of_cc3m,
    "evaluation.md": write_run_and_images,
    "training.md": write_export,
}
ELSEWHERE = {"integrations.md"}  # needs other packages; python_tests/integrations has its tests


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if python_blocks(page) and page.name not in ELSEWHERE],
    ids=lambda page: page.name,
)
@pytest.mark.usefixtures("process_group")
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    FILES.get(page.name, lambda folder: None)(tmp_path)
    values = towers_and_batch()
    for block in python_blocks(page):
        exec(compile(block, page.name, "exec"), values)


@pytest.fixture
def process_group() -> Iterator[None]:
    """Make this process the only rank, for blocks that run under torchrun."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_dense_formula_of_the_readme_equals_the_loss() -> None:
    five_lines, dense = python_blocks(ROOT / "README.md")
    values = towers_and_batch()
    exec(five_lines, values)
    loss = values["loss"].detach()
    assert values["image_features"].grad is not None
    exec(dense, values)
    torch.testing.assert_close(loss, values["loss"].detach(), rtol=1e-12, atol=0)
