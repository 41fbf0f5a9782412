"""Embeddings of a set's pictures kept on disk, so that a model sees each set once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data import BadRecord, SkipReport
from .embed_sets import Embedded, Set
from .features import Arrays, read_arrays, write_arrays
from .sets import CaptionedImages, ClassifiedImages, Images, Quadruples


@dataclass(frozen=True)
class FeatureCache:
    """A folder of embeddings, a file for each model and set.

    folder: made where it is missing. notify: shows a line.
    """

    folder: Path
    notify: Callable[[str], None] = print

    def embedded(self, model: str, data: Set, embed: Callable[[], Embedded[Set]]) -> Embedded[Set]:
        """What embed() returns, from the folder where it was computed before.

        model: identifies the model: its weights (`weights_digest`) and what else decides over its
        embeddings: architecture, transform, precision. data: identified by name, content_digest of
        its pictures and their number. A file that is damaged, or of another model and set, is
        computed again with a note; a folder that cannot be written costs a note.
        """
        key = json.dumps([model, data.name, len(data), *_digests(data)])
        path = self.folder / f"{_file_name(data.name)}-{_digest(key.encode())}.npz"
        if path.exists():
            try:
                return _restored(data, read_arrays(path), key)
            except ValueError as error:
                self.notify(f"embeddings of {data.name} are computed again: {error}")
        found = embed()
        arrays = {
            "features": found.image_features.numpy(),
            "kept": found.kept.numpy(),
            "skipped": np.array(json.dumps(found.skipped.to_dict())),
            "key": np.array(key),
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_arrays(path, arrays)
        except OSError as error:
            self.notify(f"embeddings of {data.name} are not kept: {error}")
        return found


def weights_digest(model: torch.nn.Module) -> str:
    """A digest of a model's parameters and buffers, with their names, shapes and types."""
    hashed = blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        hashed.update(f"{name}\0{tensor.dtype}\0{[*tensor.shape]}\0".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        hashed.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return hashed.hexdigest()


def content_digest(images: Images) -> str:
    """A digest of pictures and their order.

    Where images has a method `fingerprint() -> str` (of its files' names, sizes and times of
    change), that; otherwise of all pixels, which takes opening every picture, and embedding them
    takes longer still. A picture that cannot be read counts by the reason.
    """
    fingerprint: Any = getattr(images, "fingerprint", None)
    if fingerprint is not None:
        return f"files {fingerprint()}"
    hashed = blake2b(digest_size=16)
    for index in range(len(images)):
        try:
            picture = images[index]
            hashed.update(f"{picture.mode} {picture.size}\0".encode())
            hashed.update(picture.tobytes())
        except BadRecord as bad:
            hashed.update(f"bad: {bad.reason}\0".encode())
    return f"pixels {hashed.hexdigest()}"


def _digests(data: ClassifiedImages | CaptionedImages | Quadruples) -> list[str]:
    if isinstance(data, Quadruples):
        return [content_digest(data.first_images), content_digest(data.second_images)]
    return [content_digest(data.images)]


def _restored(data: Set, arrays: Arrays, key: str) -> Embedded[Set]:
    """Raises ValueError for arrays of something else."""
    if arrays.keys() != {"features", "kept", "skipped", "key"} or str(arrays["key"]) != key:
        raise ValueError("the file is of another model or set")
    features, kept = torch.from_numpy(arrays["features"]), torch.from_numpy(arrays["kept"])
    skipped = SkipReport.from_dict(json.loads(str(arrays["skipped"])))
    return Embedded(data.part(kept, skipped), features, kept, skipped)


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[:40]


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=12).hexdigest()
