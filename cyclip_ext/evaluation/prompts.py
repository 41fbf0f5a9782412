"""Prompt templates and class names: open_clip's by name, or from files.

open_clip's list for ImageNet names two pairs of classes alike ("missile", "sunglasses"). Classes
of one name tie, and here a tie counts against the model: their pictures are never top-1 hits, where
other programs let the first of the two win. It costs up to 0.2 points of accuracy on ImageNet.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from string import Formatter
from typing import Any

from .. import needs
from .text_files import read_text


def read_templates(source: str | Path, dataset: str | None = None) -> tuple[str, ...]:
    """Prompt templates with one "{}" each, for `class_embeddings`.

    source: "openai" (80 templates) or "simple" (7), open_clip's for ImageNet, or a file:
        .json  a list of templates, or CLIP_benchmark's object of lists by data set
        other  a template per line; blank lines are skipped
    A template has "{}", or CLIP_benchmark's "{c}", where the name goes. dataset: which list of an
    object; "vtab/pets" finds "pets", too.

    Raises: ValueError, naming the file and the line or entry, for a template without exactly one
    placeholder, a file without templates and a data set that is not in it; FileNotFoundError;
    MissingDependency for open_clip's names without open_clip.
    """
    if source in ("openai", "simple"):
        lists = {"openai": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}
        return tuple(template("{}") for template in getattr(needs.open_clip(), lists[str(source)]))
    path = _file(source, '"openai" or "simple"')
    entries = _read_list(path, dataset) if path.suffix == ".json" else _read_lines(path)
    templates = []
    for where, template in entries:
        if not isinstance(template, str):
            raise ValueError(f"{where}: a template must be a text, got {template!r}")
        templates.append(_normal_template(template, where))
    if not templates:
        raise ValueError(f"{path} has no templates")
    return tuple(templates)


def read_class_names(source: str | Path, dataset: str | None = None) -> tuple[tuple[str, ...], ...]:
    """One or several names of each class, in the order of the labels, for `class_embeddings`.

    source: "imagenet", open_clip's names of the 1000 classes, or a file:
        .json  a list, or CLIP_benchmark's object of lists by data set; an entry is a name or a
               list of synonyms
        other  a class per line, synonyms separated by "|"; blank lines are skipped
    The first name of a class is the one to show. dataset: see `read_templates`.

    Raises: ValueError, naming the file and the line or entry, for an empty name, for a file without
    names, for a data set that is not in it, and for a name that two classes of a text file share.
    In JSON files that is a warning, for CLIP_benchmark's own lists have such classes.
    """
    if source == "imagenet":
        return tuple((name,) for name in needs.open_clip().IMAGENET_CLASSNAMES)
    path = _file(source, '"imagenet"')
    is_json = path.suffix == ".json"
    entries = _read_list(path, dataset) if is_json else _read_lines(path)
    classes: list[tuple[str, ...]] = []
    first: dict[str, str] = {}
    for where, entry in entries:
        names = _names_of(entry, where, separator=None if is_json else "|")
        for name in dict.fromkeys(names):
            if name in first:
                message = (
                    f"{where}: class name {name!r} already stands in {first[name]}; classes of one "
                    "name cannot be told apart, and ties count against the model: rename one"
                )
                if not is_json:
                    raise ValueError(message)
                warnings.warn(message, stacklevel=2)
            first.setdefault(name, where)
        classes.append(names)
    if not classes:
        raise ValueError(f"{path} has no class names")
    return tuple(classes)


def _file(source: str | Path, names: str) -> Path:
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{source} is neither a file nor {names}")
    return path


def _normal_template(template: str, where: str) -> str:
    normal = template.replace("{c}", "{}")
    try:
        fields = [name for _, name, _, _ in Formatter().parse(normal) if name is not None]
    except ValueError as error:
        raise ValueError(f"{where}: {template!r} is no template: {error}") from error
    if fields != [""]:
        raise ValueError(
            f'{where}: a template needs exactly one "{{}}" or "{{c}}" for the class name, got '
            f"{template!r}"
        )
    return normal


def _names_of(entry: Any, where: str, separator: str | None) -> tuple[str, ...]:
    if isinstance(entry, str):
        parts: list[Any] = [entry] if separator is None else entry.split(separator)
    else:
        parts = entry if isinstance(entry, list) else [entry]
    if not parts or not all(isinstance(part, str) and part.strip() for part in parts):
        raise ValueError(f"{where}: a class needs a name, or several, none empty; got {entry!r}")
    return tuple(part.strip() for part in parts)


def _read_lines(path: Path) -> list[tuple[str, str]]:
    """(file and line for messages, text) of the lines that are not blank."""
    # Not splitlines: it cuts at rare characters, too, and shifts all labels that follow.
    lines = read_text(path).split("\n")
    return [
        (f"{path}, line {number}", line.strip())
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def _read_list(path: Path, dataset: str | None) -> list[tuple[str, Any]]:
    """(file and entry for messages, entry) of a list, or of a data set's list in an object."""
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    where = str(path)
    if isinstance(content, dict):
        keys = [] if dataset is None else [dataset, dataset.rpartition("/")[2]]
        key = next((key for key in keys if key in content), None)
        if key is None:
            raise ValueError(
                f"{path} has lists for {', '.join(sorted(content)[:20])}; dataset must name one of "
                f"them, got {dataset!r}"
            )
        where, content = f"{path}, {key!r}", content[key]
    if not isinstance(content, list):
        raise ValueError(f"{where} must be a list of texts, got {type(content).__name__}")
    return [(f"{where}, entry {number}", entry) for number, entry in enumerate(content, 1)]
