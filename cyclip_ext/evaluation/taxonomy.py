"""Superclasses out of an is-a graph as WordNet's: ancestors of classes at a depth, or given ones.

What to do with them is in hierarchy.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from .hierarchy import same_name
from .text_files import read_text


@dataclass(frozen=True)
class Taxonomy:
    """An is-a graph without cycles; a node may have several parents, as in WordNet.

    parents: id -> ids of its parents, in the order of the file. names: id -> names, the first of
    which is shown; ids without an entry are their own name.
    """

    parents: Mapping[str, tuple[str, ...]]
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError for a cycle, naming its nodes."""
        try:
            TopologicalSorter(self.parents).prepare()
        except CycleError as error:
            raise ValueError(f"the is-a graph has a cycle: {' -> '.join(error.args[1])}") from error

    @classmethod
    def read(cls, edges: str | Path, names: str | Path | None = None) -> Taxonomy:
        """From files as ImageNet's archive has them.

        edges: "parent child" per line, ids separated by a space or tab, as wordnet.is_a.txt.
        names: "id<tab>name, synonym, ..." per line, as words.txt; None where ids are names.

        Raises: ValueError, naming the file and the line, for a line of another form.
        """
        parents: dict[str, tuple[str, ...]] = {}
        for where, line in _lines(edges):
            pair = line.split()
            if len(pair) != 2:
                raise ValueError(
                    f'{where}: "parent child" expected, got {len(pair)} words; ids must not '
                    "contain spaces"
                )
            parent, child = pair
            parents.setdefault(parent, ())
            if parent not in parents.get(child, ()):
                parents[child] = (*parents.get(child, ()), parent)
        if not parents:
            raise ValueError(f"{edges} has no edges")
        table: dict[str, tuple[str, ...]] = {}
        if names is not None:
            for where, line in _lines(names):
                node, tab, words = line.partition("\t")
                synonyms = tuple(word for word in map(str.strip, words.split(",")) if word)
                if not tab or not synonyms:
                    raise ValueError(f'{where}: "id<tab>name, synonym, ..." expected, got {line!r}')
                table[node.strip()] = synonyms
        return cls(parents, table)

    def at_depth(self, classes: Sequence[str], depth: int) -> dict[str, str]:
        """Class -> name of its ancestor `depth` steps below its root, for `Hierarchy.build`.

        classes: ids, or names that belong to one id. Where a node has several parents the path to
        the root follows the first in the file: one superclass for each class, whatever the others
        say. A class at that depth itself is its own superclass.

        Raises: ValueError for a class that is missing, ambiguous or less deep.
        """
        if depth < 0:
            raise ValueError(f"depth must be 0, the root, or more, got {depth}")
        chosen = {}
        for name, node in self._find(classes).items():
            path = [node]
            while parents := self.parents[path[-1]]:
                path.append(parents[0])
            if len(path) <= depth:
                raise ValueError(
                    f"class {name!r} lies {len(path) - 1} steps below its root {path[-1]!r}, less "
                    f"than depth = {depth}; choose a smaller depth, or superclasses by `under`"
                )
            chosen[name] = path[-1 - depth]
        return self._named(chosen)

    def under(self, classes: Sequence[str], ancestors: Sequence[str]) -> dict[str, str]:
        """Class -> name of the one of the given ancestors that it is under, for `Hierarchy.build`.

        classes, ancestors: ids, or names that belong to one id. All parents of a node count. Of
        ancestors that lie under one another the most specific is taken; a class may be an ancestor
        itself.

        Raises: ValueError for a class that is missing or ambiguous, and for one that is under none
        of the ancestors or under several unrelated ones.
        """
        given = self._find(ancestors)
        targets = set(given.values())
        chosen = {}
        for name, node in self._find(classes).items():
            found = self._upwards(node) & targets
            general = {other for each in found for other in self._upwards(each) - {each}}
            nearest = sorted(found - general)
            if len(nearest) != 1:
                raise ValueError(
                    f"class {name!r} is under {', '.join(nearest) if nearest else 'none'} of the "
                    f"{len(targets)} ancestors; it must be under exactly one"
                )
            chosen[name] = nearest[0]
        return self._named(chosen)

    def _find(self, names: Sequence[str]) -> dict[str, str]:
        """Name -> id."""
        ids: dict[str, list[str]] = {}
        for node, synonyms in self.names.items():
            if node in self.parents:  # words.txt has more than the graph
                for synonym in {same_name(synonym) for synonym in synonyms}:
                    ids.setdefault(synonym, []).append(node)
        found = {}
        for name in names:
            matches = [name] if name in self.parents else ids.get(same_name(name), [])
            if not matches:
                raise ValueError(f"{name!r} is neither an id nor a name of the is-a graph")
            if len(matches) > 1:
                raise ValueError(
                    f"{name!r} is a name of {len(matches)} nodes ({', '.join(matches[:5])}); give "
                    "the id of one"
                )
            found[name] = matches[0]
        return found

    def _upwards(self, node: str) -> set[str]:
        """The node and all its ancestors."""
        found, pending = {node}, [node]
        while pending:
            new = set(self.parents[pending.pop()]) - found
            found |= new
            pending += new
        return found

    def _named(self, chosen: Mapping[str, str]) -> dict[str, str]:
        """Ids of superclasses replaced by names, with the id behind it where two share a name."""
        nodes = set(chosen.values())
        names = {node: self.names.get(node, (node,))[0] for node in nodes}
        shared = {name for name in names.values() if list(names.values()).count(name) > 1}
        labels = {
            node: f"{name} ({node})" if name in shared else name for node, name in names.items()
        }
        return {name: labels[node] for name, node in chosen.items()}


def _lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """(file and line for messages, text) of the lines that are not blank."""
    for number, line in enumerate(read_text(Path(path)).split("\n"), 1):
        if line.strip():
            yield f"{path}, line {number}", line
