"""Rows of a CSV file with a header, by their number: what conversation_file.py is for JSON.

A file is walked through once for the byte positions of its rows (`scan_csv`); a row is read when it is asked
for (`CsvRecords`). A quoted text may span lines. Where one is never closed, or closed too early, the row ends
with its first line, so that one forgotten quote costs no other row.
"""

import array
import codecs
import csv
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from unitoken_jax.sequence.errors import ConversationError, row_errors
from unitoken_jax.storage.paths import RandomFile, as_path

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class CsvRecords:
    """The rows of a CSV file as dicts of texts; `table` int64[N, 3] is what `scan_csv` says of it."""

    def __init__(self, path: str, table: np.ndarray):
        self.path, self._table, self._file = path, table, RandomFile(path)
        with as_path(path).open("rb") as file:
            self.columns = _header(_Lines(file), path)

    def __len__(self) -> int:
        return len(self._table)

    def location(self, i: int) -> str:
        """ "file:line" of row `i`."""
        return f"{self.path}:{self._table[i, 2]}"

    def read(self, i: int) -> dict[str, str]:
        """Text by column of row `i`. Raises ConversationError where it has other cells than the header."""
        start, end, _ = self._table[i].tolist()
        data = self._file.read(start, end - start)
        with row_errors(self.location(i)):
            cells = _parse(data)
            if len(cells) != len(self.columns):
                raise ConversationError(
                    f"{len(cells)} cell{'s' * (len(cells) != 1)}, but {len(self.columns)} columns "
                    f"({', '.join(self.columns)}): put a text that has commas between double quotes"
                )
            return dict(zip(self.columns, cells))


def scan_csv(path: str) -> np.ndarray:
    """int64[N, 3]: first byte, end and line of each row behind the header; blank rows are none.

    Raises ConversationError where the header cannot be read.
    """
    rows = array.array("q")
    with as_path(path).open("rb") as file:
        lines = _Lines(file)
        width = len(_header(lines, path))
        while lines.peek():
            start, line = lines.offset, lines.number
            if any(cell.strip() for cell in lines.take_row(width)):
                rows.extend((start, lines.offset, line))
    return np.array(rows, np.int64).reshape(-1, 3)


def _header(lines: "_Lines", path: str) -> list[str]:
    """The names of the columns of the file `path`, whose first row it is."""
    with row_errors(f"{path}:1"):
        beginning = lines.peek()
        if beginning.startswith(_UTF_16):
            raise ConversationError("the file is UTF-16; save it as UTF-8", "encoding")
        lines.take_row(0)
        names = [name.strip() for name in _parse(beginning.removeprefix(codecs.BOM_UTF8))]
        if not any(names):
            raise ConversationError("no header: expected the names of the columns in the first line")
        twice = sorted({name for name in names if name and names.count(name) > 1})
        if twice:
            raise ConversationError(f"the header has {', '.join(twice)} twice: give each column its own name")
        return names


def _parse(data: bytes) -> list[str]:
    """The cells of the row that `data` holds. Raises ConversationError, without saying where."""
    try:
        return next(csv.reader([data.decode("utf-8")], strict=True))
    except UnicodeDecodeError as error:
        raise ConversationError(f"not UTF-8 ({error}); save the file as UTF-8", "encoding") from error
    except csv.Error as error:
        raise ConversationError(
            f"not valid CSV ({error}): put a text between double quotes, and write each of its own twice"
        ) from error


class _Lines(Iterator[str]):
    """The lines of a file, from which rows are taken; `offset` and `number` are those of the next one."""

    def __init__(self, file: BinaryIO):
        self._file, self._next = file, list[bytes]()  # lines read but not taken, the next one last
        self._taken = list[bytes]()  # those of the row that is being taken
        self.offset, self.number = 0, 1

    def peek(self) -> bytes:
        """The next line; empty at the end."""
        if not self._next:
            self._next.append(self._file.readline())
        return self._next[-1]

    def __next__(self) -> str:
        if not (line := self.peek()):
            raise StopIteration
        self._taken.append(self._next.pop())
        return line.decode("latin-1")  # any byte is a sign, and quotes and commas stay what they are

    def take_row(self, width: int) -> list[str]:
        """Passes over the next row; its cells, as far as they are known: one that is broken has some.

        One of several lines that has not `width` cells is broken too, and ends with its first line.
        """
        self._taken.clear()
        try:
            cells, broken = next(csv.reader(self, strict=True), []), False
        except csv.Error:
            cells, broken = ["?"], True
        if broken or len(cells) != width:
            self._next += reversed(self._taken[1:])
            del self._taken[1:]
        self.offset += sum(map(len, self._taken))
        self.number += len(self._taken)
        return cells
