"""Which caption a record is trained with, and another one for its second view."""

from __future__ import annotations

import torch

from .seeding import sample_seed, uniforms

# Each use draws from its own stream, so that none repeats another's numbers.
_FIRST_STREAM = 0x43415054
_OTHER_STREAM = 0x4F544852

_DELETION = 0.1  # share of the words


def choose_caption(captions: tuple[str, ...], seed: int, epoch: int, index: int) -> str:
    """One of a record's captions, each equally likely, drawn anew every epoch."""
    return _choose(captions, seed ^ _FIRST_STREAM, epoch, index)


def other_caption(captions: tuple[str, ...], seed: int, epoch: int, index: int) -> str:
    """A second caption for the same picture: another one of its own, else the first, disturbed.

    Where a record has only the caption that choose_caption gives, each of its words is left out
    with probability 0.1 and then two words change places: random deletion and random swap of EDA
    (Wei and Zou 2019). One word at least is left.
    """
    first = choose_caption(captions, seed, epoch, index)
    others = tuple(caption for caption in captions if caption != first)
    if others:
        return _choose(others, seed ^ _OTHER_STREAM, epoch, index)
    words = first.split()
    draws = uniforms(seed ^ _OTHER_STREAM, epoch, torch.tensor([index]), len(words) + 3)[0].tolist()
    one, two, three = draws[:3]
    kept = [word for word, draw in zip(words, draws[3:], strict=True) if draw >= _DELETION]
    if not kept:
        kept = [words[int(three * len(words))]]
    count = len(kept)
    if count > 1:
        i = int(one * count)
        j = (i + 1 + int(two * (count - 1))) % count  # another place than i
        kept[i], kept[j] = kept[j], kept[i]
    return " ".join(kept)


def _choose(captions: tuple[str, ...], seed: int, epoch: int, index: int) -> str:
    if len(captions) == 1:
        return captions[0]
    return captions[sample_seed(seed, epoch, index) % len(captions)]


def normalized_caption(caption: str) -> str:
    """What two captions that differ only in case and white space have in common."""
    return clean_caption(caption).casefold()


def clean_caption(text: str) -> str:
    """Return the caption on one line: single spaces, trimmed, without byte order marks.

    Joined files have byte order marks in the middle.
    """
    return " ".join(text.replace("\ufeff", "").split())


MAX_WORD, MAX_CAPTION = 512, 8192  # characters, several times what fills a context of 77 tokens


def shorten(caption: str) -> str:
    """Cut words to MAX_WORD and the caption to MAX_CAPTION characters, before tokenizing.

    The time of byte pair encoding grows with the square of a word's length: a word of 64,000
    letters takes minutes.
    """
    if len(caption) <= MAX_WORD:
        return caption
    return " ".join(word[:MAX_WORD] for word in caption[:MAX_CAPTION].split(" "))


def printable(text: str) -> str:
    """Escape bytes that are not UTF-8 (surrogates), which would raise when printed."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def is_text(text: str) -> bool:
    """Return whether text, read with "surrogateescape", was UTF-8 without a NUL.

    UTF-16 without a byte order mark passes for UTF-8 with a NUL beside each Latin letter.
    """
    if "\0" in text:
        return False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
