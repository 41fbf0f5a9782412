"""Templates and class names from open_clip and from files, and errors in them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from cyclip_ext.data.class_names import imagenet_ids
from cyclip_ext.evaluation import (
    Prompts,
    class_embeddings,
    open_evaluation_dataset,
    read_class_names,
    read_templates,
)

from .test_encode import Greys


def text(folder: Path, content: str) -> Path:
    path = folder / "list.txt"
    path.write_text(content, encoding="utf-8")
    return path


def saved(folder: Path, content: Any) -> Path:
    path = folder / "list.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_open_clips_own_by_name() -> None:
    open_clip = pytest.importorskip("open_clip")
    for name, functions in (
        ("openai", open_clip.OPENAI_IMAGENET_TEMPLATES),
        ("simple", open_clip.SIMPLE_IMAGENET_TEMPLATES),
    ):
        templates = read_templates(name)
        assert [template.format("cat") for template in templates] == [f("cat") for f in functions]
    names = read_class_names("imagenet")
    assert tuple(name for (name,) in names) == tuple(open_clip.IMAGENET_CLASSNAMES)


def test_text_files(tmp_path: Path) -> None:
    templates = read_templates(text(tmp_path, "a {c}.\n\n  the {} \n"))
    assert templates == ("a {}.", "the {}")
    names = read_class_names(text(tmp_path, "\ufeffdog | hound\n\nMöwe\ncat\n"))
    assert names == (("dog", "hound"), ("Möwe",), ("cat",))
    prompts: list[str] = []

    def embed(batch: list[str]) -> torch.Tensor:
        prompts.extend(batch)
        return torch.ones(len(batch), 2)

    assert class_embeddings(embed, names, templates).shape == (3, 2)
    assert prompts[:4] == ["a dog.", "the dog", "a hound.", "the hound"]


def test_json_files(tmp_path: Path) -> None:
    by_set = saved(tmp_path, {"pets": ["a {c}"], "cars": ["the {c}", "{c}"]})
    assert read_templates(by_set, "cars") == ("the {}", "{}")
    assert read_templates(by_set, "vtab/pets") == ("a {}",)
    assert read_templates(saved(tmp_path, ["my {}"])) == ("my {}",)
    # "|" separates synonyms in text files only: JSON has lists for them.
    names = read_class_names(saved(tmp_path, {"pets": ["a|b", ["dog", "hound"]]}), "pets")
    assert names == (("a|b",), ("dog", "hound"))


def test_a_name_twice_in_json_is_a_warning(tmp_path: Path) -> None:
    """CLIP_benchmark's own list for ImageNet has two such pairs, so it must be accepted."""
    path = saved(tmp_path, {"imagenet1k": ["missile", "cat", "missile"]})
    with pytest.warns(UserWarning, match=r"entry 3: class name 'missile' is already in .* entry 1"):
        names = read_class_names(path, "imagenet1k")
    assert len(names) == 3


ONE_FIELD = 'a template needs exactly one "{}"'
BOTH = read_templates, read_class_names


@pytest.mark.parametrize(
    ("readers", "content", "key", "message"),
    [
        # Without a placeholder, every class would have the same prompt.
        ([read_templates], "a {}\na cat\n", None, f"list.txt, line 2: {ONE_FIELD}"),
        ([read_templates], "\n{} and {}\n", None, f"line 2: {ONE_FIELD}"),
        ([read_templates], "a {name}\n", None, f"line 1: {ONE_FIELD}"),
        ([read_templates], "a {\n", None, "line 1: 'a {' is not a template"),
        ([read_templates], "a {c!r}\n", None, f"line 1: {ONE_FIELD}"),  # format() would miss c
        ([read_templates], "\n \n", None, "list.txt has no templates"),
        ([read_class_names], "cat\n\ndog\ncat\n", None, "line 4: class name 'cat' is already in"),
        ([read_class_names], "cat|pet\ndog|pet\n", None, "line 2: class name 'pet' is already in"),
        ([read_class_names], "cat|\n", None, "line 1: a class needs a name"),
        ([read_class_names], "", None, "list.txt has no class names"),
        (BOTH, {"pets": []}, None, "for pets; choose one of them with --prompts-key, got None"),
        (BOTH, {"pets": []}, "cars", "got 'cars'"),
        (BOTH, {"pets": []}, "pets", "list.json has no"),
        (BOTH, {"pets": {"cat": ["a cat"]}}, "pets", "'pets' must be a list of texts, got dict"),
        (BOTH, [3], None, "entry 1: a"),
    ],
)
def test_unusable_files_are_rejected(
    tmp_path: Path, readers: Any, content: Any, key: str | None, message: str
) -> None:
    path = text(tmp_path, content) if isinstance(content, str) else saved(tmp_path, content)
    for read in readers:
        with pytest.raises(ValueError, match=re.escape(message)):
            read(path, key)


def test_rare_characters_and_other_encodings(tmp_path: Path) -> None:
    assert read_class_names(text(tmp_path, "a\u2028b\nc\x0cd\n")) == (("a\u2028b",), ("c\x0cd",))
    (tmp_path / "list.txt").write_bytes("café".encode("latin-1"))
    for read in (read_templates, read_class_names):
        with pytest.raises(ValueError, match=r"list\.txt is not UTF-8"):
            read(tmp_path / "list.txt")
    for content, message in (('"cat"', "must be a list of texts, got str"), ("[", "is not a JSON")):
        (tmp_path / "list.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            read_templates(tmp_path / "list.json")
    with pytest.raises(FileNotFoundError, match='opena is neither a file nor "openai" or "simple"'):
        read_templates("opena")
    with pytest.raises(FileNotFoundError, match='imagnet is neither a file nor "imagenet"'):
        read_class_names("imagnet")


def test_lines_of_python_source_are_converted(tmp_path: Path) -> None:
    """Templates are often copied from CLIP's notebooks, as lambdas or quoted strings."""
    lines = [
        "lambda c: f'a bad photo of a {c}.',",
        'lambda c: f"a {{framed}} {c}",',
        "'itap of a {}.',",
        '"the {c}"',
        "a {c}'s photo",
    ]
    templates = read_templates(text(tmp_path, "\n".join(lines)))
    assert templates == (
        "a bad photo of a {}.",
        "a {{framed}} {}",
        "itap of a {}.",
        "the {}",
        "a {}'s photo",
    )
    assert templates[1].format("cat") == "a {framed} cat"
    for line in ("lambda c: 'a {}'.format(c)", "lambda c: f'{c.lower()}'", "templates = ["):
        with pytest.raises(ValueError, match="line 1: a template needs exactly one"):
            read_templates(text(tmp_path, line))


def test_imagenet_names_a_subset_by_wordnet_ids(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    ids = imagenet_ids()
    rows = (207, 0, 999)  # of ImageNet's 1,000 classes, in any order
    for row in rows:
        (tmp_path / ids[row]).mkdir()
    (tmp_path / ids[0] / "x.png").write_bytes(b"")
    data = open_evaluation_dataset(f"folder:{tmp_path}")
    names = [open_clip.IMAGENET_CLASSNAMES[row] for row in sorted(rows)]
    imagenet = Prompts.read("imagenet", None)
    assert [name for (name,) in imagenet.names_for(data)] == names
    (tmp_path / "n02084071").mkdir()  # "dog", which is not one of the 1,000
    data = open_evaluation_dataset(f"folder:{tmp_path}")
    assert ("dog",) in Prompts().names_for(data)
    with pytest.raises(ValueError, match=r"no name for 1 of the 4 classes .*n02084071"):
        imagenet.names_for(data)
    numbered = Greys([1], labels=[0], class_names=("c1", "c10", "c2"))
    with pytest.raises(ValueError, match=r"class-names\) gives .* 'c10' .* and 'c2' by number"):
        Prompts((("a",), ("b",), ("c",))).names_for(numbered)
    other = Greys([1], labels=[0], class_names=("cat", "dog"))
    with pytest.raises(ValueError, match=r"1000 class names for the 2 classes .*WordNet ids"):
        imagenet.names_for(other)
