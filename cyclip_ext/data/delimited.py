"""Rows of delimited text (CSV, TSV): line ends, separators and quotes.

The csv module is not used: it cannot return to the line in which a quote was opened, so one stray
quote costs it all rows up to the next one.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from .._files import regular_size
from .._output import counted
from .images import IMAGE_SUFFIXES

SEPARATORS = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "vertical bar"}
QUOTING = ("auto", "quoted", "none")

MISPLACED_QUOTE = "misplaced quote"
TOO_FEW, TOO_MANY = "too few columns", "too many columns"

_MOST_FIRST_LINE = 2**20
_MOST_LINES = 100  # of one quoted field
_CHUNK = 2**20
_EXAMPLES = 5


class Row(NamedTuple):
    """line: number of its first line. reason: what is wrong with it, if anything."""

    line: int
    fields: Sequence[str]
    reason: str = ""


class TextFile:
    """Lines of a UTF-8 file that end in LF or CR LF, or also in CR if its first line does.

    Bytes that are not UTF-8 become surrogates, which `is_text` finds. Raises
    NotRegularFileError for a FIFO or a device, and ValueError if the file is not text.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        regular_size(path)
        with path.open("rb") as file:
            start = file.read(_MOST_FIRST_LINE)
        if start.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise ValueError(f"{path} is UTF-16: save it as UTF-8")
        self._mac = b"\r" in start.partition(b"\n")[0].rstrip(b"\r")
        first = re.split(rb"[\r\n]", start, maxsplit=1)[0]
        if len(first) == _MOST_FIRST_LINE:
            raise ValueError(
                f"{path} is not a table: its first line is longer than 1 MiB; name a "
                "CSV or TSV file"
            )
        if b"\0" in first:
            raise ValueError(
                f"{path} is not a UTF-8 text: there are NUL bytes in its first line; "
                "save it as UTF-8"
            )

    def contains(self, byte: bytes) -> bool:
        """Return whether a byte occurs anywhere in the file."""
        with self.path.open("rb") as file:
            while block := file.read(_CHUNK):
                if byte in block:
                    return True
        return False

    def __iter__(self) -> Iterator[str]:
        """Yield the lines without their ends."""
        mark = b"\xef\xbb\xbf"
        for line in self._raw():
            yield line.removeprefix(mark).decode("utf-8", "surrogateescape")
            mark = b""

    def _raw(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            if not self._mac:
                yield from (line.removesuffix(b"\n").removesuffix(b"\r") for line in file)
            rest = b""
            while block := file.read(_CHUNK):
                *lines, rest = (rest + block).replace(b"\n", b"\r").split(b"\r")
                yield from lines  # CR LF is one more blank line
            if rest:
                yield rest

    def first_line(self) -> str:
        """Return the first line that is not blank, "" if there is none."""
        return next(filter(str.strip, self), "")


@dataclass
class Quoting:
    """How the quotes of a table are read, and the lines in which they do not fit that reading.

    quoted: fields may be enclosed in quotes. lines: the first lines of rows whose quotes enclose no
    field, a few of them; count: how many there are.
    """

    quoted: bool
    count: int = 0
    lines: list[int] = field(default_factory=list)

    def warning(self, path: Path) -> str:
        """Return a warning about rows with misplaced quotes; empty if there are none."""
        if not self.count:
            return ""
        where = ", ".join(map(str, self.lines)) + (", ..." if self.count > len(self.lines) else "")
        rows = counted(self.count, "row")
        if self.quoted:
            return (
                f"{path}: in {rows} quotes do not enclose a field (lines {where}); "
                "these rows are skipped. If quotes mean nothing in this table, pass "
                "--csv-quoting none (csv_quoting)"
            )
        return (
            f"{path}: in {rows} quotes do not enclose a field (lines {where}), so "
            "the table is read without quoting: every line is a row, quotes are part of the text. "
            "If it is quoted, pass --csv-quoting quoted (csv_quoting); these rows are then skipped"
        )


def split_header(line: str, separator: str) -> list[str]:
    """Return the names of the columns, stripped, without quotes around them."""
    fields, wrong = _split(line, separator)
    if wrong:
        fields = line.split(separator)
    return [name.strip().removeprefix("\ufeff").strip() for name in fields]


class DelimitedRows:
    """The rows of a delimited file, each exactly once.

    columns: how many there should be; image_column: where the name of the image is, by which a row
    is recognized inside a quoted field. header: whether to pass over the first line. quoting: one
    of QUOTING. "auto" reads the file once to see which of the two readings loses fewer rows, and
    prefers quoting if they lose as many.
    """

    def __init__(
        self,
        file: TextFile,
        separator: str,
        columns: int,
        image_column: int,
        *,
        header: bool = True,
        quoting: str = "auto",
    ) -> None:
        self._file = file
        self._separator = separator
        self._columns = columns
        self._image = image_column
        self._header = header
        self.quoting = self._decide(quoting)

    def __iter__(self) -> Iterator[Row]:
        """Yield all rows that are not blank."""
        if self.quoting.quoted:
            return (row for row, _ in self._with_lines())
        return self._unquoted()

    def _decide(self, quoting: str) -> Quoting:
        if quoting not in QUOTING:
            raise ValueError(
                f"csv_quoting (--csv-quoting) must be one of {', '.join(QUOTING)}, got {quoting!r}"
            )
        if quoting == "none" or not self._file.contains(b'"'):
            return Quoting(False)
        doubt = Quoting(True)
        bad_quoted = bad_unquoted = 0
        for row, lines in self._with_lines():
            if all('"' not in line for line in lines):
                continue
            if row.reason == MISPLACED_QUOTE:
                doubt.count += 1
                doubt.lines += [row.line] * (len(doubt.lines) < _EXAMPLES)
            bad_quoted += bool(row.reason)
            if len(lines) > 1 and not row.reason:
                bad_unquoted += 1  # its lines would be rows
            else:
                bad_unquoted += sum(map(self._needs_quoting, lines))
        doubt.quoted = quoting == "quoted" or bad_quoted <= bad_unquoted
        return doubt

    def _needs_quoting(self, line: str) -> bool:
        """Return whether a line is only valid if quotes enclose fields."""
        fields = line.split(self._separator)
        if not line.strip():
            return False
        if _reason(fields, self._columns):
            return True
        image = fields[self._image].strip()
        return (len(image) > 1 and image[0] == image[-1] == '"') or any(
            len(cell) > 1 and cell[0] == cell[-1] == '"' and '""' in cell[1:-1]
            for cell in map(str.strip, fields)
        )

    def _lines(self) -> Iterator[tuple[int, str]]:
        lines = enumerate(self._file, 1)
        if self._header:
            next((line for _, line in lines if line.strip()), None)
        for number, line in lines:
            if "\r" in line:  # rows of another system, appended
                parts = list(filter(str.strip, line.split("\r")))
                rows = [part for part in parts if self._is_row(part)]
                named = next(iter(self._image_cells(parts[0])), "")
                alike = sum(self._ends_field([parts[0], part], named) for part in rows)
                # The others of many may be rows with commas or quotes.
                if len(rows) == len(parts) or 2 * alike > len(parts) > 2:
                    yield from ((number, part) for part in parts)
                    continue
            yield number, line

    def _unquoted(self) -> Iterator[Row]:
        for number, line in self._lines():
            fields = line.split(self._separator)
            if len(fields) == self._columns:
                if line.strip():
                    yield Row(number, fields)
            elif any(map(str.strip, fields)):
                yield Row(number, fields, _reason(fields, self._columns))

    def _with_lines(self) -> Iterator[tuple[Row, list[str]]]:
        """Yield each row and the lines it consists of.

        If the quotes of a row are wrong, its first line is a bad row, and reading continues with
        the second line. A line with the other quote is bad as well: it may be the rest of the row.
        """
        unmatched = False
        source = self._lines()
        again: deque[tuple[int, str]] = deque()
        while True:
            following = again.popleft() if again else next(source, None)
            if following is None:
                return
            number, line = following
            fields, lines = self._row(line, again, source)
            if fields is None:
                again.extendleft(reversed([*enumerate(lines[1:], number + 1)]))
                yield Row(number, lines[:1], MISPLACED_QUOTE), lines[:1]
                unmatched = line.count('"') % 2 == 1
            elif unmatched and len(lines) == 1 and line.count('"') % 2 == 1:
                yield Row(number, lines, MISPLACED_QUOTE), []  # no evidence of its own
                unmatched = False
            elif any(map(str.strip, fields)):
                yield Row(number, fields, _reason(fields, self._columns)), lines

    def _row(
        self, line: str, again: deque[tuple[int, str]], source: Iterator[tuple[int, str]]
    ) -> tuple[list[str] | None, list[str]]:
        """Return the fields of the row that begins in a line, and all lines read for it."""
        if '"' not in line:
            return line.split(self._separator), [line]
        fields, wrong = _split(line, self._separator)
        lines = [line]
        named = fields[self._image] if self._image < len(fields) else ""  # before the open quote
        while wrong == _OPEN:
            following = again.popleft() if again else next(source, None)
            if following is None:
                return None, lines
            lines.append(following[1])
            if '"' in following[1]:
                fields, wrong = _split("\n".join(lines), self._separator)
            if not named and self._image < len(fields):
                if not self._precedes_image(fields[self._image], lines):
                    return None, lines
                named = fields[self._image]
            elif self._ends_field(lines, named):
                return None, lines
        if not wrong and len(lines) > 1:
            like_rows = len(lines) > 2 and all(map(self._is_row, lines[1:]))
            if (like_rows and not _is_image(named)) or _reason(fields, self._columns):
                return None, lines
        return None if wrong else fields, lines

    def _is_row(self, line: str) -> bool:
        return len(line.split(self._separator)) == self._columns

    def _ends_field(self, lines: list[str], named: str) -> bool:
        """Return whether the last line cannot belong to the quoted field that the first opens.

        named: the image of the row, "" if its column comes after the field.
        """
        if len(lines) > _MOST_LINES or (self._separator != "," and self._is_row(lines[-1])):
            return True  # text has commas, but hardly tabs
        if any(map(_is_image, self._image_cells(lines[-1]))):
            return True
        cells = lines[-1].split(self._separator)
        cell = _bare(cells[self._image]) if 1 < len(cells) > self._image else ""
        return bool(cell) and _shape(cell) == _shape(_bare(named))

    def _precedes_image(self, image: str, lines: list[str]) -> bool:
        """Return whether a field of several lines is followed by the image of its row.

        The last line then resembles a row. It is one, and the quotes enclose no field, if another
        line names an image as well.
        """
        shape = _shape(_bare(image))
        return len(lines) <= _MOST_LINES and not any(
            _is_image(cell) or _shape(_bare(cell)) == shape
            for line in lines[:-1]
            for cell in self._image_cells(line)
        )

    def _image_cells(self, line: str) -> list[str]:
        """Return the cells in which a row has its image, counted from its start and its end."""
        cells = line.split(self._separator)
        places = (self._image, self._image - self._columns) if len(cells) > 1 else ()
        return [cells[place] for place in places if -len(cells) <= place < len(cells)]


_OPEN = "a quoted field is not closed"


def _split(line: str, separator: str) -> tuple[list[str], str]:
    """Return the fields of a row, and the fault of its quotes: "", _OPEN or MISPLACED_QUOTE.

    If there is one, the fields are those before it. Only a quote at the beginning of a
    field, or after blanks there, opens one.
    """
    closed, opened = _patterns(separator)
    fields: list[str] = []
    position = 0
    while True:
        match = closed.match(line, position)
        if match:
            fields.append(match[1].replace('""', '"'))
            end = match.end()
        elif opened.match(line, position):
            rest = line[line.index('"', position) + 1 :]
            return fields, MISPLACED_QUOTE if '"' in rest.replace('""', "") else _OPEN
        else:
            end = line.find(separator, position)
            end = len(line) if end < 0 else end
            fields.append(line[position:end])
        if end >= len(line):
            return fields, ""
        position = end + 1


@lru_cache
def _patterns(separator: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    blank = " *" if separator == "\t" else "[ \t]*"
    closed = re.compile(rf'{blank}"([^"]*(?:""[^"]*)*)"{blank}(?={re.escape(separator)}|\Z)')
    return closed, re.compile(f'{blank}"')


def _reason(fields: Sequence[str], columns: int) -> str:
    if len(fields) < columns:
        return TOO_FEW
    # Spreadsheets write empty columns at the end.
    return TOO_MANY if any(map(str.strip, fields[columns:])) else ""


def _bare(cell: str) -> str:
    return cell.strip().strip('"')


def _is_image(cell: str) -> bool:
    return os.path.splitext(_bare(cell))[1].lower() in IMAGE_SUFFIXES


def _shape(cell: str) -> str:
    """Return the pattern of a name: "images/0012.x" has the pattern "a/0.a"."""
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "0", cell))
