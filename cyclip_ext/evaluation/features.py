"""Embeddings in files: .npz, for models that other programs run."""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..checks import require_finite
from .sets import require_labels

Arrays = dict[str, npt.NDArray[Any]]

_FLOATS = {"image_features": 2, "text_features": 2, "class_features": 2, "logit_scale": 0}
_INTEGERS = {"labels": 1, "text_owners": 1}
_TEXTS = {"image_ids": 1, "class_names": 1}
KEYS = tuple((_FLOATS | _INTEGERS | _TEXTS).keys())


@dataclass(frozen=True)
class Embeddings:
    """What metrics take, and under these names what a file has.

    image_features: float [N, d]; the one that must be there.
    image_ids: [N] texts, to name pictures by.
    text_features: float [M, d], captions; text_owners: int [M], the picture each belongs to;
        without it M must be N, and caption i belongs to picture i.
    labels: int [N], the class of each picture; class_features: float [C, d], a prompt ensemble per
        class; class_names: [C] texts.
    logit_scale: the factor of the logits, above 0 (100, not its logarithm).

    Features may be float16, float32, float64 (or bfloat16) and of any length: they are held in
    float32 and brought to unit length, for every metric here is one of cosines, and towers are
    often saved as they come. Label types may be any integer.

    Raises: ValueError, naming the array, for shapes that do not fit together, other types, NaN or
    infinity, rows of zeros (they have no direction), labels without class_features or class_names
    to say how many classes there are, and labels and owners that are out of range.
    """

    image_features: Tensor
    image_ids: tuple[str, ...] | None = None
    text_features: Tensor | None = None
    text_owners: Tensor | None = None
    labels: Tensor | None = None
    class_features: Tensor | None = None
    class_names: tuple[str, ...] | None = None
    logit_scale: float | None = None

    def __post_init__(self) -> None:
        width = None
        for name in ("image_features", "text_features", "class_features"):
            features = getattr(self, name)
            if features is not None:
                width = self._normalize(name, features, width)
        count = len(self.image_features)
        if self.image_ids is not None and len(self.image_ids) != count:
            raise ValueError(f"image_ids has {len(self.image_ids)} entries for {count} pictures")
        self._check_texts(count)
        self._check_classes(count)
        if self.logit_scale is not None and not 0 < self.logit_scale < float("inf"):
            raise ValueError(
                f"logit_scale must be above 0 and finite, got {self.logit_scale}; it is the "
                "factor, not its logarithm"
            )

    def _normalize(self, name: str, features: Tensor, width: int | None) -> int:
        if features.ndim != 2 or not features.numel() or not features.is_floating_point():
            raise ValueError(
                f"{name} must be float [n, d], neither of them 0, got {features.dtype} "
                f"{[*features.shape]}"
            )
        if width is not None and features.shape[1] != width:
            raise ValueError(f"{name} has rows of {features.shape[1]}, image_features of {width}")
        require_finite(**{name: features})
        rows = features.detach().cpu().double()
        largest = rows.abs().amax(1, keepdim=True)
        zeros = int((largest == 0).sum())
        if zeros:
            raise ValueError(
                f"{name} has {zeros} of {len(rows)} rows of zeros, which have no direction; leave "
                "out what could not be embedded"
            )
        rows = rows / largest  # its squares must neither overflow nor vanish
        object.__setattr__(self, name, (rows / rows.norm(dim=1, keepdim=True)).float())
        return features.shape[1]

    def _check_texts(self, images: int) -> None:
        if self.text_features is None:
            if self.text_owners is not None:
                raise ValueError("text_owners without text_features: there are no captions to own")
            return
        texts = len(self.text_features)
        owners = self.text_owners
        if owners is None:
            if texts != images:
                raise ValueError(
                    f"text_features has {texts} rows for {images} pictures: text_owners must say "
                    "which picture each belongs to"
                )
            owners = torch.arange(images)
        owners = _as_int64("text_owners", owners)
        if owners.shape != (texts,):
            raise ValueError(f"text_owners must be [{texts}], got {[*owners.shape]}")
        if not 0 <= int(owners.min()) <= int(owners.max()) < images:
            raise ValueError(
                f"text_owners must be in 0 .. {images - 1}, got {int(owners.min())} .. "
                f"{int(owners.max())}"
            )
        object.__setattr__(self, "text_owners", owners)

    def _check_classes(self, images: int) -> None:
        counts = {
            name: len(entries)
            for name, entries in (
                ("class_features", self.class_features),
                ("class_names", self.class_names),
            )
            if entries is not None
        }
        if len(set(counts.values())) > 1:
            raise ValueError(f"class_features and class_names must have one length, got {counts}")
        if self.labels is None:
            return
        if not counts:
            raise ValueError(
                "labels without class_features or class_names: how many classes are there?"
            )
        labels = _as_int64("labels", self.labels)
        if labels.shape != (images,):
            raise ValueError(f"labels must be [{images}], got {[*labels.shape]}")
        require_labels("embeddings", labels, next(iter(counts.values())))
        object.__setattr__(self, "labels", labels)


def save_embeddings(path: str | Path, embeddings: Embeddings) -> None:
    """Write a .npz that load_embeddings reads; it appears whole or not at all."""
    arrays: Arrays = {}
    for name in KEYS:
        value = getattr(embeddings, name)
        if isinstance(value, Tensor):
            arrays[name] = value.numpy()
        elif value is not None:
            arrays[name] = np.array(value)
    write_arrays(Path(path), arrays)


def load_embeddings(path: str | Path) -> Embeddings:
    """Read and check a .npz with the arrays of Embeddings, by their names.

    Pickled objects are not read. Raises: FileNotFoundError; ValueError, naming file and array, for
    a file that is no .npz or is damaged, lacks image_features, has an array of another name (a
    misspelt one would be missed without a word) or of another type, and as Embeddings does.
    """
    path = Path(path)
    arrays = read_arrays(path)
    unknown = sorted(arrays.keys() - set(KEYS))
    if unknown or "image_features" not in arrays:
        raise ValueError(
            f"{path} has the arrays {', '.join(sorted(arrays)) or 'none'}; image_features must be "
            f"there, and others may be {', '.join(KEYS[1:])}"
        )
    values: dict[str, Any] = {}
    for name, array in arrays.items():
        kinds = "f" if name in _FLOATS else "iu" if name in _INTEGERS else "U"
        dimensions = (_FLOATS | _INTEGERS | _TEXTS)[name]
        if array.dtype.kind == "f" and array.itemsize > 8:  # long double: torch has none
            array = array.astype(np.float64)
        if array.dtype.kind not in kinds or array.ndim != dimensions:
            wanted = {"f": "floats", "iu": "integers", "U": "texts"}[kinds]
            raise ValueError(
                f"{path}: {name} must be {wanted} of {dimensions} dimension(s), got {array.dtype} "
                f"{[*array.shape]}"
            )
        if kinds == "U":
            values[name] = tuple(map(str, array.tolist()))
        elif dimensions == 0:
            values[name] = float(array)
        else:
            native = array.astype(array.dtype.newbyteorder("="))
            values[name] = torch.from_numpy(
                native.astype(np.int64) if kinds == "iu" else np.ascontiguousarray(native)
            )
    try:
        return Embeddings(**values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write_arrays(path: Path, arrays: Arrays) -> None:
    """A .npz that appears whole or not at all, under exactly this name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub: one could be allow_pickle
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_arrays(path: Path) -> Arrays:
    """All arrays of a .npz; ValueError, naming the file, where it is none, damaged or pickled."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array")
        with loaded as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} must be a whole .npz of plain arrays (numpy.savez, no objects): {error}"
        ) from error


def _as_int64(name: str, values: Tensor) -> Tensor:
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"{name} must be integers, got {values.dtype}")
    return values.detach().cpu().to(torch.int64)
