"""The documentation site: it builds without warnings, and shows docstrings as they are meant."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocstrings", reason='needs `pip install ".[docs]"`')
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site; mkdocs.yml makes every warning an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return folder


def text_of(page: Path) -> str:
    """Return the words of a page, separated by single spaces."""
    article = re.search(r"<article.*</article>", page.read_text(encoding="utf-8"), re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", article[0])))


def test_formulas_are_mathml(site: Path) -> None:
    losses = (site / "losses/index.html").read_text(encoding="utf-8")
    assert losses.count("<math") > 20
    assert "arithmatex" not in losses


def test_no_argument_is_shown_as_required(site: Path) -> None:
    """mkdocstrings does not have the defaults of arguments that are documented in a group."""
    text = text_of(site / "api/index.html")
    grouped = "labels, negative_text_features, negative_image_features"
    assert f"{grouped} \N{EN DASH} see the module" in text
    assert "<em>required</em>" not in (site / "api/index.html").read_text(encoding="utf-8")


def test_products_in_formulas_are_not_taken_for_html(site: Path) -> None:
    assert "1/N sum_jk (<x^_j, x^_k> - <y^_j, y^_k>)^2" in text_of(site / "api/index.html")


def test_choices_are_lists(site: Path) -> None:
    """Indented lines would be joined to one paragraph."""
    api = (site / "api/index.html").read_text(encoding="utf-8")
    for choice in ("auto", "native", "bf16", "world", "gather", "ring", "mask"):
        assert re.search(rf'<li>\s*(<p>)?"{choice}":', html.unescape(api)), choice


def test_api_reference_has_the_public_names_and_links_to_pages(site: Path) -> None:
    import cyclip_ext

    api = (site / "api/index.html").read_text(encoding="utf-8")
    missing = [name for name in cyclip_ext.__all__ if f".{name}" not in api]
    assert not missing
    assert '<a href="../distributed/">Losses over many ranks</a>' in api
    assert "docs/" not in text_of(site / "api/index.html")
