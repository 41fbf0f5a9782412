"""Hooks of mkdocs: formulas as MathML, so that pages need no script, and links by title."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Replace the names of files in links such as [losses.md](losses.md) by their titles."""

    def titled(found: re.Match[str]) -> str:
        first = Path(config["docs_dir"], found[1]).read_text(encoding="utf-8").partition("\n")[0]
        return f"[{first.removeprefix('# ')}]({found[2]})"

    return re.sub(r"\[(\w+\.md)\]\((\1[^)]*)\)", titled, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Replace every formula that pymdownx.arithmatex marked by its MathML."""
    inline = r'<span class="arithmatex">\\\((.*?)\\\)</span>'
    block = r'<div class="arithmatex">\\\[(.*?)\\\]</div>'
    content = re.sub(inline, lambda found: _mathml(found[1], "inline"), content, flags=re.DOTALL)
    return re.sub(block, lambda found: _mathml(found[1], "block"), content, flags=re.DOTALL)


def _mathml(latex: str, display: str) -> str:
    formula: str = convert(html.unescape(latex).strip(), display=display)
    return f'<div class="formula">{formula}</div>' if display == "block" else formula
