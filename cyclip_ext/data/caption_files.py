"""Captions in files of their own, beside an image in a folder or an archive."""

from __future__ import annotations

import json

from .captions import clean_caption, is_text
from .skips import BadRecord

CAPTION_SUFFIXES = (".txt", ".json")  # in order of preference


def decode_captions(
    data: bytes, is_json: bool, where: str, *, one_per_line: bool = False
) -> tuple[str, ...]:
    """Return the captions in a .txt (the whole of it) or .json ("caption": a string or several).

    one_per_line: a .txt has a caption on each line, as CLIP_benchmark writes them.

    Raises BadRecord with reason bad encoding, broken metadata or empty caption.
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
    several = found if isinstance(found, list) else [found]
    captions = tuple(filter(None, (clean_caption(c) for c in several if isinstance(c, str))))
    if not captions:
        raise BadRecord("empty caption", where)
    if not all(map(is_text, captions)):  # JSON may spell half of a surrogate pair, or a NUL
        raise BadRecord("bad encoding", where)
    return captions
