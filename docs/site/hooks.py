"""Hooks of mkdocs: formulas as MathML, so that pages need no script, and links by title.

Also an extension of griffe, which reads the docstrings for the API reference.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Replace the names of files in links such as [losses.md](losses.md) by their titles."""

    def titled(found: re.Match[str]) -> str:
        return f"[{_title(config, found[1])}]({found[2]})"

    return re.sub(r"\[(\w+\.md)\]\((\1[^)]*)\)", titled, markdown)


def on_page_content(content: str, *, page: Any, config: Any, **_: Any) -> str:
    """Replace the formulas that pymdownx.arithmatex marked, and pages that docstrings name."""

    def linked(found: re.Match[str]) -> str:
        return f'<a href="../{found[1]}/">{_title(config, found[1] + ".md")}</a>'

    if page.file.src_uri == "api.md":
        content = re.sub(r"\bdocs/(\w+)\.md", linked, content)
    inline = r'<span class="arithmatex">\\\((.*?)\\\)</span>'
    block = r'<div class="arithmatex">\\\[(.*?)\\\]</div>'
    content = re.sub(inline, lambda found: _mathml(found[1], "inline"), content, flags=re.DOTALL)
    return re.sub(block, lambda found: _mathml(found[1], "block"), content, flags=re.DOTALL)


class Docstrings(griffe.Extension):
    """Shows formulas such as <x, y> in docstrings, which Markdown would take for HTML."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Escape every < outside of code."""
        if obj.docstring is not None:
            escaped = re.sub(r"(`[^`]*`)|<", lambda found: found[1] or "&lt;", obj.docstring.value)
            obj.docstring.value = escaped


def _title(config: Any, page: str) -> str:
    first = Path(config["docs_dir"], page).read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("# ")


def _mathml(latex: str, display: str) -> str:
    formula: str = convert(html.unescape(latex).strip(), display=display)
    return f'<div class="formula">{formula}</div>' if display == "block" else formula
