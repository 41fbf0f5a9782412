"""The bad records of a dataset as a file, which `verify` writes and training reads."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .._files import NotRegularFileError, read_text, write_atomic
from .dataset import FileDataset, Subset
from .skips import IN_MANIFEST, SkipReport

_FORMAT = "cyclip_ext manifest"
_VERSION = 2


@dataclass(frozen=True)
class BadEntry:
    """One record that cannot be used."""

    index: int
    reason: str
    where: str


@dataclass(frozen=True)
class Manifest:
    """The bad records of the dataset with this number of records and this fingerprint.

    summary is for people and is not read.
    """

    records: int
    fingerprint: str
    bad: list[BadEntry]
    summary: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the manifest as JSON, atomically."""
        content = {"format": _FORMAT, "version": _VERSION, **asdict(self)}
        # json escapes what is not ASCII: names of files need not be UTF-8
        write_atomic(path, json.dumps(content, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest that `write` wrote.

        Raises FileNotFoundError, or ValueError if the file is not a manifest of this version.
        """
        remedy = "write it with `cyclip-data verify PATH --manifest ...`"
        version = _VERSION
        try:
            content = json.loads(read_text(path))
            version = content["version"] if content["format"] == _FORMAT else _VERSION
            count, bad = content["records"], [BadEntry(**entry) for entry in content["bad"]]
            once = len({entry.index for entry in bad}) == len(bad)
            inside = all(type(entry.index) is int and 0 <= entry.index < count for entry in bad)
            if version == _VERSION and once and inside:
                return cls(count, content["fingerprint"], bad, content["summary"])
        except FileNotFoundError:
            raise FileNotFoundError(f"the manifest {path} does not exist; {remedy}") from None
        except (NotRegularFileError, ValueError, KeyError, TypeError, RecursionError):
            pass
        kind = "not a manifest"
        if version != _VERSION:
            kind = f"of version {version}, but this package reads version {_VERSION}"
        raise ValueError(f"{path} is {kind}; {remedy}")


def require_writable(path: Path) -> None:
    """Raise OSError, with a remedy, if a manifest cannot be written to `path`."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(
            f"the manifest (--manifest) cannot be written to {path}: {error.strerror}; "
            "name a file in a folder that exists and can be written"
        ) from None


def apply_manifest(dataset: FileDataset, path: Path) -> Subset:
    """Return `dataset` without the records that a manifest lists; `skipped` counts them.

    Raises as Manifest.read, and ValueError, naming what differs, for a manifest of other data.
    """
    manifest = Manifest.read(path)
    difference = ""
    if manifest.records != len(dataset):
        difference = f"{len(dataset):,} records, but {manifest.records:,} in the manifest"
    elif manifest.fingerprint != dataset.fingerprint():
        difference = "the records differ, or are in another order"
    if difference:
        raise ValueError(
            f"the manifest {path} was made for other data than {dataset.name} ({difference}); "
            "run `cyclip-data verify` on this data"
        )
    good = np.ones(len(dataset), dtype=bool)
    good[[entry.index for entry in manifest.bad]] = False
    part = Subset(dataset, np.flatnonzero(good))
    part.skipped = SkipReport()
    part.skipped.merge(dataset.skipped)
    for entry in manifest.bad:
        part.skipped.add(IN_MANIFEST, f"{entry.where}: {entry.reason}")
    return part
