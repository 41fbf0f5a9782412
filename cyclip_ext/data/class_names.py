"""Names of classes: from `classnames.txt` beside the images, and from folders."""

from __future__ import annotations

from pathlib import Path

from .._files import read_text

CLASS_NAMES_FILE = "classnames.txt"


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, trimmed, without the blank ones at its end.

    Raises ValueError if it is not UTF-8.
    """
    text = read_text(path)
    # Not splitlines: it also splits at rare characters, and shifts all labels that follow.
    return [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []


def read_names(path: Path) -> tuple[str, ...]:
    """Return one name a line, line k that of label k.

    Raises ValueError for a line, or a file, without a name.
    """
    names = read_lines(path)
    if not names:
        raise ValueError(f"{path} must have a class name a line, but is empty")
    for number, name in enumerate(names, 1):
        if not name:
            raise ValueError(
                f"{path}:{number}: a class needs a name, and line k is that of label k"
            )
    return tuple(names)


def readable(name: str) -> str:
    """Return the name of a folder as a prompt has it: "golden_retriever" is "golden retriever"."""
    return " ".join(name.replace("_", " ").split()) or name
