"""Hooks of mkdocs: formulas become MathML at build time, so that pages need no script for them."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert


def on_page_content(content: str, **_: Any) -> str:
    """Replace every formula that pymdownx.arithmatex marked by its MathML."""
    inline = r'<span class="arithmatex">\\\((.*?)\\\)</span>'
    block = r'<div class="arithmatex">\\\[(.*?)\\\]</div>'
    content = re.sub(inline, lambda found: _mathml(found[1], "inline"), content, flags=re.DOTALL)
    return re.sub(block, lambda found: _mathml(found[1], "block"), content, flags=re.DOTALL)


def _mathml(latex: str, display: str) -> str:
    return convert(html.unescape(latex).strip(), display=display)
