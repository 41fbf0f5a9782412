"""Captions in JSON: COCO's annotations, and Karpathy's splits of COCO and Flickr."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from .._files import read_text
from .captions import clean_caption, is_text
from .options import ReadOptions
from .pairs import PairWriter, TableDataset
from .skips import MissingData


def read_caption_json(
    path: Path, options: ReadOptions, default_split: str = "train"
) -> TableDataset:
    """Open the images of a captions file, each with all captions that name it.

    path: COCO's {"images": [{"id", "file_name"}, ...], "annotations": [{"image_id", "caption"},
    ...]}, or Karpathy's {"images": [{"filename", "split", "sentences": [{"raw"}, ...]}, ...]}.
    Defaults of the options: images: see TableDataset.find_images. split: of Karpathy's, such as
    "test" or "train+restval"; COCO's have none.

    Images without captions, captions without an image, empty ones and broken entries are counted in
    `skipped`. A missing image file is only noticed when it is read.

    Raises ValueError if the file is in neither format, if two images share an id, if the split does
    not exist, and if no image has a caption. Raises MissingData, with the folders tried, if none of
    them has an image.
    """
    content = _content(path)
    pairs = PairWriter(None)
    if "annotations" in content:
        if options.split is not None:
            raise ValueError(f"{path} is COCO's and has no splits: split (--split) does not apply")
        name = str(path)
        _add_coco(path, content, pairs)
    else:
        split = options.split or default_split
        found = _add_karpathy(path, content, pairs, split)
        name = f"{path} ({split}, {found:,} of {len(content['images']):,} images)"
    if not len(pairs):
        raise ValueError(f"{path} has no image with a caption: {pairs.skipped}")
    dataset = TableDataset(name, pairs.columns(), path.parent)
    tried = dataset.find_images(path, options.folder)
    if tried:
        raise MissingData(
            f"no image that {path} names (the first is {dataset.image_name(0)}) is in any of "
            f"{', '.join(map(str, tried))}: name their folder with images (--images)"
        )
    return dataset


def _add_coco(path: Path, content: dict[str, Any], pairs: PairWriter) -> None:
    skipped = pairs.skipped
    names: dict[Any, str] = {}
    for where, entry in _entries(path, content, "images"):
        key, name = entry.get("id"), entry.get("file_name")
        if not isinstance(key, int | str) or not _is_name(name):
            skipped.add("broken image entry", where)
        elif key in names:
            raise ValueError(
                f"{where}: id {key!r} already belongs to {names[key]!r}; give every "
                "image its own id"
            )
        else:
            names[key] = name
    captions: dict[Any, list[str]] = {}
    for where, entry in _entries(path, content, "annotations"):
        key, caption = entry.get("image_id"), _caption(entry.get("caption"))
        if not caption:
            skipped.add("empty caption", where)
        elif not isinstance(key, int | str) or key not in names:
            skipped.add("caption of no image", where)
        else:
            captions.setdefault(key, []).append(caption)
    for key, name in names.items():
        if key in captions:
            pairs.add(f"{path}: {name}", name, captions[key])
        else:
            skipped.add("no caption", f"{path}: {name}")


def _add_karpathy(path: Path, content: dict[str, Any], pairs: PairWriter, split: str) -> int:
    """Add the images of a split; return how many there are, good and bad."""
    wanted = split.split("+")
    entries = (entry for entry in content["images"] if isinstance(entry, dict))
    splits = Counter(str(entry.get("split")).strip() for entry in entries)
    unknown = set(wanted) - set(splits)
    if unknown:
        counted = ", ".join(f"{name} ({count:,} images)" for name, count in splits.items())
        raise ValueError(f"{path} has no split {', '.join(sorted(unknown))}; it has {counted}")
    count = 0
    for where, entry in _entries(path, content, "images"):
        own = entry.get("split")
        if isinstance(own, str) and own.strip() not in wanted:
            continue
        count += 1
        name, sentences = entry.get("filename"), entry.get("sentences")
        folder = entry.get("filepath", "")  # of COCO: train2014 or val2014
        folder = folder if isinstance(folder, str) else ""
        whole = isinstance(own, str) and is_text(folder)
        if not whole or not _is_name(name) or not isinstance(sentences, list):
            pairs.skipped.add("broken image entry", where)
            continue
        texts = [_caption(s.get("raw") if isinstance(s, dict) else None) for s in sentences]
        captions = [text for text in texts if text]
        if not captions:
            pairs.skipped.add("no caption", where)
            continue
        pairs.add(where, os.path.join(folder, name), captions)
        if len(captions) < len(texts):
            pairs.skipped.add("empty caption", where, len(texts) - len(captions))
    return count


def _is_name(name: object) -> TypeGuard[str]:
    return isinstance(name, str) and bool(name.strip()) and is_text(name)


def _caption(text: object) -> str:
    return clean_caption(text) if isinstance(text, str) and is_text(text) else ""


def _content(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a JSON file, or is damaged or cut off ({error}); copy or write it again"
        ) from None
    kind = type(content).__name__
    if not isinstance(content, dict):
        content = {}
    images = content.get("images")
    karpathy = isinstance(images, list) and any(
        isinstance(entry, dict) and "sentences" in entry for entry in images
    )
    if not karpathy and not {"images", "annotations"} <= content.keys():
        raise ValueError(
            f'{path} must be an object with "images" and "annotations" (COCO), or with "images" '
            f"that have sentences (Karpathy), got {sorted(content)[:10] or kind}"
        )
    return content


def _entries(path: Path, content: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(content[key], list):
        raise ValueError(f'{path}: "{key}" must be a list, got {type(content[key]).__name__}')
    for number, entry in enumerate(content[key]):
        yield f"{path}: {key}[{number}]", entry if isinstance(entry, dict) else {}
