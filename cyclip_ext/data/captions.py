"""Captions: reading, cleaning, cutting, and the choice of one for each view of a record."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from hashlib import blake2b

import torch

from .seeding import sample_seed, uniforms
from .skips import BadRecord

CAPTION_SUFFIXES = (".txt", ".json")  # of files beside images, in order of preference

# Each use has its own stream, so that none repeats the numbers of another.
_FIRST_STREAM = 0x43415054
_OTHER_STREAM = 0x4F544852

_DELETION = 0.1  # share of the words

MAX_WORD, MAX_CAPTION = 512, 8192  # characters, several times what fills a context of 77 tokens


def choose_caption(captions: tuple[str, ...], seed: int, epoch: int, index: int) -> str:
    """Draw one of a record's captions uniformly, independently in each epoch."""
    return _choose(captions, seed ^ _FIRST_STREAM, epoch, index)


def other_caption(captions: tuple[str, ...], seed: int, epoch: int, index: int) -> str:
    """Draw a second caption of the same image, or perturb the first one if there is no other.

    If the record has no other caption than that of choose_caption, each word is deleted with
    probability 0.1 and then two words are swapped: random deletion and random swap of EDA (Wei and
    Zou 2019). At least one word remains.
    """
    first = choose_caption(captions, seed, epoch, index)
    others = tuple(caption for caption in captions if caption != first)
    if others:
        return _choose(others, seed ^ _OTHER_STREAM, epoch, index)
    words = first.split()
    draws = uniforms(seed ^ _OTHER_STREAM, epoch, torch.tensor([index]), len(words) + 3)[0].tolist()
    one, two, three = draws[:3]
    left = [word for word, draw in zip(words, draws[3:], strict=True) if draw >= _DELETION]
    if not left:
        left = [words[int(three * len(words))]]
    count = len(left)
    if count > 1:
        i = int(one * count)
        j = (i + 1 + int(two * (count - 1))) % count  # another place than i
        left[i], left[j] = left[j], left[i]
    return " ".join(left)


def _choose(captions: tuple[str, ...], seed: int, epoch: int, index: int) -> str:
    if len(captions) == 1:
        return captions[0]
    return captions[sample_seed(seed, epoch, index) % len(captions)]


def normalized_caption(caption: str) -> str:
    """Return the caption without differences in case, white space and compatible characters.

    Compatible characters are those of Unicode's NFKC, such as full-width letters and ligatures.
    """
    return clean_caption(unicodedata.normalize("NFKC", caption)).casefold()


def hash63(data: bytes) -> int:
    """Return a hash of 63 bits, the same on every machine; two collide with probability 1.1e-19."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little") >> 1


def caption_hash(caption: str) -> int:
    """Return the hash63 of the normalized caption."""
    return hash63(normalized_caption(caption).encode("utf-8", "surrogatepass"))


def clean_caption(text: str) -> str:
    """Return the caption on one line: single spaces, trimmed, without byte order marks.

    Joined files have byte order marks in the middle.
    """
    return " ".join(text.replace("\ufeff", "").split())


def shorten(caption: str) -> str:
    """Cut words to MAX_WORD and the caption to MAX_CAPTION characters, before tokenizing.

    The time of byte pair encoding grows with the square of a word's length: a word of 64,000
    letters takes minutes.
    """
    if len(caption) <= MAX_WORD:
        return caption
    return " ".join(word[:MAX_WORD] for word in caption[:MAX_CAPTION].split(" "))


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


def usable_captions(texts: Iterable[object], where: str) -> tuple[str, ...]:
    """Return the captions of a record: cleaned, without empty ones.

    Raises BadRecord with reason empty caption if none is left (texts that are not strings count as
    empty), or bad encoding, see is_text.
    """
    captions = tuple(filter(None, (clean_caption(t) for t in texts if isinstance(t, str))))
    if not captions:
        raise BadRecord("empty caption", where)
    if not all(map(is_text, captions)):
        raise BadRecord("bad encoding", where)
    return captions


def decode_captions(
    data: bytes, is_json: bool, where: str, *, one_per_line: bool = False
) -> tuple[str, ...]:
    """Return the captions in a .txt (the whole of it) or .json ("caption": a string or several).

    one_per_line: a .txt has a caption on each line, as CLIP_benchmark writes them.

    Raises BadRecord as usable_captions, and with reason broken metadata.
    """
    try:
        text = data.decode("utf-8-sig")
        found = json.loads(text).get("caption") if is_json else text
    except UnicodeDecodeError:
        raise BadRecord("bad encoding", where) from None
    except (ValueError, AttributeError, RecursionError):  # not JSON, or not an object
        raise BadRecord("broken metadata", where) from None
    if one_per_line and isinstance(found, str):
        found = found.split("\n")
    return usable_captions(found if isinstance(found, list) else [found], where)
