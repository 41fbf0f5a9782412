"""Captions of each view: one of the record's own, or a perturbed copy, never an empty one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from cyclip_ext.data import BadRecord, ReadOptions, open_dataset
from cyclip_ext.data.captions import choose_caption, other_caption

from .files import encode, halves, write_tar

WORDS = st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=12)


def test_each_caption_is_drawn_equally_often() -> None:
    captions = ("a", "b", "c")
    drawn = [choose_caption(captions, 0, epoch, 5) for epoch in range(600)]
    assert all(150 < drawn.count(caption) < 250 for caption in captions)


def test_the_second_view_has_another_caption_each_equally_often() -> None:
    captions = ("a", "b", "b", "c")
    pairs = [
        (choose_caption(captions, 1, epoch, 7), other_caption(captions, 1, epoch, 7))
        for epoch in range(2000)
    ]
    assert all(one != two for one, two in pairs)
    after_b = [two for one, two in pairs if one == "b"]
    assert 0.45 < after_b.count("a") / len(after_b) < 0.55


@given(WORDS, st.integers(0, 2**40), st.integers(0, 100))
def test_a_perturbed_caption_has_no_words_of_its_own(
    words: list[str], seed: int, index: int
) -> None:
    """Empty text, or words that the caption does not have, would train on noise."""
    caption = " ".join(words)
    other = other_caption((caption, caption), seed, 3, index)
    assert other
    assert other == other_caption((caption,), seed, 3, index)
    left = list(words)
    for word in other.split():
        left.remove(word)  # ValueError for a word too many


def test_words_are_deleted_and_swapped_with_the_documented_probabilities() -> None:
    words = [f"w{i}" for i in range(10)]
    others = [other_caption((" ".join(words),), 0, epoch, 0).split() for epoch in range(1000)]
    deleted = sum(10 - len(other) for other in others) / 10_000
    assert 0.09 < deleted < 0.11
    for other in others:
        out_of_place = sum(a != b for a, b in zip(other, sorted(other), strict=True))
        assert out_of_place == 2  # one swap of two different places
    first = {other.index(max(other)) for other in others}
    assert len(first) == 10  # any place may take part


def test_every_format_rejects_nul_and_drops_byte_order_marks(tmp_path: Path) -> None:
    """UTF-16 text read as UTF-8 would be trained on, and the mark is a token of its own."""
    image = encode(halves())
    (tmp_path / "files").mkdir()
    for name in ("1", "2"):
        (tmp_path / "files" / f"{name}.png").write_bytes(image)
    wide, marked = "wide".encode("utf-16-le"), "\ufeff marked".encode()
    (tmp_path / "files" / "1.txt").write_bytes(wide)
    (tmp_path / "files" / "2.json").write_bytes(b'{"caption": "' + marked + b'"}')
    shard = [("1.png", image), ("1.json", b'{"caption": "w\\u0000"}')]
    write_tar(tmp_path / "a.tar", [*shard, ("2.png", image), ("2.txt", b"\n" + marked)])
    rows = (b"files/1.png,", wide, b"\nfiles/2.png,", marked, b"\n")
    (tmp_path / "a.csv").write_bytes(b"image,caption\n" + b"".join(rows))
    lines = (wide, b"\thttp://host/1\n", b"x\thttp://host/2\n", marked, b"\thttp://host/3\n")
    (tmp_path / "a.tsv").write_bytes(b"x\thttp://host/0\n" + b"".join(lines))
    for name, images in (("files", None), ("a.tar", None), ("a.csv", None), ("a.tsv", "files")):
        folder = None if images is None else str(tmp_path / images)
        pairs = open_dataset(
            str(tmp_path / name), ReadOptions(images=folder, first_row=folder and 0)
        )
        counts, captions = Counter(pairs.skipped.counts), []
        for index in range(len(pairs)):
            try:
                captions.append(pairs[index].captions)
            except BadRecord as bad:
                counts[bad.reason] += 1
        assert counts["bad encoding"] == 1, name
        if name != "a.tsv":
            assert captions == [("marked",)], name
