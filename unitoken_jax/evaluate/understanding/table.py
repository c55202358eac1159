"""Benchmark and prediction files: tab-separated, quoted as the csv module and pandas quote.

A row's `image` is a base64 image, a list of them written as a Python list, or (64 characters and fewer)
the index of the row whose image it shares. Every error names file, line, index and column.
"""

import ast
import base64
import binascii
import csv
import dataclasses
import io
import os
import pathlib
from collections.abc import Iterable, Sequence

from PIL import Image

from unitoken_jax.sequence.image import ImageError, image_size, open_image
from unitoken_jax.storage.atomic import write_text

INDEX, QUESTION, IMAGE, PREDICTION = "index", "question", "image", "prediction"
_LONGEST_REFERENCE = 64  # characters; VLMEvalKit's rule
_LARGEST_CELL = 2**31 - 1


class TableError(ValueError):
    """A file that cannot be used; the message names the place and what is wrong."""


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """`rows` in file order, every cell text ("": nothing); `lines`: where in `path` each begins."""

    path: pathlib.Path
    columns: tuple[str, ...]
    rows: list[dict[str, str]]
    lines: list[int]
    without_image: int = 0  # rows left out because their `image` is empty

    def location(self, number: int, column: str | None = None) -> str:
        """Names row `number`, and `column`, for a message."""
        row = f"{self.path}:{self.lines[number]} (index {self.rows[number][INDEX]})"
        return row if column is None else f"{row}, column {column!r}"

    def fault(self, number: int, column: str, problem: str) -> TableError:
        """The error that `problem` is wrong with `column` of row `number`, to be raised."""
        return TableError(f"{self.location(number, column)}: {problem}")


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
        raise TableError(f"{path}: not UTF-8 ({error}); save it as UTF-8") from None
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
    empty = 0
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
        row = dict(zip(header, cells))
        index = row[INDEX].strip()
        if not index:
            raise TableError(f"{path}:{line}, column {INDEX!r}: empty")
        if index in first:
            raise TableError(
                f"{path}:{line}, column {INDEX!r}: {index} again; it is at line {first[index]} already"
            )
        first[index] = line
        row[INDEX] = index
        if IMAGE in row and not row[IMAGE].strip():
            empty += 1
            continue
        if not images:
            row.pop(IMAGE, None)
        rows.append(row)
        lines.append(line)
    if not rows:
        raise TableError(f"{path}: holds no rows" + (" with an image" if empty else ""))
    columns = tuple(name for name in header if images or name != IMAGE)
    return Table(path, columns, rows, lines, empty)


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
    try:
        values = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        values = None
    if not isinstance(values, list | tuple) or not values:
        raise table.fault(number, column, f"{cell[:60]!r} is no Python list, for example ['a', 'b']")
    return [str(value) for value in values]


def row_images(table: Table) -> list[list[str]]:
    """The base64 images of each row, references and lists resolved; none of them decoded.

    Raises TableError where a reference leads to no row, or to one that refers on.
    """
    cells = {row[INDEX]: row[IMAGE] for row in table.rows}
    images = []
    for number, row in enumerate(table.rows):
        cell = row[IMAGE]
        if len(cell) <= _LONGEST_REFERENCE and not cell.startswith("["):
            target = cell.strip()
            if target not in cells:
                raise table.fault(number, IMAGE, f"refers to the image of index {target}, which is no row")
            cell = cells[target]
            if len(cell) <= _LONGEST_REFERENCE:
                raise table.fault(
                    number, IMAGE, f"refers to the image of index {target}, which has none of its own"
                )
        if cell.startswith("["):
            images.append(_list_of(table, number, IMAGE, cell))
        else:
            images.append([cell])
    return images


def decode_image(table: Table, number: int, text: str) -> Image.Image:
    """The image of base64 `text` in row `number`, opened but not read. TableError where it is none."""
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise table.fault(number, IMAGE, f"broken base64 ({error})") from None
    try:
        image = Image.open(io.BytesIO(data))
        image_size(image)
    except (OSError, SyntaxError, ImageError, Image.DecompressionBombError) as error:
        raise table.fault(number, IMAGE, f"the base64 text is no usable image ({error})") from None
    return image


def check_images(table: Table, images: Sequence[Sequence[str]]) -> None:
    """Decodes every image of `row_images` once. TableError for one that is damaged or cut off."""
    seen = set()
    for number, cells in enumerate(images):
        for text in cells:
            if text in seen:
                continue
            seen.add(text)
            try:
                open_image(decode_image(table, number, text))
            except ImageError as error:
                raise table.fault(number, IMAGE, str(error)) from None
