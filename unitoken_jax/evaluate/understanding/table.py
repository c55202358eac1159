"""Benchmark and prediction files: tab-separated, quoted as the csv module and pandas quote.

A row's `image` is a base64 image, a list of them written as a Python list, or (64 characters and fewer)
the index of the row whose image it shares. Every error names file, line, index and column, whatever class of
error a library raised.
"""

import ast
import base64
import csv
import dataclasses
import io
import os
import pathlib
import string
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

from PIL import Image, UnidentifiedImageError

from unitoken_jax.evaluate.faults import named, undecodable_line
from unitoken_jax.sequence.errors import legible
from unitoken_jax.sequence.image import image_size, open_image
from unitoken_jax.storage.atomic import write_text

INDEX, QUESTION, IMAGE, PREDICTION = "index", "question", "image", "prediction"
# How pandas and numpy write that there is nothing, in columns where an empty cell means that. "None" is not
# among them: it is an option of real questions (VLMEvalKit's issue 1559, of 2026-05-28).
_NOTHING = ("nan", "NaN", "<NA>")
_MAY_HOLD_NOTHING = frozenset((*string.ascii_uppercase, IMAGE, "hint", "split", "category", "l2-category"))
_LONGEST_REFERENCE = 64  # characters; VLMEvalKit's rule
_LARGEST_CELL = 2**31 - 1


class TableError(ValueError):
    """A file that cannot be used; the message names the place and what is wrong."""


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """`rows` in file order, every cell text ("": nothing); `lines`: where in `path` each begins.

    `left_out`: the indices of rows that are not among them because their `image` is empty.
    """

    path: pathlib.Path
    columns: tuple[str, ...]
    rows: list[dict[str, str]]
    lines: list[int]
    left_out: frozenset[str] = frozenset()

    @property
    def without_image(self) -> int:
        """How many rows were left out because their `image` is empty."""
        return len(self.left_out)

    def location(self, number: int, column: str | None = None) -> str:
        """Names row `number`, and `column`, for a message."""
        row = f"{self.path}:{self.lines[number]} (index {self.rows[number][INDEX][:80]})"
        return row if column is None else f"{row}, column {column!r}"

    def fault(self, number: int, column: str, problem: str) -> TableError:
        """The error that `problem` is wrong with `column` of row `number`, to be raised."""
        return TableError(f"{self.location(number, column)}: {legible(problem)}")

    def reading(
        self, number: int, column: str | None = None, problem: str = ""
    ) -> AbstractContextManager[None]:
        """A block in which whatever is raised becomes the `fault` of `column` in row `number`."""
        return named(TableError, self.location(number, column), problem)


def read_table(path: str | os.PathLike, need: Iterable[str] = (), images: bool = True) -> Table:
    """Reads a tab-separated file with a header. `images` False forgets the large column `image`.

    Rows whose `image` is empty are left out, as VLMEvalKit does. Raises TableError where a column of `need`
    is missing, an index is empty or double, or a line has another number of cells than the header.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() in (".xlsx", ".xls", ".json", ".csv", ".pkl"):
        raise TableError(
            f"{path}: only tab-separated files (.tsv) are read; save it as one (VLMEvalKit does with "
            "PRED_FORMAT=tsv)"
        )
    if path.is_dir():
        raise TableError(f"{path}: a folder; expected a tab-separated file")
    limit = csv.field_size_limit(_LARGEST_CELL)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return _read(path, csv.reader(file, delimiter="\t", strict=True), tuple(need), images)
    except UnicodeDecodeError as error:
        if error.object[:2] == b"PK":
            raise TableError(f"{path}: an Excel or zip file, whatever its name; save it as .tsv") from None
        line = undecodable_line(path)
        raise TableError(f"{path}: not UTF-8 ({path}:{line}: {error.reason}); save it as UTF-8") from None
    except FileNotFoundError:
        raise FileNotFoundError(f"no file at {path}") from None
    finally:
        csv.field_size_limit(limit)


def _read(path: pathlib.Path, reader, need: Sequence[str], images: bool) -> Table:
    """`read_table` of the lines that the csv `reader` gives."""
    header = _next(path, reader)
    if not header:
        raise TableError(f"{path}: empty; expected a header line of column names")
    missing = [name for name in (INDEX, *need) if name not in header]
    if missing:
        raise TableError(
            f"{path}: lacks the columns {', '.join(missing)}; it has {', '.join(header)[:400]} "
            "(is it this benchmark's file, separated by tabs?)"
        )
    if len(set(header)) < len(header):
        double = next(name for name in header if header.count(name) > 1)
        raise TableError(f"{path}:1: column {double!r} occurs twice; rename one")
    rows: list[dict[str, str]] = []
    lines: list[int] = []
    first: dict[str, int] = {}
    left_out = set()
    while True:
        line = reader.line_num + 1
        cells = _next(path, reader)
        if cells is None:
            break
        if not cells:
            continue
        if len(cells) != len(header):
            raise TableError(
                f"{path}:{line}: {len(cells)} cells, the header names {len(header)} columns; is a tab or a "
                "quotation mark in a cell not quoted?"
            )
        row = {
            name: "" if name in _MAY_HOLD_NOTHING and cell in _NOTHING else cell
            for name, cell in zip(header, cells)
        }
        index = row[INDEX].strip()
        if not index:
            raise TableError(f"{path}:{line}, column {INDEX!r}: empty")
        if index in first:
            raise TableError(
                f"{path}:{line}, column {INDEX!r}: {legible(index)} again; it is at line {first[index]} "
                "already"
            )
        first[index] = line
        row[INDEX] = index
        if IMAGE in row and not row[IMAGE].strip():
            left_out.add(index)
            continue
        if not images:
            row.pop(IMAGE, None)
        rows.append(row)
        lines.append(line)
    if not rows:
        raise TableError(f"{path}: holds no rows" + (" with an image" if left_out else ""))
    columns = tuple(name for name in header if images or name != IMAGE)
    return Table(path, columns, rows, lines, frozenset(left_out))


def _next(path: pathlib.Path, reader) -> list[str] | None:
    """The next line's cells; None at the end of the file."""
    line = reader.line_num + 1
    try:
        return next(reader, None)
    except csv.Error as error:
        raise TableError(
            f"{path}:{line}: not readable as tab-separated cells ({error}); is a quotation mark not closed?"
        ) from None


def write_table(path: str | os.PathLike, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Writes a tab-separated file, whole or not at all."""
    text = io.StringIO()
    # With fewer quotation marks the csv module leaves a carriage return bare, which ends a row.
    writer = csv.writer(text, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(columns)
    # pandas reads no NUL, and a byte-level vocabulary can spell one.
    writer.writerows([cell.replace("\0", "\N{REPLACEMENT CHARACTER}") for cell in row] for row in rows)
    write_text(pathlib.Path(path), text.getvalue())


def literal_list(table: Table, number: int, column: str) -> list[str]:
    """The cell's Python list of texts, read without running it. TableError where it is none."""
    return _list_of(table, number, column, table.rows[number][column])


def _list_of(table: Table, number: int, column: str, cell: str) -> list[str]:
    """The texts of the Python list in `cell`; the other arguments name the place in an error."""
    problem = f"{cell[:60]!r} is no Python list, for example ['a', 'b']"
    with table.reading(number, column, problem):
        values = ast.literal_eval(cell)
        if isinstance(values, list | tuple) and values:
            return [str(value) for value in values]
    raise table.fault(number, column, problem)


def row_images(table: Table) -> list[list[str]]:
    """The base64 images of each row, references and lists resolved; none of them decoded.

    A reference may lead to another one, up or down the file (VLMEvalKit follows those to earlier rows).
    Raises TableError where it leads to no row with an image, or back to itself.
    """
    cells = {row[INDEX]: row[IMAGE] for row in table.rows}
    images = []
    for number, row in enumerate(table.rows):
        cell, seen = row[IMAGE], {row[INDEX]}
        while len(cell) <= _LONGEST_REFERENCE and not cell.startswith("["):
            target = cell.strip()
            problem = f"refers to the image of index {target}"
            if target in seen:
                raise table.fault(number, IMAGE, f"{problem}, which has none of its own but refers back")
            if target not in cells:
                absent = "has none" if target in table.left_out else "is no row"
                raise table.fault(number, IMAGE, f"{problem}, which {absent}")
            seen.add(target)
            cell = cells[target]
        images.append(_list_of(table, number, IMAGE, cell) if cell.startswith("[") else [cell])
    return images


def decode_image(table: Table, number: int, text: str) -> Image.Image:
    """The image of base64 `text` in row `number`, opened but not read. TableError where it is none."""
    with table.reading(number, IMAGE, "broken base64"):
        data = base64.b64decode("".join(text.split()), validate=True)
    with table.reading(number, IMAGE, "the base64 text is no usable image"):
        try:
            image = Image.open(io.BytesIO(data))
        except UnidentifiedImageError:
            raise ValueError("of no format that Pillow knows, or damaged at its beginning") from None
        image_size(image)
    return image


def check_images(table: Table, images: Sequence[Sequence[str]]) -> None:
    """Decodes every image of `row_images` once. TableError for one that is damaged or cut off."""
    seen = set()
    for number, cells in enumerate(images):
        for text in cells:
            if text in seen:
                continue
            seen.add(text)
            with table.reading(number, IMAGE):
                open_image(decode_image(table, number, text))
