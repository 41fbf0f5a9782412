"""Options of the readers of files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class ReadOptions:
    """How to read a dataset; each option belongs to some formats, None is the default of each.

    Attributes:
        images: Folder of the images of a table or caption file.
        first_row: Number of the first row of Google's TSV in the names of its images, 0 or 1.
        csv_separator: Character between columns.
        csv_img_key: Name of the column of images.
        csv_caption_key: Name of the column of captions.
        csv_label_key: Name of the column of classes.
        csv_quoting: Whether quotes enclose fields: "auto", "quoted" or "none".
        split: Split of Karpathy's JSON.
        manifest: File written by `cyclip-data verify` for this data; the records it lists as bad
            are skipped.
    """

    images: str | Path | None = None
    first_row: int | None = None
    csv_separator: str | None = None
    csv_img_key: str | None = None
    csv_caption_key: str | None = None
    csv_label_key: str | None = None
    csv_quoting: str | None = None
    split: str | None = None
    manifest: str | Path | None = None

    @property
    def folder(self) -> Path | None:
        """`images` as a path."""
        return None if self.images is None else Path(self.images)

    def require_applicable(self, spec: str, kind: str, accepted: Iterable[str]) -> None:
        """Raise ValueError if an option is given that does not apply to this kind of dataset."""
        given = [
            option.name
            for option in fields(self)
            if getattr(self, option.name) is not None and option.name not in {*accepted, "manifest"}
        ]
        if given:
            flags = ", ".join(f"{name} (--{name.replace('_', '-')})" for name in given)
            does = "does" if len(given) == 1 else "do"
            raise ValueError(f"{spec} is {kind}: {flags} {does} not apply")
