"""Superclasses out of an is-a graph in the form of WordNet's files."""

from pathlib import Path

import pytest

from cyclip_ext.evaluation import Hierarchy, Taxonomy

# A dog is a canine first, and a domestic animal, too. Two nodes are named "crane".
EDGES = """\
n0 n1
n0 n9
n1 n2
n2 n3
n1 n4
n3 n5
n4 n5
n2 n6
n9 n7

n2\tn8
"""
WORDS = """\
n0\tentity
n1\tanimal, beast
n2\tcarnivore
n3\tcanine
n4\tdomestic animal
n5\tdog, domestic dog
n6\tcrane
n7\tcrane, hoist
n9\tmachine
n77\tnot in the graph, dog
"""


@pytest.fixture
def taxonomy(tmp_path: Path) -> Taxonomy:
    (tmp_path / "is_a.txt").write_text(EDGES)
    (tmp_path / "words.txt").write_text(WORDS)
    return Taxonomy.read(tmp_path / "is_a.txt", tmp_path / "words.txt")


def test_ancestor_at_a_depth(taxonomy: Taxonomy) -> None:
    """Wrong: parent and child are swapped, the depth counts from the class, or from 1."""
    assert taxonomy.at_depth(["dog", "n7"], 0) == {"dog": "entity", "n7": "entity"}
    assert taxonomy.at_depth(["dog", "n7"], 1) == {"dog": "animal", "n7": "machine"}
    # Of the two parents the first in the file: canine, below carnivore.
    assert taxonomy.at_depth(["Domestic_dog"], 2) == {"Domestic_dog": "carnivore"}
    assert taxonomy.at_depth(["dog"], 4) == {"dog": "dog"}  # its own superclass
    with pytest.raises(ValueError, match="'n7' lies 2 steps below its root 'n0', less than"):
        taxonomy.at_depth(["dog", "n7"], 3)
    with pytest.raises(ValueError, match="depth must be 0"):
        taxonomy.at_depth(["dog"], -1)


def test_under_given_ancestors(taxonomy: Taxonomy) -> None:
    """Wrong: only the first parents count, or the general one of nested ancestors wins."""
    assert taxonomy.under(["dog"], ["domestic animal"]) == {"dog": "domestic animal"}
    nested = taxonomy.under(["dog", "n6", "n7", "n3"], ["n0", "n1", "canine"])
    assert nested == {"dog": "canine", "n6": "animal", "n7": "entity", "n3": "canine"}
    with pytest.raises(ValueError, match="'dog' is under n3, n4 of the 2 ancestors"):
        taxonomy.under(["dog"], ["n3", "n4"])
    with pytest.raises(ValueError, match="'n7' is under none of the 1 ancestors"):
        taxonomy.under(["dog", "n7"], ["animal"])


def test_names_that_are_not_clear(taxonomy: Taxonomy) -> None:
    with pytest.raises(ValueError, match=r"'crane' is a name of 2 nodes \(n6, n7\)"):
        taxonomy.at_depth(["crane"], 0)
    with pytest.raises(ValueError, match="'cat' is neither an id nor a name"):
        taxonomy.under(["cat"], ["n0"])
    with pytest.raises(ValueError, match="'n77' is neither"):
        taxonomy.at_depth(["n77"], 0)
    # Superclasses of one name stay two; a node without a name is shown by its id.
    assert taxonomy.at_depth(["n6"], 3) == {"n6": "crane"}
    assert taxonomy.under(["n6", "n7", "n8"], ["n6", "n7", "n8"]) == {
        "n6": "crane (n6)",
        "n7": "crane (n7)",
        "n8": "n8",
    }


def test_a_table_for_a_hierarchy(taxonomy: Taxonomy) -> None:
    classes = ["n7", "dog", "n6"]
    hierarchy = Hierarchy.build(taxonomy.at_depth(classes, 1), classes)
    assert hierarchy.superclass_names == ("machine", "animal")
    assert hierarchy.superclass_of_class.tolist() == [0, 1, 1]


def test_ids_may_be_names(tmp_path: Path) -> None:
    (tmp_path / "edges").write_text("animal dog\nanimal cat\nanimal dog\n")
    assert Taxonomy.read(tmp_path / "edges").at_depth(["dog", "cat"], 0) == {
        "dog": "animal",
        "cat": "animal",
    }


def test_a_byte_order_mark_is_no_part_of_an_id(tmp_path: Path) -> None:
    """Wrong: the first line's parent is another node than the same id further down."""
    (tmp_path / "edges").write_bytes(b"\xef\xbb\xbfanimal dog\r\nanimal cat\r\n")
    assert Taxonomy.read(tmp_path / "edges").at_depth(["dog", "cat"], 0) == {
        "dog": "animal",
        "cat": "animal",
    }
    (tmp_path / "edges").write_bytes("animal café".encode("latin-1"))
    with pytest.raises(ValueError, match="edges is not UTF-8"):
        Taxonomy.read(tmp_path / "edges")


def test_cycles_are_refused(tmp_path: Path) -> None:
    """Wrong: the walk to the root never ends."""
    (tmp_path / "edges").write_text("a b\nb c\nc b\n")
    with pytest.raises(ValueError, match=r"cycle: (b -> c -> b|c -> b -> c)"):
        Taxonomy.read(tmp_path / "edges")


@pytest.mark.parametrize(
    ("edges", "words", "message"),
    [
        ("a b\na b c\n", None, 'edges, line 2: "parent child" expected, got 3 words'),
        ("\n", None, "edges has no edges"),
        ("a b\n", "a b\n", 'words, line 1: "id<tab>name'),
        ("a b\n", "a\t ,\n", "words, line 1"),
    ],
)
def test_lines_that_are_refused(
    tmp_path: Path, edges: str, words: str | None, message: str
) -> None:
    (tmp_path / "edges").write_text(edges)
    if words is not None:
        (tmp_path / "words").write_text(words)
    with pytest.raises(ValueError, match=message):
        Taxonomy.read(tmp_path / "edges", None if words is None else tmp_path / "words")
