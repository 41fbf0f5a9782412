"""Embeddings as a .npz file: its arrays have the names of the fields of Embeddings."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._files import NotRegularFileError, regular_size
from .._output import counted
from ..data import SkipReport, Superclasses
from .embeddings import LEVEL, Embeddings, NotFiniteError

# Kinds of numpy's dtypes, and the number of dimensions. Levels are texts [C], the superclass of
# each class.
_ARRAYS = {
    "image_features": ("f", 2),
    "text_features": ("f", 2),
    "class_features": ("f", 2),
    "synonym_features": ("f", 2),
    "logit_scale": ("f", 0),
    "text_owners": ("iu", 1),
    "text_labels": ("iu", 1),
    "labels": ("iu", 1),
    "domains": ("iu", 1),
    "total": ("iu", 0),
    "name": ("U", 0),
    "image_ids": ("U", 1),
    "class_names": ("U", 1),
    "domain_names": ("U", 1),
    "quadruple_tags": ("U", 1),
    "skipped": ("U", 0),
}
_KINDS = {"f": "floats", "iu": "integers", "U": "texts"}
_SIGNATURES = {  # first bytes of files that are often given instead of a .npz
    b"\x93NUMPY": "a .npy file, which holds one array without a name",
    b"PAR1": "a Parquet file",
    b"\x89HDF": "an HDF5 file",
    b"\x80": "a pickle",
}
_EXPECTED = (
    "expected is a .npz file with named arrays, as "
    "numpy.savez(path, image_features=..., labels=..., class_features=...) writes it"
)


def save_embeddings(path: str | Path, embeddings: Embeddings) -> None:
    """Write a .npz file for load_embeddings, atomically and under exactly this name."""
    path = Path(path)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name in _ARRAYS:
        value = getattr(embeddings, name)
        if isinstance(value, Tensor):
            arrays[name] = value.numpy()
        elif isinstance(value, SkipReport):
            arrays[name] = np.array(json.dumps(value.to_dict()))
        elif value is not None and value != ():
            arrays[name] = np.array(value)
    for level, superclasses in embeddings.levels.items():
        texts = [superclasses.names[index] for index in superclasses.of_class.tolist()]
        arrays[f"{LEVEL}{level}"] = np.array(texts)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # the stub mistakes one for a flag
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_embeddings(path: str | Path) -> Embeddings:
    """Read and check a .npz file with the arrays of Embeddings under their names.

    name defaults to the stem of the file. Pickled objects are not read.

    Raises: FileNotFoundError; ValueError, naming file and array, for a file that is not a .npz or
    is damaged, lacks image_features, has an array of another name (a misspelt one would be
    ignored) or of another type, and as Embeddings does.
    """
    path = Path(path)
    arrays = _read_arrays(path)
    required, *others = _ARRAYS
    unknown = any(key not in _ARRAYS and not key.startswith(LEVEL) for key in arrays)
    if unknown or required not in arrays:
        raise ValueError(
            f"{path} has the arrays {', '.join(sorted(arrays)) or 'none'}; {required} is "
            f"required, and others may be {', '.join(others)} and {LEVEL}NAME"
        )
    values: dict[str, Any] = {"name": path.stem}
    levels = {}
    for key, array in arrays.items():
        value = _value(path, key, array)
        if key.startswith(LEVEL):
            levels[key.removeprefix(LEVEL)] = Superclasses.build(value)
        else:
            values[key] = value
    try:
        if "skipped" in values:
            values["skipped"] = SkipReport.from_dict(json.loads(values["skipped"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: skipped is not a report of skipped records: {error!r}") from None
    try:
        return Embeddings(**values, levels=levels)
    except ValueError as error:
        broken = isinstance(error, NotFiniteError)
        remedy = "; remove these rows, or compute their embeddings again" if broken else ""
        raise ValueError(f"{path}: {error}{remedy}") from None


def _value(path: Path, key: str, array: npt.NDArray[Any]) -> Any:
    """Check an array of the file, and convert it to the type of its field."""
    kinds, dimensions = _ARRAYS.get(key, ("U", 1))  # of levels: texts [C]
    if array.dtype.kind not in kinds or array.ndim != dimensions:
        raise ValueError(
            f"{path}: {key} must be {_KINDS[kinds]} of "
            f"{counted(dimensions, 'dimension')}, got {array.dtype} {[*array.shape]}"
        )
    if kinds == "U":
        return tuple(map(str, array.tolist())) if dimensions else str(array)
    if dimensions == 0:
        return array.item()
    if kinds == "iu":
        return torch.from_numpy(array.astype(np.int64))
    if array.itemsize > 8:  # torch has no long double
        array = array.astype(np.float64)
    native = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(np.ascontiguousarray(native))


def _read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return all arrays of a .npz file."""
    try:
        regular_size(path)  # reading a FIFO may never end
    except NotRegularFileError as error:
        raise ValueError(f"{error}; {_EXPECTED}") from None
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; {_EXPECTED}") from None
    with path.open("rb") as file:
        start = file.read(8)
    if not start.startswith(b"PK"):
        found = next((k for s, k in _SIGNATURES.items() if start.startswith(s)), "not a .npz file")
        raise ValueError(f"{path} is {found if start else 'empty'}; {_EXPECTED}")
    name = ""
    try:
        with np.load(path, allow_pickle=False) as loaded:
            arrays = {}
            for name in loaded.files:
                arrays[name] = loaded[name]
            return arrays
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{path}: {name} holds Python objects; store texts with "
                f"numpy.array({name}, dtype=str), numbers with a numeric dtype"
            ) from None
        raise ValueError(f"{path} is damaged or incomplete ({error}); {_EXPECTED}") from error
