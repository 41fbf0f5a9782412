"""Options of the readers of files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading a dataset. Each applies to some formats only; None is the default.

    READ_HELP describes them.
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


# The fields of ReadOptions, as the command lines of data, training and evaluation describe them.
READ_HELP = {
    "images": "folder of the images of a table or caption file",
    "first_row": "number of the first row of Google's TSV in the names of its images: 0 or 1",
    "csv_separator": r"character between the columns of a table, \t for a tab; default: the one in "
    "its header",
    "csv_img_key": "name of the column of images; default: image, filepath, ...",
    "csv_caption_key": "name of the column of captions; default: caption, title, ...",
    "csv_label_key": "name of the column of classes; default: label, class, ...",
    "csv_quoting": "whether quotes enclose the fields of a table: auto, quoted or none; default: "
    "auto",
    "split": "split of Karpathy's JSON; default: train",
    "manifest": "file that `cyclip-data verify` wrote: the records it lists as bad are skipped",
}
