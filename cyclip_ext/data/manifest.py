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

from .files import FilePairs, Fingerprint
from .records import IN_MANIFEST, Part, SkipReport

_FORMAT = "cyclip_ext manifest"
_VERSION = 1


@dataclass(frozen=True)
class BadEntry:
    """One record that cannot be used."""

    index: int
    reason: str
    where: str


@dataclass(frozen=True)
class Manifest:
    """Which data it is about, its bad records, and a summary for people (summary is not read)."""

    fingerprint: Fingerprint
    bad: list[BadEntry]
    summary: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "source": asdict(self.fingerprint),
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
        source = content["source"]
        files = tuple((name, size) for name, size in source["files"])
        return cls(
            Fingerprint(source["records"], files, source["keys"]),
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


def apply_manifest(pairs: FilePairs, path: Path) -> Part:
    """`pairs` without the records that the manifest lists as bad; they are counted in skipped.

    Raises as Manifest.read, and ValueError, naming what differs, for a manifest of other data.
    """
    manifest = Manifest.read(path)
    difference = _difference(manifest.fingerprint, pairs.fingerprint())
    if difference:
        raise ValueError(
            f"the manifest {path} was made for other data than {pairs.source}: {difference}; "
            "run `python -m cyclip_ext.data verify` on this data"
        )
    good = np.ones(len(pairs), dtype=bool)
    good[[entry.index for entry in manifest.bad]] = False
    part = Part(pairs, np.flatnonzero(good))
    part.skipped = SkipReport()
    part.skipped.merge(pairs.skipped)
    for entry in manifest.bad:
        part.skipped.add(IN_MANIFEST, f"{entry.where}: {entry.reason}")
    return part


def _difference(then: Fingerprint, now: Fingerprint) -> str:
    """What differs, in words; empty where nothing does."""
    before, after = dict(then.files), dict(now.files)
    for name, size in before.items():
        if name not in after:
            return f"it knows {name}, which is not there"
        if after[name] != size:
            return f"{name} has {after[name]:,} bytes, the manifest says {size:,}"
    for name in after:
        if name not in before:
            return f"it does not know {name}"
    if then.files != now.files:
        return "the same files in another order"
    if then.records != now.records:
        return f"{now.records:,} records, the manifest says {then.records:,}"
    if then.keys != now.keys:
        return "the records have other names or another order"
    return ""
