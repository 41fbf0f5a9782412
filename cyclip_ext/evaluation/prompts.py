"""Prompt templates and class names: open_clip's by name, or from files.

open_clip's list for ImageNet gives two pairs of classes one name ("missile", "sunglasses"). Classes
with the same name tie, and a tie counts against the model, so their images are never top-1 hits.
Other programs count the first class of the two. The difference is at most 0.2 points of accuracy
on ImageNet.
"""

from __future__ import annotations

import ast
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from .._files import read_text
from ..data import ImageDataset
from ..data.class_names import are_wordnet_ids, imagenet_ids, require_one_order
from ..models.tokenizers import import_open_clip

IMAGENET = "imagenet"

ClassNames = tuple[tuple[str, ...], ...]  # one or several names of each class


@dataclass(frozen=True)
class Prompts:
    """Class names and templates that replace those of a dataset; None keeps the dataset's own.

    names: one or several names per class, the first of which is shown. ids: the WordNet id of each
    entry of names, with which a dataset of some of the classes finds its own. templates: prompts
    with one "{}" for the name.
    """

    names: ClassNames | None = None
    ids: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None

    @classmethod
    def read(
        cls, class_names: str | None, templates: str | None, key: str | None = None
    ) -> Prompts:
        """Read both from command-line options; see read_class_names and read_templates."""
        return cls(
            None if class_names is None else read_class_names(class_names, key),
            imagenet_ids() if class_names == IMAGENET else None,
            None if templates is None else read_templates(templates, key),
        )

    def names_for(self, dataset: ImageDataset) -> ClassNames:
        """Return the names of each class of a dataset.

        Raises ValueError if there are names for another number of classes, and if the classes are
        ordered alphabetically although their numbers have another order.
        """
        own = dataset.class_names
        if self.names is None:
            return tuple((name,) for name in own)
        ids = getattr(dataset, "class_ids", own)  # of a folder of classes: the names of its folders
        if self.ids is not None and are_wordnet_ids(ids):
            by_id = dict(zip(self.ids, self.names, strict=True))
            unknown = [each for each in ids if each not in by_id]
            if unknown:
                raise ValueError(
                    f"--class-names {IMAGENET} has no name for {len(unknown)} of the {len(ids)} "
                    f"classes of {dataset.name} ({', '.join(unknown[:10])}); give a file with a "
                    "class name per line"
                )
            return tuple(by_id[each] for each in ids)
        if len(self.names) != len(own):
            hint = ""
            if self.ids is not None:
                hint = (
                    "; some of ImageNet's classes are recognized only if their folders are called "
                    f"by WordNet ids such as n02084071, but here they are {', '.join(own[:3])}, ..."
                )
            raise ValueError(
                f"class_names (--class-names): {len(self.names)} class names for the "
                f"{len(own)} classes of {dataset.name}; give one name per class{hint}"
            )
        if not all(each.isdecimal() for each in ids):
            require_one_order(ids, "class_names (--class-names)")
        return self.names


def read_templates(source: str | Path, key: str | None = None) -> tuple[str, ...]:
    """Read prompt templates with one "{}" each, for `class_embeddings`.

    Args:
        source: "openai" (80 templates) or "simple" (7), open_clip's for ImageNet, or a file. A
            .json file is a list of templates, or CLIP_benchmark's object of lists by dataset. Any
            other file has a template per line; blank lines are skipped. A line may be written as in
            Python source: lambda c: f"a photo of a {c}.", or "a photo of a {}.",
        key: Which list of an object; "vtab/pets" also finds "pets".

    "{}", or CLIP_benchmark's "{c}", marks the place of the name.

    Raises:
        ValueError: For a template without exactly one placeholder, a file without templates and a
            dataset that is not in it. The message names the file and the line or entry.
        FileNotFoundError: If the file does not exist.
        ImportError: For open_clip's lists if open_clip cannot be imported.
    """
    if source in ("openai", "simple"):
        lists = {"openai": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}
        chosen = getattr(import_open_clip(), lists[str(source)])
        return tuple(template("{}") for template in chosen)
    path = _file(source, '"openai" or "simple"')
    is_json = path.suffix == ".json"
    entries = _read_list(path, key) if is_json else _read_lines(path)
    templates = []
    for where, template in entries:
        if not isinstance(template, str):
            raise ValueError(f"{where}: a template must be a text, got {template!r}")
        templates.append(_normal_template(template if is_json else _unquoted(template), where))
    if not templates:
        raise ValueError(
            f"{path} has no templates; write one per line, with {{}} for the class name"
        )
    return tuple(templates)


def read_class_names(source: str | Path, key: str | None = None) -> ClassNames:
    """Read one or several names of each class, in the order of the labels.

    Args:
        source: "imagenet" for open_clip's names of the 1,000 classes, or a file. A .json file is a
            list, or CLIP_benchmark's object of lists by dataset; an entry is a name or a list of
            synonyms. Any other file has a class per line, synonyms separated by "|"; blank lines
            are skipped.
        key: See `read_templates`.

    The first name of a class is shown in reports.

    Raises:
        ValueError: For an empty name, a file without names, a dataset that is not in it, and a name
            that two classes of a text file share. The message names the file and the line or entry.
            In JSON files shared names are a warning, because CLIP_benchmark's own lists have them.
        FileNotFoundError: If the file does not exist.
        ImportError: For "imagenet" if open_clip cannot be imported.
    """
    if source == IMAGENET:
        return tuple((name,) for name in import_open_clip().IMAGENET_CLASSNAMES)
    path = _file(source, '"imagenet"')
    is_json = path.suffix == ".json"
    entries = _read_list(path, key) if is_json else _read_lines(path)
    classes: list[tuple[str, ...]] = []
    first: dict[str, str] = {}
    for where, entry in entries:
        names = _names_of(entry, where, separator=None if is_json else "|")
        for name in dict.fromkeys(names):
            if name in first:
                message = (
                    f"{where}: class name {name!r} is already in {first[name]}; classes with the "
                    "same name tie, and ties count against the model: rename one"
                )
                if not is_json:
                    raise ValueError(message)
                warnings.warn(message, stacklevel=2)
            first.setdefault(name, where)
        classes.append(names)
    if not classes:
        raise ValueError(
            f"{path} has no class names; write one per line, in the order of the labels"
        )
    return tuple(classes)


def _file(source: str | Path, names: str) -> Path:
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{source} is neither a file nor {names}")
    return path


def _unquoted(line: str) -> str:
    """Return the template of a line of Python source: a lambda over an f-string, or a string.

    Other lines are returned as they are.
    """
    try:
        node: ast.AST = ast.parse(line.strip().rstrip(","), mode="eval").body
    except (SyntaxError, ValueError, RecursionError):
        return line
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if not isinstance(node, ast.Lambda) or not isinstance(node.body, ast.JoinedStr):
        return line
    parts = []
    for part in node.body.values:
        if isinstance(part, ast.Constant):
            parts.append(str(part.value).replace("{", "{{").replace("}", "}}"))
        elif isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name):
            parts.append("{}")
        else:
            return line
    return "".join(parts)


def _normal_template(template: str, where: str) -> str:
    normal = template.replace("{c}", "{}")
    try:
        fields = [name for _, name, _, _ in Formatter().parse(normal) if name is not None]
    except ValueError as error:
        raise ValueError(f"{where}: {template!r} is not a template: {error}") from error
    if fields != [""] or normal.lstrip().startswith("lambda"):
        raise ValueError(
            f'{where}: a template needs exactly one "{{}}" or "{{c}}" for the class name, as in '
            f'"a photo of a {{}}.", got {template!r}'
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
    """Return (file and line for messages, text) of the lines that are not blank."""
    # Not splitlines, which also splits at rare characters and would shift all labels after one.
    lines = read_text(path).split("\n")
    return [
        (f"{path}, line {number}", line.strip())
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def _read_list(path: Path, key: str | None) -> list[tuple[str, Any]]:
    """Return (file and entry for messages, entry) of a list, or of one list in an object."""
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    where = str(path)
    if isinstance(content, dict):
        keys = [] if key is None else [key, key.rpartition("/")[2]]
        found = next((key for key in keys if key in content), None)
        if found is None:
            raise ValueError(
                f"{path} has lists for {', '.join(sorted(content)[:20])}; choose one of them with "
                f"--prompts-key, got {key!r}"
            )
        where, content = f"{path}, {found!r}", content[found]
    if not isinstance(content, list):
        raise ValueError(f"{where} must be a list of texts, got {type(content).__name__}")
    return [(f"{where}, entry {number}", entry) for number, entry in enumerate(content, 1)]
