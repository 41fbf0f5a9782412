"""The page of a study in docs/: Markdown, with its plots in a subfolder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from cyclip_ext._plotting import png
from cyclip_ext.evaluation.tables import markdown_table, show
from cyclip_ext.evaluation.tasks import Plot, Table

Part = str | Table | Plot


def write_page(path: Path, title: str, sections: Mapping[str, Sequence[Part]]) -> None:
    """Write a Markdown page; its plots are written to images/<stem of the page>/ in its folder.

    sections: heading -> paragraphs of Markdown, tables and plots, in order.
    """
    images = path.parent / "images" / path.stem
    lines = [f"# {title}", ""]
    for heading, parts in sections.items():
        if heading:
            lines += [f"## {heading}", ""]
        for part in parts:
            if isinstance(part, str):
                lines += [part, ""]
            elif isinstance(part, Table):
                lines += [f"**{part.title}**", ""] if part.title else []
                lines += markdown_table(show(part))
            else:
                images.mkdir(parents=True, exist_ok=True)
                (images / f"{part.name}.png").write_bytes(png(part.draw, part.size))
                lines += [f"![{part.caption}](images/{quote(path.stem)}/{part.name}.png)", ""]
                lines += [part.caption, ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines).rstrip() + "\n")


def existing_section(path: Path, heading: str) -> str:
    """Return the text under a heading of an existing page; "" if there is none."""
    if not path.is_file():
        return ""
    for section in path.read_text().split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        if title == heading:
            return text.strip()
    return ""
