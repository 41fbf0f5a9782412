"""The result of reading a data set once: what is bad in it, as a file that training can use."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

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
    """Which data it is about, its bad records, and a summary for people (summary is not read)."""

    records: int
    fingerprint: str
    bad: list[BadEntry]
    summary: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "records": self.records,
            "fingerprint": self.fingerprint,
            "summary": self.summary,
            "bad": [asdict(entry) for entry in self.bad],
        }
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            # ASCII: names of files need not be UTF-8
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="ascii")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Inverse of write.

        Raises FileNotFoundError, or ValueError for a file that is no manifest or of a newer kind.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            known = content["format"] == _FORMAT
        except FileNotFoundError:
            raise FileNotFoundError(
                f"the manifest {path} does not exist; write it with "
                "`python -m cyclip_ext.data verify PATH --manifest ...`"
            ) from None
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise ValueError(f"{path} is no manifest of `python -m cyclip_ext.data verify`")
        if content["version"] != _VERSION:
            raise ValueError(
                f"{path} is a manifest of version {content['version']}, this package reads version "
                f"{_VERSION}: write it again"
            )
        return cls(
            content["records"],
            content["fingerprint"],
            [BadEntry(**entry) for entry in content["bad"]],
            content["summary"],
        )


def require_writable(path: Path) -> None:
    """Raise OSError, with what to change, where a manifest cannot be written to path."""
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


def apply_manifest(pairs: FileDataset, path: Path) -> Subset:
    """`pairs` without the records that the manifest lists as bad; they are counted in skipped.

    Raises as Manifest.read, and ValueError, naming what differs, for a manifest of other data.
    """
    manifest = Manifest.read(path)
    difference = ""
    if manifest.records != len(pairs):
        difference = f"{len(pairs):,} records, the manifest has {manifest.records:,}"
    elif manifest.fingerprint != pairs.fingerprint():
        difference = "the records differ, or are in another order"
    if difference:
        raise ValueError(
            f"the manifest {path} was made for other data than {pairs.name}: {difference}; "
            "run `cyclip-data verify` on this data"
        )
    good = np.ones(len(pairs), dtype=bool)
    good[[entry.index for entry in manifest.bad]] = False
    part = Subset(pairs, np.flatnonzero(good))
    part.skipped = SkipReport()
    part.skipped.merge(pairs.skipped)
    for entry in manifest.bad:
        part.skipped.add(IN_MANIFEST, f"{entry.where}: {entry.reason}")
    return part
